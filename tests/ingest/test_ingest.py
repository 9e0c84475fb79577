"""Bytes in, records out: each complete record is read once, and a bad record affects only itself."""

from __future__ import annotations

import json
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from curate.errors import CurateError
from curate.ingest.decode import Chunk, decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from tests.support.raw_dumps import ARRAY, FORMS, LINES, ROWS, VALUES, Dump, good, read, reads, row, rules, values


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    """Write bytes to a file and read them as a dump."""
    return reads(tmp_path)


# ── the forms a dump comes in ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_bytes", [64, 300, 1000, 1 << 20])
def test_every_form_gives_the_same_records_whatever_the_chunk_size(dump: Dump, form: str, chunk_bytes: int) -> None:
    records, reader = dump(FORMS[form], chunk_bytes=chunk_bytes)
    assert values(records) == ROWS
    assert [record.index for record in records] == list(range(13))
    assert all(json.loads(record.raw) == record.value and record.raw in FORMS[form] for record in records)
    assert reader.warnings == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(LINES.replace(b"\n", b"\r\n"), ROWS, id="CRLF"),
        pytest.param(LINES.replace(b"\n", b"\n\n  \n"), ROWS, id="blank lines"),
        pytest.param(LINES.replace(b"\n", b",\n"), ROWS, id="lines with commas"),
        pytest.param(LINES.replace(b"\n", b""), ROWS, id="no line ends at all"),
        pytest.param(ARRAY + b"\n" + ARRAY, ROWS + ROWS, id="two arrays"),
        pytest.param(ARRAY + LINES + VALUES, ROWS * 3, id="an array, lines and pretty-printed"),
        pytest.param(b"\xef\xbb\xbf" + ARRAY, ROWS, id="byte-order mark"),
        pytest.param(b"\xef\xbb\xbf" + LINES + b"\xef\xbb\xbf" + LINES, ROWS * 2, id="joined files with marks"),
        pytest.param(ARRAY.decode().encode("utf-16"), ROWS, id="UTF-16"),
        pytest.param(b"\xfe\xff" + LINES.decode().encode("utf-16-be"), ROWS, id="UTF-16 big-endian"),
        pytest.param(ARRAY.decode().encode("utf-32"), ROWS, id="UTF-32"),
        pytest.param(json.dumps(ROWS[0]).encode(), ROWS[:1], id="one object"),
        pytest.param(ARRAY[:-1] + b",]", ROWS, id="a comma too many"),
        pytest.param(json.dumps({"train": ROWS[:3], "test": ROWS[3:]}).encode(), ROWS, id="two arrays in an object"),
        pytest.param(b" \n\t" * 3000 + ARRAY + b" \n" * 3000, ROWS, id="white space around"),
        pytest.param(json.dumps([[1, 2], [3], "text", 4]).encode(), [[1, 2], [3], "text", 4], id="no objects"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [64, 1 << 20])
def test_equivalent_files_give_the_same_records(dump: Dump, data: bytes, expected: list[Any], chunk_bytes: int) -> None:
    records, reader = dump(data, chunk_bytes=chunk_bytes)
    assert values(records) == expected
    assert reader.warnings == []


NESTED = [
    {"id": n, "conversations": [{"id": m, "from": "human", "value": "x" * m} for m in range(n)]} for n in range(30)
]
VARIED = [
    dict(random.Random(n).sample(sorted((row(n) | {"title": "t", "x": [{"id": 1}]}).items()), 4)) for n in range(40)
]


@pytest.mark.parametrize(
    "rows", [pytest.param(NESTED, id="nested same key"), pytest.param(VARIED, id="key order varies")]
)
@pytest.mark.parametrize("chunk_bytes", [64, 500, 4000, 1 << 20])
def test_records_with_confusing_contents_are_separated(dump: Dump, rows: list[Any], chunk_bytes: int) -> None:
    for data in (json.dumps(rows).encode(), json.dumps(rows, indent=1).encode()):
        assert values(dump(data, chunk_bytes=chunk_bytes)[0]) == rows


def test_a_record_larger_than_a_chunk_makes_a_larger_chunk(dump: Dump) -> None:
    rows = [row(0), row(1, "long " * 40_000), row(2)]
    assert values(dump(json.dumps(rows).encode(), chunk_bytes=1000)[0]) == rows


@pytest.mark.parametrize("chunk_bytes", [1000, 1 << 20])
def test_a_record_over_the_size_limit_is_the_only_one_rejected(dump: Dump, chunk_bytes: int) -> None:
    rows = [*ROWS, row(50, "long " * 40_000), *ROWS]
    records, reader = dump(json.dumps(rows).encode(), max_record_bytes=100_000, chunk_bytes=chunk_bytes)
    assert good(records) == ROWS + ROWS
    assert set(rules(records)) == {"unreadable"}
    assert "max_record_bytes" in reader.warnings[0].text


# ── bad records, one at a time ────────────────────────────────────────────────────────────────────────────────────


def test_each_malformed_file_keeps_its_twelve_good_rows(shared: Path) -> None:
    files = sorted((shared / "data" / "malformed").glob("*.json"))
    assert len(files) == 20
    for file in files:
        records, reader = read(file)
        rows = json.loads(file.read_text())
        assert values(records) == rows, file.name
        assert len(records) == 13
        assert reader.warnings == []
        assert sum(record.surrogates for record in records) == ("surrogate" in file.name)


def between(bad: bytes) -> bytes:
    """Return the array with `bad` inserted between rows 5 and 6."""
    cut = ARRAY.index(b'{"id": "r6"')
    return ARRAY[:cut] + bad + b", " + ARRAY[cut:]


DEEP = b'{"id": "deep", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        pytest.param(DEEP, "too_deep", id="100,000 deep"),
        pytest.param(b'{"id": "x", "a": ' * 300 + b"1" + b"}" * 300, "too_deep", id="300 deep"),
        pytest.param(b'{"id": "x", "v": "caf\xe9"}', "encoding", id="raw Latin-1"),
        pytest.param(b'{"id": "x", "v": "\xed\xa0\x80"}', "encoding", id="a surrogate as bytes"),
        pytest.param(b'{"id": "x", "v": 1, "v": 2}', "duplicate_keys", id="a key twice"),
        pytest.param(b'{"id": "x", "c": [{"value": "a", "value": "b"}]}', "duplicate_keys", id="a key twice inside"),
        pytest.param(b'{"id": "x", "v": "a\x00b"}', "unreadable", id="a zero byte"),
        pytest.param(b'{"id": "x", "v": ' + b"9" * 5000 + b"}", "unreadable", id="a number of 5,000 digits"),
        pytest.param(b'{"id": "x", "v" "y"}', "unreadable", id="lost colon"),
        pytest.param(b'{"id": "x, "v": "y"}', "unreadable", id="lost quote"),
        pytest.param(b'{"id": "x", "v": ["y"}', "unreadable", id="lost bracket"),
        pytest.param(b'{"id": "x", "v": {"y": 1}', "unreadable", id="lost brace"),
        pytest.param(b'{"id": "x", "v": ["y", {"z": "', "unreadable", id="cut off in the middle"),
        pytest.param(b"undefined", "unreadable", id="a stray word"),
        pytest.param(b"\x00" * 500, "unreadable", id="zeroed"),
        pytest.param(b"\x8f\xff\x00{]" * 100, "unreadable", id="garbage"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [64, 1 << 20])
def test_a_bad_record_is_the_only_one_rejected(dump: Dump, bad: bytes, rule: str, chunk_bytes: int) -> None:
    records, _ = dump(between(bad), chunk_bytes=chunk_bytes)
    assert good(records) == ROWS
    assert rules(records) == [rule]
    assert records[6].raw == bad
    assert [record.index for record in records] == list(range(14))


@pytest.mark.parametrize(
    ("bad", "value", "note"),
    [
        pytest.param(b'{"id": NaN, "b": 1}', {"id": None, "b": 1}, "NaN read as null", id="NaN"),
        pytest.param(b'{"id": -Infinity}', {"id": None}, "-Infinity read as null", id="Infinity"),
        pytest.param(b'{"id": 1e999}', {"id": None}, "1e999 read as null", id="a number past any float"),
        pytest.param(b'{"id": "a\tb\nc"}', {"id": "a\tb\nc"}, "", id="raw control characters"),
        pytest.param(b'{"id": "\\ud800"}', {"id": "\ud800"}, "", id="lone surrogate"),
        pytest.param(b'{"id": "\\ud83d\\ude00"}', {"id": "\U0001f600"}, "", id="a pair of surrogates"),
        pytest.param(b'{"id": "\\\\ud800 \\u0022:"}', {"id": '\\ud800 ":'}, "", id="what only looks like one"),
        pytest.param(b'{"id" : "x", "a\\\\":1}', {"id": "x", "a\\": 1}, "", id="keys spelt oddly"),
        pytest.param(b'{"id": 123456789012345678901}', {"id": 123456789012345678901}, "", id="a long number"),
        pytest.param(b"null", None, "", id="null"),
        pytest.param(b'"a stray string"', "a stray string", "", id="string"),
        pytest.param(b"[]", [], "", id="list"),
        pytest.param(b"{}", {}, "", id="no keys"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [64, 1 << 20])
def test_odd_records_with_a_clear_meaning_are_read(
    dump: Dump, bad: bytes, value: Any, note: str, chunk_bytes: int
) -> None:
    records, reader = dump(between(bad), chunk_bytes=chunk_bytes)
    assert values(records) == [*ROWS[:6], value, *ROWS[6:]]
    assert (records[6].raw, records[6].problem) == (bad, None)
    assert records[6].repairs == ((("lenient_json", note),) if note else ())
    assert records[6].surrogates == (value == {"id": "\ud800"})
    assert reader.warnings == []


def test_a_reason_gives_the_position_and_the_bytes(dump: Dump) -> None:
    data = between(b'{"id": "x", "v": "caf\xe9 "}')
    problem = dump(data)[0][6].problem
    assert problem is not None
    assert problem.reason.startswith(f"bytes e9 at byte {data.index(0xE9)} are not UTF-8")
    assert "caf" in problem.evidence


def test_damage_is_reported_with_its_position_and_size(dump: Dump) -> None:
    bad = b'{"id": "x, "v": "y"}'
    _, reader = dump(between(bad))
    (damage,) = reader.warnings
    at = ARRAY.index(b'{"id": "r6"')
    assert (damage.source_file, damage.offset, damage.bytes) == ("dump.json", at, len(bad))
    assert f"takes {len(bad)} bytes from byte {at}" in damage.text


@pytest.mark.parametrize("form", ["array", "lines", "pretty", "values"])
def test_damaged_bytes_lose_only_the_records_they_touch(dump: Dump, form: str) -> None:
    data = FORMS[form]
    at, after = data.index(b"hello 4"), data.index(b"hello 6")
    zeroed = data[:at] + bytes(after - at) + data[after:]
    for chunk_bytes in (64, 1 << 20):
        records, reader = dump(zeroed, chunk_bytes=chunk_bytes)
        assert good(records) == ROWS[:4] + ROWS[7:]
        assert rules(records) == ["unreadable"] * len(reader.warnings)
        assert records[4].raw.startswith(b"{\n" if b"\n  " in data else b'{"id"')


def test_a_truncated_line_loses_only_that_line(dump: Dump) -> None:
    lines = LINES.split(b"\n")
    lines[3] = lines[3][:40]
    lines[7] = b"<<<<<<< HEAD"
    records, _ = dump(b"\n".join(lines))
    assert good(records) == ROWS[:3] + ROWS[4:7] + ROWS[8:]
    assert [record.index for record in records if record.problem] == [3, 7]


def test_a_missing_comma_loses_nothing(dump: Dump) -> None:
    assert values(dump(ARRAY.replace(b"}]}, ", b"}]} ", 1))[0]) == ROWS


def test_a_missing_beginning_loses_only_the_first_record(dump: Dump) -> None:
    records, _ = dump(ARRAY[60:])
    assert good(records) == ROWS[1:]


@pytest.mark.parametrize("form", ["array", "lines", "pretty", "values", "wrapped"])
def test_a_truncated_file_keeps_its_complete_records(dump: Dump, form: str) -> None:
    data = FORMS[form]
    ends = [0]
    for each in dump(data)[0]:
        ends.append(data.index(each.raw, ends[-1]) + len(each.raw))
    for cut in [*range(ends[1], ends[2] + 3), *range(ends[2], len(data), 97)]:
        records, reader = dump(data[:cut], chunk_bytes=512)
        complete = sum(end <= cut for end in ends) - 1
        assert good(records) == ROWS[:complete], cut
        assert len(records) - complete == len(rules(records)) <= 1
        if form in ("array", "pretty"):
            assert reader.warnings


def mutated(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    mutation = rng.randrange(4)
    if mutation == 0:
        return data[:at] + data[at + 1 :]
    if mutation == 1:
        return data[:at] + bytes([rng.choice(b'{}[]",:\\ \n\x00a9')]) + data[at:]
    end = min(len(data), at + rng.randrange(1, 120))
    return data[:at] + (b"" if mutation == 2 else rng.randbytes(end - at)) + data[end:]


@pytest.mark.parametrize("form", ["array", "lines", "pretty"])
def test_one_damaged_spot_loses_few_records_at_any_chunk_size(dump: Dump, form: str) -> None:
    rng = random.Random(form)
    for _ in range(60):
        data = mutated(FORMS[form], rng)
        records_by_size = {size: dump(data, chunk_bytes=size)[0] for size in (64, 1000, 1 << 20)}
        raws = [[record.raw for record in each] for each in records_by_size.values()]
        assert raws[0] == raws[1] == raws[2], data
        assert sum(each in good(records_by_size[64]) for each in ROWS) >= 10, data


# ── the reader ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [1, 5, 13, 14, 25, 26, 99])
@pytest.mark.parametrize("chunk_bytes", [64, 1 << 20])
def test_limit_stops_after_that_many_records(tmp_path: Path, limit: int, chunk_bytes: int) -> None:
    (tmp_path / "a.json").write_bytes(ARRAY)
    (tmp_path / "b.json").write_bytes(LINES)
    reader = Reader(open_inputs([tmp_path]), limit=limit, chunk_bytes=chunk_bytes)
    records = [record.value for chunk in reader for record in decode_records(chunk)]
    assert records == (ROWS + ROWS)[:limit]


def test_a_file_that_limit_cuts_short_has_no_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(ROWS * 2000).encode())
    reader = Reader(open_inputs([path]), limit=3, chunk_bytes=1000)
    assert sum(chunk.count for chunk in reader) == 3
    assert reader.inputs[0].sha256 is None


def test_chunks_can_be_pickled(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(between(b'{"id": "x, "v": "y"}'))
    (chunk,) = Reader(open_inputs([tmp_path / "a.json"]))
    again: Chunk = pickle.loads(pickle.dumps(chunk))
    assert again == chunk
    assert good(decode_records(again)) == ROWS


def test_memory_is_bounded_by_a_few_chunks(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.write(b"[")
        file.write(b", ".join([ARRAY[1:-1]] * 30_000))
        file.write(b"]")
    assert path.stat().st_size > 48 << 20
    tracemalloc.start()
    count = sum(chunk.count for chunk in Reader(open_inputs([path]), chunk_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 13 * 30_000
    assert peak < 16 << 20


def test_a_missing_bracket_in_a_long_file_loses_only_its_record(dump: Dump) -> None:
    rows = [row(n) for n in range(5000)]
    data = json.dumps(rows).encode()
    records, _ = dump(data.replace(b'ok"}]}', b'ok"}}', 1).replace(b'}]}, {"id": "r9"', b'}, {"id": "r9"', 1))
    assert good(records) == [*rows[1:8], *rows[9:]]


# ── properties ────────────────────────────────────────────────────────────────────────────────────────────────────

EVERY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = st.sampled_from(["id", "conversations", "from", "value", ",", '"', "é"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
RECORDS = st.lists(st.dictionaries(KEYS, JSON, min_size=1, max_size=4) | JSON, min_size=1, max_size=12)
PIECES = (
    b'[ ] { } " , : \\ 1 null NaN \xff \0 \\ud800 {"id": "conversations": \xef\xbb\xbf "x" {"id":1} {"id":1,"items":[]}'
)
FRAGMENTS = st.sampled_from([*PIECES.split(b" "), b" ", b"\n"])


@EVERY
@given(data=st.binary(max_size=300) | st.lists(FRAGMENTS, max_size=60).map(b"".join))
@example(data=bytes(16) + b'{"":0,"items":[]}""')
def test_any_bytes_give_records_or_one_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.json"
    path.write_bytes(data)
    raws = []
    for chunk_bytes in (16, 100, 1 << 20):
        try:
            records, _ = read(path, chunk_bytes=chunk_bytes)
        except CurateError as error:
            raws.append([str(error)[:40].encode()])
            continue
        raws.append([record.raw for record in records])
        assert [record.index for record in records] == list(range(len(records)))
    assert raws[0] == raws[1] == raws[2]


@EVERY
@given(rows=RECORDS, indent=st.sampled_from([None, 0, 2]), chunk_bytes=st.sampled_from([16, 80, 1 << 20]))
def test_any_json_round_trips_with_its_bytes(
    tmp_path: Path, rows: list[Any], indent: int | None, chunk_bytes: int
) -> None:
    path = tmp_path / "any.json"
    data = json.dumps(rows, indent=indent).encode()
    path.write_bytes(data)
    records, reader = read(path, chunk_bytes=chunk_bytes)
    assert values(records) == rows
    assert [json.loads(record.raw) for record in records] == rows
    assert all(record.raw in data for record in records)
    assert reader.warnings == []


@EVERY
@given(
    cut=st.integers(min_value=len(ARRAY) // 10, max_value=len(ARRAY)), chunk_bytes=st.sampled_from([64, 700, 1 << 20])
)
def test_any_truncation_keeps_a_prefix(tmp_path: Path, cut: int, chunk_bytes: int) -> None:
    path = tmp_path / "cut.json"
    path.write_bytes(ARRAY[:cut])
    records, _ = read(path, chunk_bytes=chunk_bytes)
    assert good(records) == ROWS[: len(good(records))]
    assert len(rules(records)) <= 1
