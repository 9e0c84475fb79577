"""Damage tokenizer files of three formats: an error of one line, or a tokenizer that works."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from curate.errors import CurateError
from curate.tokenization.tokenizer import load_tokenizer
from tests.fuzz.effort import SEED, rounds, seeds
from tests.support.damaged_dumps import corrupt
from tests.support.mutations import mutations
from tests.support.tiny_tokenizers import folder, sentencepiece_model, tiktoken_file

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache_folder")]

TEXTS = ["Hello world", "a  b\n", "세계 \U0001f642", "</s>"]


def attempt(path: Path) -> bool:
    """Load and use a tokenizer; return whether that worked. Nothing but an error of curate's, in one line, passes."""
    try:
        tokenizer = load_tokenizer(str(path))
        tokenizer.decode(tokenizer.ids(TEXTS)[0])
        tokenizer.encode_continuation(TEXTS)
        tokenizer.tokenizer_json()
    except CurateError as error:
        assert "\n" not in str(error)
        return False
    assert tokenizer.vocabulary_hash
    assert tokenizer.byte_lengths is None or len(tokenizer.byte_lengths[0])
    return True


@pytest.mark.parametrize("data", [sentencepiece_model(), tiktoken_file()], ids=["sentencepiece", "tiktoken"])
def test_a_damaged_tokenizer_model_is_one_line_or_works(tmp_path: Path, data: bytes) -> None:
    for seed in seeds(15):
        damaged = corrupt(data, seed) if seed % 2 else bytes(flipped(data, seed))
        attempt(folder(tmp_path / str(seed), tokenizer_model=damaged))


def flipped(data: bytes, seed: int) -> bytearray:
    draw, changed = random.Random(seed), bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return changed


@pytest.mark.parametrize("data", [sentencepiece_model(), tiktoken_file()], ids=["sentencepiece", "tiktoken"])
def test_a_changed_tokenizer_json_is_one_line_or_works(tmp_path: Path, data: bytes) -> None:
    whole = load_tokenizer(str(folder(tmp_path / "whole", tokenizer_model=data)), bulk=False)
    document = json.loads(whole.tokenizer_json())
    parts = [key for key in document if key != "model"]
    for number, values in enumerate(mutations({key: document[key] for key in parts}, rounds(12), SEED)):
        attempt(folder(tmp_path / f"p{number}", tokenizer_json=json.dumps({**values, "model": document["model"]})))
    for number, values in enumerate(mutations(document["model"], rounds(5), SEED)):
        attempt(folder(tmp_path / f"m{number}", tokenizer_json=json.dumps({**document, "model": values})))
