"""Records of a stream that failed its checksum are rejected as `damaged_stream`, or kept and flagged."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.dataset import curated_set
from tests.support import ROOT
from tests.support.raw_dumps import row

RULE = "damaged_stream"
PARTS = [[row(10 * part + number, f"question {part}-{number}") for number in range(10)] for part in range(3)]
KEEP = 'base = "vicuna"\n[input]\ndamaged_streams = "keep"\n'


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in rows)


def altered(part: int) -> bytes:
    """Return a gzip member whose text was altered after its checksum was taken."""
    text = lines(PARTS[part])
    member = gzip.compress(text, compresslevel=0, mtime=0)
    return member.replace(b"question 1-4", b"question 1-X")


MEMBERS = [gzip.compress(lines(PARTS[0])), altered(1), gzip.compress(lines(PARTS[2]))]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump.jsonl.gz"
    path.write_bytes(b"".join(MEMBERS))
    return path


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [each["id"] for each in rows]


def table(folder: Path, name: str = curated_set.CONVERSATIONS) -> pl.DataFrame:
    return pl.read_parquet(folder / name)


def test_records_of_the_damaged_member_are_rejected_with_their_bytes(tmp_path: Path, dump: Path) -> None:
    result = curate.clean(dump, tmp_path / "set", workers=1)
    counts = result.manifest.counts
    assert table(result.output)["id"].to_list() == ids(PARTS[0] + PARTS[2])
    rejected = table(result.output, curated_set.REJECTED).filter(rule=RULE)
    assert rejected["source_index"].to_list() == list(range(10, 20))
    assert rejected["record"].to_list() == [
        json.dumps(each).encode().replace(b"question 1-4", b"question 1-X") for each in PARTS[1]
    ]
    assert "incorrect data check" in rejected["reason"][0]
    assert (counts.rules[RULE].first, counts.rules[RULE].alone) == (10, 10)
    assert counts.read == counts.kept + counts.rejected == 30
    assert any("dump.jsonl.gz: the gzip stream is damaged" in warning for warning in result.warnings)


def test_a_setting_keeps_and_flags_them(tmp_path: Path, dump: Path) -> None:
    recipe = tmp_path / "keep.toml"
    recipe.write_text(KEEP)
    result = curate.clean(dump, tmp_path / "set", recipe=recipe, workers=1)
    kept = table(result.output)
    assert kept.height == 30
    flagged = kept.filter(pl.col("edit_names").list.contains(RULE))
    assert flagged["source_index"].to_list() == list(range(10, 20))
    assert {each["rule"] for each in flagged["edits"][0]} == {RULE}
    assert result.manifest.counts.edits[RULE] == 10
    assert RULE not in result.manifest.counts.rules


@pytest.mark.parametrize("trailer", [slice(-8, -4), slice(-4, None), slice(-8, None)], ids=["crc", "size", "both"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_wrong_trailer_loses_nothing_not_even_the_records_across_members(
    tmp_path: Path, trailer: slice, bad: int
) -> None:
    rows = [each for part in PARTS for each in part]
    text = lines(rows)
    cuts = [0, text.index(b"question 0-9"), text.index(b"question 1-8"), len(text)]  # inside of records 9 and 18
    members = [bytearray(gzip.compress(text[start:stop])) for start, stop in pairwise(cuts)]
    members[bad][trailer] = bytes(byte ^ 0x55 for byte in members[bad][trailer])
    path, recipe = tmp_path / "dump.jsonl.gz", tmp_path / "keep.toml"
    path.write_bytes(b"".join(members))
    recipe.write_text(KEEP)
    doubtful = [range(10), range(9, 19), range(18, 30)][bad]
    rejected = curate.clean(path, tmp_path / "set", workers=1)
    assert table(rejected.output)["id"].to_list() == [each["id"] for at, each in enumerate(rows) if at not in doubtful]
    assert rejected.manifest.counts.rules[RULE].first == rejected.manifest.counts.rejected == len(doubtful)
    assert not any("lost" in warning or "cannot be unpacked" in warning for warning in rejected.warnings)
    kept = table(curate.clean(path, tmp_path / "kept", recipe=recipe, workers=1).output)
    assert kept["id"].to_list() == ids(rows)
    flagged = kept.filter(pl.col("edit_names").list.contains(RULE))
    assert flagged["source_index"].to_list() == list(doubtful)


def test_a_wrong_trailer_before_other_damage_leaves_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl.gz"
    path.write_bytes(MEMBERS[1] + b"damage" + MEMBERS[2])
    result = curate.clean(path, tmp_path / "set", workers=1)
    assert table(result.output)["id"].to_list() == ids(PARTS[2])
    assert set(result.manifest.counts.rules) == {RULE, "unreadable"}


def test_a_record_in_doubt_is_nobodys_twin(tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl.gz"
    path.write_bytes(altered(1) + gzip.compress(lines(PARTS[1])))
    result = curate.clean(path, tmp_path / "set", workers=1)
    kept = table(result.output)
    assert kept["id"].to_list() == ids(PARTS[1])
    assert kept["source_index"].min() == 10
    assert set(result.manifest.counts.rules) == {RULE, "exact_duplicates"}
    assert result.manifest.counts.rules["exact_duplicates"].first == 0


def test_a_limit_before_the_damage_rejects_nothing_and_one_inside_it_what_was_read(tmp_path: Path, dump: Path) -> None:
    before = curate.clean(dump, tmp_path / "a", workers=1, limit=10)
    inside = curate.clean(dump, tmp_path / "b", workers=1, limit=14)
    assert (before.manifest.counts.kept, before.manifest.counts.rejected) == (10, 0)
    assert (inside.manifest.counts.kept, inside.manifest.counts.rules[RULE].alone) == (10, 4)


def test_standard_input_is_checked_too(tmp_path: Path, dump: Path) -> None:
    command = [sys.executable, "-m", "curate", "clean", "-", "-o", str(tmp_path / "set"), "-q"]
    with dump.open("rb") as file:
        subprocess.run(command, stdin=file, check=True, capture_output=True, cwd=ROOT)
    assert table(tmp_path / "set")["id"].to_list() == ids(PARTS[0] + PARTS[2])


def test_the_dump_itself_is_measured_and_converted_without_them(tmp_path: Path, dump: Path) -> None:
    flow = curate.stats(dump).flow
    assert (RULE, 10) in [(step.rule, step.first) for step in flow.steps]
    assert flow.kept == 20
    result = curate.convert(dump, tmp_path / "out.jsonl", to="sharegpt")
    assert result.left_out[RULE] == 10
    assert result.written == 20


@pytest.mark.parametrize("query", [{"sample": 100}, {"where": "turns > 0"}, {"shards": 2}], ids=str)
def test_a_conversion_that_finds_them_at_the_end_starts_again_without_them(
    tmp_path: Path, dump: Path, query: dict[str, Any]
) -> None:
    result = curate.convert(dump, tmp_path / "out.jsonl", to="sharegpt", **query)
    written = [json.loads(line)["id"] for file in result.files for line in file.read_bytes().splitlines()]
    assert sorted(written) == sorted(ids(PARTS[0] + PARTS[2]))
    assert (result.read, dict(result.left_out)) == (30, {RULE: 10})
    assert sum(RULE in line for line in Path(f"{tmp_path}/out.jsonl.left-out.jsonl").read_text().splitlines()) == 10


def test_the_warning_estimates_the_lost_records(tmp_path: Path) -> None:
    members = [gzip.compress(lines(PARTS[0]), mtime=0) for _ in range(9)]
    broken = bytearray(b"".join(members))
    start = 4 * len(members[0])
    broken[start : start + 12] = b"\xff" * 12
    path = tmp_path / "dump.jsonl.gz"
    path.write_bytes(bytes(broken))
    result = curate.clean(path, tmp_path / "set", workers=1)
    assert any("bytes cannot be unpacked, about 10 records" in warning for warning in result.warnings)
    path.write_bytes(b"".join(members)[:-20])
    result = curate.clean(path, tmp_path / "set", workers=1)
    assert any("the rest is lost, an unknown number of records" in warning for warning in result.warnings)


@pytest.mark.slow
def test_many_workers_decide_as_one(tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl.gz"
    rows = [row(number, f"{number} " * 200) for number in range(20_000)]
    members = [bytearray(gzip.compress(lines(rows[at : at + 100]))) for at in range(0, len(rows), 100)]
    for number in range(5, len(members), 20):
        members[number][-6] ^= 1  # the checksum
    path.write_bytes(b"".join(members))
    one = curate.clean(path, tmp_path / "one", workers=1)
    two = curate.clean(path, tmp_path / "two", workers=2)
    assert one.manifest.counts.rules[RULE].first == 1_000
    for name in (curated_set.CONVERSATIONS, curated_set.REJECTED, curated_set.ORIGINALS):
        assert (one.output / name).read_bytes() == (two.output / name).read_bytes()
