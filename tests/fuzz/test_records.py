"""Change records of every format, by value and by byte: no run fails, and every sound record beside them is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from tests.fuzz.effort import seeds
from tests.schemas.formats.examples import EXAMPLES
from tests.support.damaged_dumps import corrupt
from tests.support.mutations import mutations
from tests.support.records import RICH

pytestmark = pytest.mark.slow

RECORDS = [record for source in (EXAMPLES, RICH) for records in source.values() for record in records]
CHANGED, BETWEEN = 2_000, 10  # changed records of a dump, and how many of them stand between two sound ones
WORDS = [f"word{number}" for number in range(2_000)]


def sound(number: int) -> bytes:
    """Return a record like no other."""
    prompt, answer = (" ".join(random.Random(f"{number} {part}").choices(WORDS, k=30)) for part in "pa")
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": f"{answer}."}]
    return json.dumps({"id": f"sound-{number}", "conversations": turns}).encode()


def changed_values(seed: int) -> Iterator[bytes]:
    for number in range(CHANGED):
        key = seed * CHANGED + number
        (record,) = mutations(RECORDS[key % len(RECORDS)], 1, seed=key)
        yield json.dumps(record).encode()


def changed_bytes(seed: int) -> Iterator[bytes]:
    for number in range(CHANGED):
        key = seed * CHANGED + number
        yield corrupt(json.dumps(RECORDS[key % len(RECORDS)]).encode(), key).replace(b"\n", b" ")


def dump(changed: Iterator[bytes], separator: bytes) -> tuple[bytes, set[str]]:
    """Return changed records with sound ones between them, and the ids of those."""
    pieces: list[bytes] = []
    ids = set()
    for number, piece in enumerate(changed):
        if number % BETWEEN == 0:
            pieces.append(sound(number))
            ids.add(f"sound-{number}")
        pieces.append(piece)
    return separator.join(pieces), ids


def kept(folder: Path) -> set[Any]:
    return set(pl.read_parquet(folder / "conversations.parquet", columns=["source_id"])["source_id"])


@pytest.mark.parametrize("change", [changed_values, changed_bytes])
@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_dump_of_changed_records_costs_no_sound_one(
    tmp_path: Path, tiny_tokenizer: str, change: Callable[[int], Iterator[bytes]], form: str
) -> None:
    source = tmp_path / "dump.json"
    for seed in seeds(1):
        text, ids = dump(change(seed), b"\n" if form == "lines" else b",\n")
        source.write_bytes(text + b"\n" if form == "lines" else b"[" + text + b"]")
        result = curate.clean(source, tmp_path / "set", tokenizer=tiny_tokenizer, workers=1, force=True)
        assert ids - kept(tmp_path / "set") == set(), seed
        if change is changed_values:
            assert result.manifest.counts.read == CHANGED + len(ids), seed
