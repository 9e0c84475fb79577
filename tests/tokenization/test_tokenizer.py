"""Tokenizers give the ids of their references, and control strings in text stay text."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import TokenizerError
from curate.tokenization import vocabulary
from curate.tokenization.checks import DIFFICULT_TEXTS
from curate.tokenization.tokenizer import BulkEncode, Tokenizer, encode_each, fastokens_encoder, load_tokenizer
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

CONTROL_STRINGS = ["<s>", "</s>", "<unk>", "<|eot_id|>", "<|begin_of_text|>", "a</s>b", "<|end_of_text|> x"]


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(root))
        yield root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Return a small tokenizer in each format."""
    root = tmp_path_factory.mktemp("small")
    sp = folder(root / "sp", tokenizer_model=sentencepiece_model())
    tik = folder(root / "tik", tokenizer_model=tiktoken_file())
    own = folder(root / "own", tokenizer_json=load_tokenizer(str(tik)).tokenizer_json())
    return {name: load_tokenizer(str(path)) for name, path in (("sentencepiece", sp), ("tiktoken", tik), ("json", own))}


@cache
def reference(name: str) -> Any:
    """Return an encoder that uses no code of curate."""
    if name == "sentencepiece":
        processor: Any = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
        return processor.encode
    pairs = (line.split() for line in tiktoken_file().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    pattern = vocabulary.LLAMA3_PATTERN
    return tiktoken.Encoding("tiny", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


FORMS = ["sentencepiece", "tiktoken", "json"]


@pytest.mark.parametrize("form", FORMS)
def test_ids_equal_the_reference_on_every_tricky_text(form: str, small: dict[str, Tokenizer]) -> None:
    assert small[form].info.library == "fastokens"
    assert small[form].info.warnings == ()
    encode = reference(form)
    assert small[form].ids(list(DIFFICULT_TEXTS)) == [encode(text) for text in DIFFICULT_TEXTS]


@pytest.mark.parametrize("form", ["sentencepiece", "tiktoken"])
@settings(deadline=None)
@given(text=st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n▁ab<s>/"))))
def test_ids_equal_the_reference_on_any_text(form: str, small: dict[str, Tokenizer], text: str) -> None:
    assert small[form].ids([text]) == [reference(form)(text)]
    assert small[form].counts([text]).tolist() == [len(reference(form)(text))]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("library", ["fastokens", "tokenizers", "reference"])
def test_control_strings_in_text_stay_text(form: str, library: str, small: dict[str, Tokenizer]) -> None:
    document = small[form].tokenizer_json()
    encoders: dict[str, Callable[[], BulkEncode]] = {
        "fastokens": lambda: fastokens_encoder(document),
        "tokenizers": lambda: encode_each(vocabulary.hugging_face_encoder(document)),
        "reference": lambda: encode_each(reference(form)),
    }
    ids, _ = encoders[library]()(CONTROL_STRINGS)
    assert not set(ids.tolist()) & set(small[form].control_ids.values())
    assert [small[form].decode(row) for row in small[form].ids(CONTROL_STRINGS)] == CONTROL_STRINGS


@pytest.mark.parametrize("form", FORMS)
def test_text_round_trips_through_its_ids(form: str, small: dict[str, Tokenizer]) -> None:
    for text in DIFFICULT_TEXTS:
        if "\u2581" not in text:  # SentencePiece cannot distinguish it from a space
            assert small[form].decode(small[form].ids([text])[0]) == text


def test_control_tokens_are_decoded_by_name(small: dict[str, Tokenizer]) -> None:
    assert small["tiktoken"].decode([small["tiktoken"].control_ids["<|eot_id|>"]]) == "<|eot_id|>"


def test_counts_are_int32_and_take_a_series_with_nulls(small: dict[str, Tokenizer]) -> None:
    counts = small["tiktoken"].counts(pl.Series(["the dog", None, ""]))
    assert counts.dtype == np.int32
    assert counts.tolist() == [len(reference("tiktoken")("the dog")), 0, 0]
    assert small["tiktoken"].counts([]).tolist() == []


@pytest.mark.parametrize("form", FORMS)
def test_a_lone_surrogate_does_not_crash(form: str, small: dict[str, Tokenizer]) -> None:
    assert small[form].ids(["a\ud800b", "c"]) == small[form].ids(["a\ufffdb", "c"])


def test_a_million_spaces_are_counted(small: dict[str, Tokenizer]) -> None:
    assert small["tiktoken"].counts([" " * 1_000_000])[0] == len(small["json"].ids([" " * 1_000_000])[0])
    vocab = vocabulary.read(tiktoken_file(), "tiny")
    assert len(vocab.reference(" " * 200_000)) == small["json"].counts([" " * 200_000])[0]


def _count(tokenizer: Tokenizer, text: str) -> int:
    return int(tokenizer.counts([text])[0])


def test_a_tokenizer_pickles_into_a_spawned_process(small: dict[str, Tokenizer]) -> None:
    for tokenizer in small.values():
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.info == tokenizer.info
        assert again.ids(["the dog\n  x"]) == tokenizer.ids(["the dog\n  x"])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_count, (small["tiktoken"], "the dog")) == _count(small["tiktoken"], "the dog")


def test_info_describes_the_tokenizer(small: dict[str, Tokenizer]) -> None:
    info = small["tiktoken"].info
    assert (info.kind, info.name, info.bos_token, info.eos_token) == (
        "tiktoken", "tik", "<|begin_of_text|>", "<|end_of_text|>",
    )  # fmt: skip
    ranks = len(tiktoken_file().splitlines())
    assert (info.vocab_size, info.bos_id, info.eos_id) == (ranks + 256, ranks, ranks + 1)
    assert info.hash == __import__("hashlib").sha256(tiktoken_file()).hexdigest()
    assert set(info.to_dict()) == set(info.__dataclass_fields__) - {"source", "warnings"}


def test_the_configuration_in_the_folder_names_the_end_token(tmp_path: Path) -> None:
    config = json.dumps({"eos_token": {"content": "<|eot_id|>"}, "bos_token": "<nonsense>"})
    path = folder(tmp_path / "chat", tokenizer_model=tiktoken_file(), tokenizer_config_json=config)
    info = load_tokenizer(str(path)).info
    assert info.eos_token == "<|eot_id|>"
    assert info.warnings == (
        "bos_token '<nonsense>' of tokenizer_config.json is not a control token; using '<|begin_of_text|>'",
    )


# ---- tokenizer.json, built or provided


@pytest.mark.parametrize("form", FORMS)
def test_the_built_json_gives_the_reference_ids_in_tokenizers(form: str, small: dict[str, Tokenizer]) -> None:
    encode = vocabulary.hugging_face_encoder(small[form].tokenizer_json())
    assert [encode(text) for text in DIFFICULT_TEXTS] == [reference(form)(text) for text in DIFFICULT_TEXTS]


def test_the_built_json_adds_bos_for_serving_engines(small: dict[str, Tokenizer]) -> None:
    from tokenizers import Tokenizer as HuggingFace

    for tokenizer in small.values():
        loaded = HuggingFace.from_str(tokenizer.tokenizer_json())
        assert loaded.encode("the", add_special_tokens=True).ids == [tokenizer.info.bos_id, *tokenizer.ids(["the"])[0]]


def test_a_json_that_differs_from_its_model_is_used_with_a_warning(tmp_path: Path, small: dict[str, Tokenizer]) -> None:
    document = json.loads(small["sentencepiece"].tokenizer_json())
    document["model"]["merges"].sort()
    path = folder(tmp_path / "both", tokenizer_model=sentencepiece_model(), tokenizer_json=json.dumps(document))
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.info.kind == "json"
    [warning] = tokenizer.info.warnings
    assert warning.startswith("tokenizer.json and tokenizer.model differ: ")
    assert warning.endswith("using the first, as serving engines do")
    text = "The quick brown fox"
    assert tokenizer.ids([text]) == [vocabulary.hugging_face_encoder(json.dumps(document))(text)]
    assert tokenizer.tokenizer_json() == json.dumps(document), "the folder's own goes out as it came"


def test_a_json_that_agrees_with_its_model_gives_no_warning(tmp_path: Path, small: dict[str, Tokenizer]) -> None:
    own = small["sentencepiece"].tokenizer_json()
    path = folder(tmp_path / "both", tokenizer_model=sentencepiece_model(), tokenizer_json=own)
    assert load_tokenizer(str(path)).info.warnings == ()


def test_a_control_token_without_its_flag_is_still_recognised(tmp_path: Path, small: dict[str, Tokenizer]) -> None:
    document = json.loads(small["tiktoken"].tokenizer_json())
    for entry in document["added_tokens"]:
        entry["special"] = False
    tokenizer = load_tokenizer(str(folder(tmp_path / "flags", tokenizer_json=json.dumps(document))))
    assert tokenizer.info.eos_token == "<|end_of_text|>"
    assert tokenizer.control_ids["eos"] not in tokenizer.ids(["<|end_of_text|>"])[0]


def test_user_defined_symbols_are_counted_by_the_reference(tmp_path: Path) -> None:
    model = sentencepiece_model(symbols="<think>,▁<PRE>")
    tokenizer = load_tokenizer(str(folder(tmp_path / "symbols", tokenizer_model=model)))
    processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = ["a<think>b", "plain", " <PRE> x<think>", "<think>"]
    assert tokenizer.info.library == "fastokens"
    assert tokenizer.ids(texts) == [processor.encode(text) for text in texts]


def test_a_model_without_byte_fallback_is_exact(tmp_path: Path) -> None:
    model = sentencepiece_model(byte_fallback=False)
    tokenizer = load_tokenizer(str(folder(tmp_path / "unknown", tokenizer_model=model)))
    processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = ["fox 漢字 fox", "😀😀", "ok"]
    assert tokenizer.ids(texts) == [processor.encode(text) for text in texts]


def test_fastokens_is_not_used_if_it_makes_control_tokens_of_text(tmp_path: Path) -> None:
    model = sentencepiece_model(markup=False)  # without a piece `<`, fastokens 0.3 takes `<s>` whole
    tokenizer = load_tokenizer(str(folder(tmp_path / "sp", tokenizer_model=model)))
    assert tokenizer.info.library == "sentencepiece"
    [warning] = tokenizer.info.warnings
    assert warning.startswith("fastokens is not used: for '<s> </s> <unk> <pad>' it gives [")
    assert warning.endswith("; using sentencepiece, which is slower")
    assert not {0, 1, 2} & set(tokenizer.ids(["<s> </s> <unk>"])[0])
    assert tokenizer.ids(["a\ud800b"]) == tokenizer.ids(["a\ufffdb"])
    assert pickle.loads(pickle.dumps(tokenizer)).ids(["the dog"]) == tokenizer.ids(["the dog"])
    assert vocabulary.hugging_face_encoder(tokenizer.tokenizer_json())("<s> x") == tokenizer.ids(["<s> x"])[0]


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_a_model_that_folds_white_space_is_exact_or_reported(rule: str, tmp_path: Path) -> None:
    model = sentencepiece_model(normalization=rule, folds=True)
    tokenizer = load_tokenizer(str(folder(tmp_path / "folds", tokenizer_model=model)))
    processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer.ids(list(DIFFICULT_TEXTS)) == [processor.encode(text) for text in DIFFICULT_TEXTS]
    try:
        encode = vocabulary.hugging_face_encoder(tokenizer.tokenizer_json())
    except TokenizerError as error:
        assert "no exact tokenizer.json can be built for 'folds'" in str(error)
    else:
        assert [encode(text) for text in DIFFICULT_TEXTS] == [processor.encode(text) for text in DIFFICULT_TEXTS]


# ---- the cache


def test_a_built_json_is_cached_and_a_damaged_cache_is_rebuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(folder(tmp_path / "tik", tokenizer_model=tiktoken_file()))
    built = load_tokenizer(path).tokenizer_json()
    [cached] = (tmp_path / "cache/curate/tokenizers").iterdir()
    cached.write_bytes(cached.read_bytes()[:1000])
    assert load_tokenizer(path).tokenizer_json() == built
    assert cached.read_text().partition("\n")[2] == built
    assert [cached] == list(cached.parent.iterdir()), "nothing is left beside it"


def test_an_unwritable_cache_is_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_tokenizer(str(folder(tmp_path / "tik", tokenizer_model=tiktoken_file()))).info.library == "fastokens"


# ---- the released tokenizers


@pytest.fixture(scope="module")
def llama2(shared: Path) -> Tokenizer:
    return load_tokenizer(str(shared / "tokenizers" / "llama2"))


@pytest.fixture(scope="module")
def llama3() -> Tokenizer:
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("llama-models, which ships LLaMA-3's tokenizer, is not installed")
    return load_tokenizer()


def test_llama3_is_the_default_and_its_package_is_never_imported(llama3: Tokenizer) -> None:
    info = llama3.info
    assert (info.name, info.kind, info.vocab_size, info.bos_id, info.eos_id) == (
        "llama3", "tiktoken", 128_256, 128_000, 128_001,
    )  # fmt: skip
    assert llama3.control_ids["<|eot_id|>"] == 128_009
    assert info.library == "fastokens"
    assert load_tokenizer("llama3") is llama3, "a process loads it once"
    assert not {"llama_models", "models"} & set(sys.modules)


def test_llama2_is_read_from_a_folder_with_only_its_model(llama2: Tokenizer) -> None:
    info = llama2.info
    assert (info.kind, info.vocab_size, info.bos_id, info.eos_id) == ("sentencepiece", 32_000, 1, 2)
    assert info.library == "fastokens"
    assert llama2.ids(["a  b"]) == [[263, 29871, 289]], "where transformers 5 gives [263, 259, 29890]"
    assert len(json.loads(llama2.tokenizer_json())["model"]["merges"]) == 61_249


def _messages(path: Path) -> Iterator[str]:
    for record in json.loads(gzip.decompress(path.read_bytes())):
        turns = (record.get("conversations") or record.get("items") or []) if isinstance(record, dict) else []
        for turn in turns if isinstance(turns, list) else []:
            value = turn.get("value") if isinstance(turn, dict) else None
            if isinstance(value, str):
                yield value


@pytest.fixture(scope="module")
def messages(shared: Path) -> list[str]:
    """Every eighth different message of the real dumps."""
    files = [shared / "data" / name for name in ("sharegpt_dirty.json.gz", "source_markdown.json.gz")]
    texts = dict.fromkeys(text for file in files for text in _messages(file))
    return [text for text in texts if text.isascii() or text.encode("utf-8", "replace").decode() == text][::8]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_the_released_tokenizers_equal_their_references_on_real_messages(
    name: str, messages: list[str], request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    encode = vocabulary.read(Path(tokenizer.info.source).read_bytes(), name).reference
    assert [text for text, ids in zip(messages, tokenizer.ids(messages), strict=True) if ids != encode(text)] == []


@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_repeated_characters_equal_the_reference_at_any_length(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    encode = vocabulary.read(Path(tokenizer.info.source).read_bytes(), name).reference
    texts = [character * count for character in " \n-=a0é漢" for count in range(1, 300, 1)]
    assert tokenizer.ids(texts) == [encode(text) for text in texts]
