"""Token counts by words equal those of the reference library for any text and cut, or are not given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curate.tokenization import vocabulary, word_counts
from curate.tokenization.checks import DIFFICULT_TEXTS
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from curate.tokenization.word_counts import WordCounter, has_additive_words
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

PIECES = [
    *(" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\0", "▁", "a", "the", "fox", "lazy dog", "USER:", "ASSISTANT:"),
    *(
        "range(10):",
        "안녕하세요",
        "你好，世界",
        "Привет",
        "😀",
        "é",
        "e\u0301",
        "\u00a0",
        "\u3000",
        "</s>",
        "<0x0A>",
        "x" * 30,
    ),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small model with LLaMA-2's settings."""
    root = tmp_path_factory.mktemp("words")
    return load_tokenizer(str(folder(root / "sp", tokenizer_model=sentencepiece_model(lines=False))))


def check(tokenizer: Tokenizer, texts: list[str], cuts: list[int]) -> None:
    """Compare all counts with the reference; the count at a cut is that of the tokens that begin before it."""
    counter = tokenizer.word_counter
    assert counter is not None
    reference = vocabulary.read(Path(tokenizer.info.source).read_bytes(), "it").reference
    for text, cut, total, before in zip(texts, cuts, *counter.count(texts, cuts), strict=True):
        untold = "▁" in text or "\0" in text
        assert total == (-1 if untold else len(reference(text))), repr(text)
        assert before in (-1, len(reference(text[:cut])) if not untold else -1), repr((text, cut))
        if not untold and text[cut : cut + 1] == " " and text[cut - 1 : cut] != " " and cut:
            assert before >= 0, "a cut before a space is between words"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.floats(0, 1)), max_size=5))
@example([("", 0.0), ("a", 1.0), ("", 1.0), (" ", 0.5), ("\n", 1.0)])
@example([("a\0", 0.0), ("a", 0.0)])
@example([("x▁ y", 0.4), ("x  y", 0.5), ("▁", 0.0)])
def test_counts_equal_the_reference_for_any_text_and_cut(small: Tokenizer, drawn: list[tuple[str, float]]) -> None:
    texts = [text for text, _ in drawn]
    check(small, texts, [int(share * len(text)) for text, share in drawn])


def test_counts_equal_the_reference_for_every_tricky_text(small: Tokenizer) -> None:
    check(small, list(DIFFICULT_TEXTS), [len(text) // 2 for text in DIFFICULT_TEXTS])


@pytest.mark.parametrize("slots", [1, 4])
def test_words_that_share_a_slot_are_distinguished(
    small: Tokenizer, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has so few slots that nearly every word evicts another."""
    monkeypatch.setattr(word_counts, "SLOT_BITS", slots)
    monkeypatch.setattr(word_counts, "_SHIFT", np.uint64(64 - slots))
    counter = WordCounter(small.encode)
    texts = [f"{a} {b}{c}\n{c}  {a}" for a in "abcdefg" for b in ("x", "yy", "안녕") for c in ("1", "q" * 9, "z" * 23)]
    for _ in range(2):
        assert counter.count(texts, [0] * len(texts))[0].tolist() == small.counts(texts).tolist()


def test_a_block_with_a_lone_surrogate_gets_no_count(small: Tokenizer) -> None:
    assert small.word_counter is not None
    assert small.word_counter.count(["a \ud800"], [0])[0].tolist() == [-1]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (sentencepiece_model(), "a piece holds a line break"),
        (sentencepiece_model(byte_fallback=False), "unknown characters in a row are one token"),
        (sentencepiece_model(symbols="<keep me>"), "a symbol holds a space"),
        (sentencepiece_model(normalization="nmt_nfkc"), "the normalizer may make spaces"),
        (tiktoken_file(), "LLaMA-3's words are others"),
    ],
)
def test_unsuitable_vocabularies_are_not_counted_by_words(model: bytes, why: str, tmp_path: Path) -> None:
    assert load_tokenizer(str(folder(tmp_path / "other", tokenizer_model=model))).word_counter is None, why


def test_a_vocabulary_with_tokens_across_spaces_or_line_breaks_is_unsuitable(small: Tokenizer) -> None:
    document = json.loads(small.tokenizer_json())
    assert has_additive_words(json.dumps(document))
    for piece in ("of▁the", "\n\n", "a b"):
        vocab = {**document["model"]["vocab"], piece: 9_999}
        assert not has_additive_words(json.dumps({**document, "model": {**document["model"], "vocab": vocab}})), piece


@pytest.mark.slow
def test_the_released_llama2_equals_its_reference_on_real_messages(shared: Path) -> None:
    import gzip

    tokenizer = load_tokenizer(str(shared / "tokenizers" / "llama2"))
    with gzip.open(shared / "data" / "source_markdown.json.gz") as file:
        texts = [turn["value"] for row in json.load(file)[:400] for turn in row["conversations"]]
    texts = [text for text in texts if isinstance(text, str)]
    check(tokenizer, texts, [max(0, text.rfind(" ")) for text in texts])
