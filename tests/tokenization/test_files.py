"""Locating a tokenizer on disk, in an installed package or on the Hub; one clear line if there is none."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.errors import TokenizerError
from curate.tokenization import hub as hub_files
from curate.tokenization import vocabulary
from curate.tokenization.tokenizer import load_tokenizer
from tests.support import hubs
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

FILES = ("tokenizer.json", "tokenizer.model")


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use a cache folder of the tests' own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "the cache"))


UNREADABLE = [
    ("empty.model", b"", "is not a vocabulary: neither a SentencePiece model, nor tiktoken ranks"),
    ("noise.model", b"\x00\xff\x13noise", "is not a vocabulary"),
    ("lfs.model", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a Git LFS pointer.*git lfs pull"),
    ("half.model", b"IQ== 0\nIg= x\n", "begins like a tiktoken file, but not every line is `token rank`"),
    ("gap.model", b"IQ== 0\nIg== 7\n", "has 2 tokens but ranks up to 7: it is damaged"),
    ("other.json", b'{"a": 1}', "is JSON, but not a tokenizer.json"),
    ("broken.json", b'{"a": ', "is JSON, but not a tokenizer.json"),
    ("odd.json", b'{"model": {"type": "Nonsense", "vocab": {}}, "added_tokens": []}', "cannot be read by|no end token"),
]


@pytest.mark.parametrize(("name", "data", "says"), UNREADABLE, ids=[row[0] for row in UNREADABLE])
def test_a_file_that_is_not_a_tokenizer_gets_one_clear_line(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=says) as caught:
        load_tokenizer(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert repr(name) in str(caught.value)


def test_a_wrong_path_gets_the_nearest_name_suggested(tmp_path: Path) -> None:
    (tmp_path / "llama2").mkdir()
    with pytest.raises(TokenizerError, match=r"no tokenizer at '.*lama2'; did you mean 'llama2'\?"):
        load_tokenizer(str(tmp_path / "lama2"))
    with pytest.raises(TokenizerError, match=r"give 'llama3', a folder or file with a tokenizer, or a Hub name"):
        load_tokenizer(str(tmp_path / "absent" / "x" / "y"))
    with pytest.raises(TokenizerError, match=r"has neither a tokenizer.json nor a tokenizer.model"):
        load_tokenizer(str(tmp_path))


def test_a_model_that_is_not_bpe_is_refused(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model: Any = pb2.ModelProto.FromString(sentencepiece_model())  # type: ignore[attr-defined]
    model.trainer_spec.model_type = 1
    with pytest.raises(TokenizerError, match="is a SentencePiece model, but not of type BPE"):
        vocabulary.read(model.SerializeToString(), "uni")


def test_without_llama_models_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TokenizerError, match=r"type: pip install -e .*\[llama3\]'?, or give --tokenizer FOLDER"):
        load_tokenizer(None)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    open_one = folder(tmp_path / "open", tokenizer_model=tiktoken_file())
    (open_one / "weights.safetensors").write_bytes(b"weights")
    with hubs.serving({"org/open": open_one, "org/gated": hubs.GATED}) as endpoint:
        yield endpoint


def test_only_the_tokenizer_files_of_an_open_repository_are_downloaded(hub: str, tmp_path: Path) -> None:
    got = hub_files.download("org/open", FILES, endpoint=hub, cache=tmp_path / "hub")
    assert [file.name for file in got.iterdir()] == ["tokenizer.model"]
    assert load_tokenizer(str(got)).info.kind == "tiktoken"


def test_the_error_for_a_gated_repository_says_how_to_get_access(hub: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        hub_files.download("org/gated", FILES, endpoint=hub, cache=tmp_path / "hub")
    assert str(caught.value) == (
        f"'org/gated' is gated: ask for access at {hub}/org/gated, then log in with: hf auth login"
    )


def test_a_missing_repository_gets_one_clear_line(hub: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no folder 'org/absent' here, and no such repository at"):
        hub_files.download("org/absent", FILES, endpoint=hub, cache=tmp_path / "hub")


def test_without_a_network_the_error_suggests_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no folder 'org/open' here, and the Hub cannot be reached; download"):
        hub_files.download("org/open", FILES, endpoint="http://127.0.0.1:1", cache=tmp_path / "hub")


def test_a_file_that_aborts_the_tokenizers_library_gets_one_clear_line(tmp_path: Path) -> None:
    source = load_tokenizer(str(folder(tmp_path / "whole", tokenizer_model=sentencepiece_model())), bulk=False)
    document = json.loads(source.tokenizer_json())
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    aborts = folder(tmp_path / "aborts", tokenizer_json=json.dumps({**document, "normalizer": charsmap}))
    with pytest.raises(TokenizerError, match="which ends with SIGABRT: it is damaged"):
        load_tokenizer(str(aborts))
    first = {**document["added_tokens"][0], "id": 3_000_000_000, "content": "<x>"}
    huge = folder(tmp_path / "huge", tokenizer_json=json.dumps({**document, "added_tokens": [first]}))
    with pytest.raises(TokenizerError, match=r"Expected `int` <= 9999999 - at `\$.added_tokens\[0\].id`"):
        load_tokenizer(str(huge))
    grows = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 200}
    growing = folder(tmp_path / "growing", tokenizer_json=json.dumps({**document, "normalizer": grows}))
    with pytest.raises(TokenizerError, match="more than 20 tokens of each byte"):
        load_tokenizer(str(growing))
