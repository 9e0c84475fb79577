"""Damage to a compressed stream costs what is damaged: the rest is read, and what may be altered is named."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import CurateError
from curate.ingest.damaged_records import DamagedIndex, DamagedRecords
from tests.support.damaged_dumps import ALL, CONTAINERS, ROWS, TEXTS, damage, tarred, trusted, zstd
from tests.support.raw_dumps import Dump, good, reads, row


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    return reads(tmp_path)


@pytest.mark.parametrize("name", CONTAINERS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_nothing_altered_is_trusted_and_other_parts_are_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int
) -> None:
    path = damage(name, seed, tmp_path_factory.mktemp("damage"))
    try:
        kept = trusted(path)
    except CurateError:
        kept = []
    assert all(ALL[each["id"]] == each for each in kept)
    assert len({each["id"] for each in kept}) == len(kept)
    if "of one" not in name and path.stat().st_size >= len(CONTAINERS[name][1]) - 512:
        ids = {each["id"] for each in kept}
        most = 4 if "tar" in name else 2  # a frame in which parts end, and one after it, touch three parts or more
        assert sum(not {each["id"] for each in rows} <= ids for rows in ROWS) <= most


@pytest.mark.parametrize("name", CONTAINERS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32), chunk_bytes=st.sampled_from([1000, 10_000, 40_000]))
def test_what_is_trusted_does_not_depend_on_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, chunk_bytes: int
) -> None:
    path = damage(name, seed, tmp_path_factory.mktemp("damage"))
    try:
        kept = trusted(path)
    except CurateError:
        return
    assert trusted(path, chunk_bytes) == kept


MEMBERS = [gzip.compress(text) for text in TEXTS]
FRAMES = [zstd(text) for text in TEXTS]


@pytest.mark.parametrize(("name", "parts"), [("dump.jsonl.gz", MEMBERS), ("dump.jsonl.zst", FRAMES)])
@pytest.mark.parametrize("bad", [0, 3, len(TEXTS) - 1])
@pytest.mark.parametrize("place", ["magic", "middle", "checksum"])
def test_members_after_a_bad_one_are_read(tmp_path: Path, name: str, parts: list[bytes], bad: int, place: str) -> None:
    part = bytearray(parts[bad])
    at = {"magic": 0, "middle": len(part) // 2, "checksum": len(part) - 5 + 4 * name.endswith("zst")}[place]
    part[at] ^= 0xFF
    path = tmp_path / name
    path.write_bytes(b"".join([*parts[:bad], bytes(part), *parts[bad + 1 :]]))
    assert trusted(path) == [each for number, rows in enumerate(ROWS) if number != bad for each in rows]


def test_two_halves_of_records_around_a_gap_never_form_one(dump: Dump) -> None:
    """Without a mark, the cut would leave one valid line: the beginning of one record and the end of another."""
    text = TEXTS[0]
    first, second = text.index(b'"value": "') + 10, text.index(b'"value": "', 2000) + 10
    data = gzip.compress(text[:first]) + b"damage" + gzip.compress(text[second:])
    records, reader = dump(data, "dump.jsonl.gz")
    assert all(ALL[value["id"]] == value for value in good(records) if "conversations" in value)
    assert any("stream is damaged" in warning.text for warning in reader.warnings)


def test_a_whole_record_right_after_a_gap_is_read(dump: Dump) -> None:
    lines = TEXTS[0].splitlines(keepends=True)
    data = gzip.compress(b"".join(lines[:3]) + lines[3][:50]) + b"damage" + gzip.compress(b"".join(lines[4:]))
    records, _ = dump(data, "dump.jsonl.gz")
    assert [value for value in good(records) if "conversations" in value] == ROWS[0][:3] + ROWS[0][4:]


def test_frames_without_a_checksum_lose_only_the_damaged_one(tmp_path: Path) -> None:
    frames = [bytearray(zstd(text, checksum=False)) for text in TEXTS]
    frames[4][len(frames[4]) // 2 :] = b""
    path = tmp_path / "dump.jsonl.zst"
    path.write_bytes(b"".join(frames))
    assert trusted(path) == [each for number, rows in enumerate(ROWS) if number != 4 for each in rows]


def test_false_starts_cost_bounded_time(tmp_path: Path) -> None:
    """A stream that seems to begin at every third byte."""
    path = tmp_path / "dump.jsonl.gz"
    path.write_bytes(MEMBERS[0] + b"\x1f\x8b\x08\0" * 200_000 + MEMBERS[1])
    assert trusted(path)[: len(ROWS[0])] == ROWS[0]


def test_utf_16_goes_on_after_a_gap(dump: Dump) -> None:
    texts = ["\ufeff" + TEXTS[0].decode(), TEXTS[1].decode(), TEXTS[2].decode()]
    members = [gzip.compress(text.encode("utf-16-le")) for text in texts]
    records, _ = dump(members[0] + members[1][:-30] + members[2], "dump.jsonl.gz")
    read = [value for value in good(records) if "conversations" in value]
    assert read[:12] == ROWS[0] and read[-12:] == ROWS[2]


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_a_cut_off_alters_nothing_but_the_end_is_in_doubt(dump: Dump, pack: Callable[[bytes], bytes]) -> None:
    rows = [row(number, random.Random(number).randbytes(300).hex()) for number in range(1000)]
    data = pack(b"".join(json.dumps(each).encode() + b"\n" for each in rows))
    records, reader = dump(data[: -len(data) // 4], "dump.jsonl.x")
    assert good(records) == rows[: len(good(records))] and len(good(records)) > 500
    [doubtful] = reader.damaged_records  # noise at the end of a file looks like this too
    assert doubtful.stop == len(records) and 1 < len(records) - doubtful.first < 10


@pytest.mark.parametrize("chunk_bytes", [700, 4 << 20])
def test_an_end_of_noise_is_not_trusted(tmp_path: Path, chunk_bytes: int) -> None:
    """It looks like a file that is cut off: no checksum follows it."""
    data = gzip.compress(b"".join(TEXTS))
    path = tmp_path / "dump.jsonl.gz"
    for seed in range(40):
        draw = random.Random(seed)
        noise = draw.randbytes(draw.choice((16, 60, 120, 400)))
        path.write_bytes(data[: -len(noise)] + noise)
        kept = trusted(path, chunk_bytes)
        assert all(ALL.get(each["id"]) == each for each in kept), seed


def test_members_long_before_the_noise_are_trusted(tmp_path: Path) -> None:
    rows = [row(1000 + at, random.Random(at).randbytes(250).hex()) for at in range(200)]
    data = gzip.compress(tarred([*TEXTS, b"".join(json.dumps(each).encode() + b"\n" for each in rows)]))
    path = tmp_path / "dump.tar.gz"
    path.write_bytes(data[:-60] + random.Random(1).randbytes(60))
    kept = trusted(path)
    assert kept == [*ALL.values(), *rows][: len(kept)] and len(kept) > len(ALL)


TABLE = {f"q{at}": [f"q{at}", *(random.Random(at).randbytes(150).hex() for _ in "pr")] for at in range(250)}


@pytest.mark.parametrize("noise", [0, 60, 1500])
def test_the_end_of_a_cut_off_table_is_in_doubt(dump: Dump, noise: int) -> None:
    lines = ["id,prompt,response", *map(",".join, TABLE.values())]
    data = gzip.compress("\n".join(lines).encode())
    for seed in range(4):
        end = random.Random(seed).randbytes(noise)
        records, reader = dump(data[: -max(noise, 3000 * (not noise))] + end, "dump.csv.gz")
        [doubtful] = reader.damaged_records
        assert doubtful.stop == len(records) and (noise or doubtful.first >= 10)
        kept = [record.value for record in records[: doubtful.first]]
        assert all(list(value.values()) == TABLE[value["id"]] for value in kept)


def test_an_end_of_noise_that_begins_before_the_last_member_of_a_tar_is_not_trusted(tmp_path: Path) -> None:
    data = CONTAINERS["tar in gzip of one member"][1]
    path = tmp_path / "dump.tar.gz"
    for seed in (*range(4), 29):  # without the rule, 1 and 29 keep an altered record
        draw = random.Random(seed)
        noise = draw.randbytes(draw.choice((16, 60, 120, 400, 1500, 4000)))
        path.write_bytes(data[: -len(noise)] + noise)
        assert all(ALL.get(each["id"]) == each for each in trusted(path)), seed


def test_a_table_that_is_cut_off_alters_nothing_but_the_end_is_in_doubt(dump: Dump) -> None:
    texts = [random.Random(number).randbytes(150).hex() for number in range(800)]
    rows = "".join(f"q{number},{text}\n" for number, text in enumerate(texts))
    data = gzip.compress(f"prompt,response\n{rows}".encode())
    records, reader = dump(data[: -len(data) // 4], "dump.csv.gz")
    assert [each["response"] for each in good(records)[:500]] == texts[:500]
    [doubtful] = reader.damaged_records
    assert doubtful.stop == len(records) and 1 < len(records) - doubtful.first < 20
    assert "cut off" in doubtful.reason


def test_turns_of_a_table_that_is_cut_off_are_all_in_doubt(dump: Dump) -> None:
    """They are put together in any order, so that a turn of any chat may be missing."""
    turns = "".join(f"c{n // 2},{'assistant' if n % 2 else 'user'},{random.Random(n).random()}\n" for n in range(2000))
    data = gzip.compress(f"conversation_id,role,content\n{turns}".encode())
    records, reader = dump(data[: -len(data) // 4], "dump.csv.gz")
    assert [(each.first, each.stop) for each in reader.damaged_records] == [(0, len(records))]


def test_parts_in_doubt_may_overlap() -> None:
    ranges = [DamagedRecords("a", 2, 10, "x"), DamagedRecords("a", 3, 5, "y"), DamagedRecords("b", 1, 2, "z")]
    index = DamagedIndex(ranges)
    assert [at for at in range(12) if index.problem("a", at)] == list(range(2, 10))
    assert [at for at in range(4) if index.problem("b", at)] == [1]
