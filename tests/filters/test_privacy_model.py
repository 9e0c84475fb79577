"""A token classifier of transformers marks spans, the same in any batch and over the borders of windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import curate
from curate.errors import RecipeError
from curate.filters import measure
from curate.filters.classifiers import spans

WORDS = ("[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save OpenAI's Privacy Filter with one small layer and random weights; each letter is a token."""
    path = tmp_path_factory.mktemp("privacy")
    tokenizers: Any = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(WORDS)}, "[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(path)
    torch.manual_seed(3)
    config = transformers.OpenAIPrivacyFilterConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=4,
        pad_token_id=0,
        eos_token_id=0,
        initializer_range=1.0,
    )
    transformers.OpenAIPrivacyFilterForTokenClassification(config).save_pretrained(path)
    return str(path)


FIELDS = ("role", "content", "reasoning", "tool_calls", "extra")


def frame(*chats: tuple[str, ...]) -> pl.DataFrame:
    turns = [
        [
            dict.fromkeys(FIELDS) | {"role": ("user", "assistant")[i % 2], "content": text}
            for i, text in enumerate(texts)
        ]
        for texts in chats
    ]
    return pl.DataFrame({"messages": pl.Series(turns, dtype=pl.List(pl.Struct(dict.fromkeys(FIELDS, pl.String()))))})


def text_of(length: int, seed: int = 0) -> str:
    return " ".join(WORDS[2 + (7 * place * place + seed) % 26] for place in range(length))


def test_a_texts_spans_are_those_that_it_has_alone(folder: str) -> None:
    texts = [text_of(length, length) for length in (3, 40, 1, 17, 25)]
    alone = [spans.find_spans([text], folder, 1, 64)[0] for text in texts]
    assert spans.find_spans(texts, folder, 3, 64) == alone
    assert any(alone)


def test_windows_of_a_long_text_give_what_one_pass_gives(folder: str) -> None:
    """The model sees 4 tokens to each side of a token, fewer than half of what two windows share."""
    text = text_of(300)
    assert spans.find_spans([text], folder, 2, 64) == spans.find_spans([text], folder, 1, 1024)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["O", "B-x", "I-x", "E-x", "O"], [("x", 1, 4)]),
        (["S-x", "S-x", "B-y", "E-y", "I-y"], [("x", 0, 1), ("x", 1, 2), ("y", 2, 5)]),
        (["x", "x", "O", "y", "O"], [("x", 0, 2), ("y", 3, 4)]),
        (["I-x", "I-y", "O", "O", "B-x"], [("x", 0, 1), ("y", 1, 2), ("x", 4, 5)]),
    ],
)
def test_neighbouring_labels_are_one_span(labels: list[str], found: list[tuple[str, int, int]]) -> None:
    tokens = [spans._Token(label, place, place + 1) for place, label in enumerate(labels)]
    assert list(spans._join(tokens)) == found


def test_the_signal_counts_by_type_and_shows_no_value(folder: str) -> None:
    chats = frame((text_of(9), text_of(30, 5)), (text_of(2), text_of(4)))
    measured = measure(chats, {"privacy_model": {"model": folder, "max_tokens": 64}})
    expected = [
        [span for message in messages for span in spans.find_spans([message["content"]], folder, 1, 64)[0]]
        for messages in chats["messages"].to_list()
    ]
    assert measured["model_private_hits"].to_list() == [len(values) for values in expected]
    assert measured["model_private_types"].to_list() == [sorted({v.label for v in values}) for values in expected]
    for hashes in measured["model_private_hashes"].explode().drop_nulls():
        assert len(hashes.split(" ")[1]) == 4


def test_a_model_is_needed_and_must_load(tmp_path: Path) -> None:
    chats = frame(("a", "b"))
    with pytest.raises(RecipeError, match="model is missing"):
        measure(chats, {"privacy_model": {}})
    with pytest.raises(RecipeError, match="cannot be loaded"):
        measure(chats, {"privacy_model": {"model": str(tmp_path)}})


@pytest.mark.slow  # reads the default tokenizer
def test_a_recipe_adds_the_columns(folder: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        f'base = "vicuna"\n[signals]\nprivacy_model = {{ model = "{folder}", max_tokens = 64 }}\n', "utf-8"
    )
    turns = [{"role": "user", "content": text_of(30)}, {"role": "assistant", "content": text_of(40)}]
    (tmp_path / "dump.jsonl").write_text(json.dumps({"messages": turns}), "utf-8")
    curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=tmp_path / "mine.toml", workers=1)
    assert "model_private_types" in pl.read_parquet(tmp_path / "set/conversations.parquet").columns
