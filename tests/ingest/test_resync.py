"""Damage to one record costs that record alone, whatever its neighbours look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.ingest.json_scan import scan_value
from curate.ingest.text.damaged_text import MAX_DAMAGE_BYTES, MAX_DAMAGED_LINES
from curate.ingest.text.literals import LiteralError, find_end
from tests.support.raw_dumps import Dump, Read, good, read, reads, row, rules

EVERY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CHUNK_BYTES = (64, 700, 1 << 20)


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    """Write bytes to a file and read them as a dump."""
    return reads(tmp_path)


# ── records of several shapes ─────────────────────────────────────────────────────────────────────────────────────


def turns(number: int) -> list[dict[str, Any]]:
    """Return two turns whose texts look like records."""
    return [{"from": "human", "value": f"ask {number}"}, {"from": "gpt", "value": 'say {"id": 1, "items": []}, [{}]'}]


def shape(kind: int, number: int) -> dict[str, Any]:
    """Return a record of one of several shapes; the last has keys that curate does not know."""
    shapes: list[dict[str, Any]] = [
        {"id": f"r{number}", "conversations": turns(number)},
        {"source": "forum", "number": number, "conversations": turns(number), "lang": "en"},
        {"messages": [{"role": "user", "content": f"ask {number}"}, {"role": "assistant", "content": "ok"}]},
        {"meta": {"from": "x", "value": number}, "instruction": f"do {number}", "input": "", "output": "done"},
        {"dialogue": turns(number), "origin": number},
    ]
    return shapes[kind]


SHAPES = st.integers(min_value=0, max_value=4)
CONTAINERS = {
    "array": lambda texts: b"[" + b", ".join(texts) + b"]",
    "array of lines": lambda texts: b"[\n" + b",\n".join(texts) + b"\n]\n",
    "lines": lambda texts: b"\n".join(texts) + b"\n",
    "lines after '['": lambda texts: b"[\n" + b"\n".join(texts) + b"\n",
    "object": lambda texts: b'{"version": 1, "data": [' + b", ".join(texts) + b"]}",
}
DAMAGE = {
    "a bare quote": lambda text, at: text[:at] + b'"' + text[at:],
    "a zero byte": lambda text, at: text[:at] + b"\0" + text[at:],
    "a byte lost": lambda text, at: text[:at] + text[at + 1 :],
    "an end lost": lambda text, at: text[:at],
    "overwritten": lambda text, at: text[:at] + b"\xff\0}" * 5 + text[at + 15 :],
}


def is_damaged(text: bytes) -> bool:
    """Return whether a text is not one JSON value any more."""
    return scan_value(memoryview(text), final=True, in_array=False).end != len(text)


def is_one_value(text: bytes) -> bool:
    """Return whether a text is one value to the reader, which also takes nearly JSON, such as a comma at an end."""
    try:
        return find_end(text) == len(text)
    except LiteralError:
        return False


def read_in_all_chunks(dump: Dump, data: bytes) -> Read:
    """Read a dump with several chunk sizes; return the records, which are the same each time."""
    results = [dump(data, chunk_bytes=size) for size in CHUNK_BYTES]
    for records, reader in results[1:]:
        assert [(record.raw, str(record.problem)) for record in records] == [
            (record.raw, str(record.problem)) for record in results[0][0]
        ]
        assert reader.warnings == results[0][1].warnings
    return results[0]


@pytest.mark.parametrize("container", CONTAINERS)
@EVERY
@given(kinds=st.lists(SHAPES, min_size=4, max_size=12), damage=st.sampled_from(sorted(DAMAGE)), data=st.data())
def test_damage_inside_one_record_costs_that_record_alone(
    dump: Dump, container: str, kinds: list[int], damage: str, data: st.DataObject
) -> None:
    rows = [shape(kind, number) for number, kind in enumerate([0, *kinds])]
    texts = [json.dumps(each).encode() for each in rows]
    bad = data.draw(st.integers(min_value=1, max_value=len(rows) - 1))
    at = data.draw(st.integers(min_value=2, max_value=len(texts[bad]) - 1))
    damaged = DAMAGE[damage](texts[bad], at)
    if not is_damaged(damaged):
        return
    if container == "object" and is_one_value(b", ".join([damaged, *texts[bad + 1 :]]) + b"]}"):
        return  # the end of the array and of the object complete the record: nothing tells its last items from records
    records, _ = read_in_all_chunks(dump, CONTAINERS[container]([*texts[:bad], damaged, *texts[bad + 1 :]]))
    assert [each for each in rows if each in good(records)] == rows[:bad] + rows[bad + 1 :]
    assert all(each in rows for each in good(records))
    assert len(records) == len(good(records)) + len(rules(records))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("at", [3, 40, 45, 120, 188])
def test_records_of_another_shape_after_the_damage_are_whole(dump: Dump, container: str, at: int) -> None:
    rows = [shape(0, number) for number in range(40)] + [shape(1, number) for number in range(150)]
    texts = [json.dumps(each).encode() for each in rows]
    texts[at] = texts[at].replace(b"ask", b'a"sk')
    records, reader = read_in_all_chunks(dump, CONTAINERS[container](texts))
    assert good(records) == rows[:at] + rows[at + 1 :]
    assert rules(records) == ["unreadable"]
    assert reader.warnings[0].text.endswith("it seems to hold 1 record") or at == 40  # the first of its shape


def test_a_lost_bracket_in_an_object_around_records_does_not_join_them(dump: Dump) -> None:
    rows = [row(number) for number in range(30)]
    texts = [json.dumps(each).encode() for each in rows]
    texts[4] = texts[4][:-2]  # the object's own end closes this record
    records, _ = read_in_all_chunks(dump, CONTAINERS["object"](texts))
    assert good(records) == rows[:4] + rows[5:]
    assert rules(records) == ["unreadable"]


def test_an_unclosed_record_in_a_long_file_is_left_before_the_end_of_the_file(dump: Dump) -> None:
    rows = [row(number) for number in range(3000)]
    texts = [json.dumps(each).encode() for each in rows]
    texts[1000] = texts[1000][:-2]
    records, reader = read_in_all_chunks(dump, CONTAINERS["array"](texts))
    assert good(records) == rows[:1000] + rows[1001:]
    assert "a record that is not closed" in reader.warnings[0].text


AFTER_A_BRACE = [
    ", welcome to our shop",
    "}, welcome",
    " {last}, hello",
    "",
    ".\n\nYours",
    "，欢迎",
    "] and [x]",
    "; yes",
    ": 5",
]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("rest", AFTER_A_BRACE)
@pytest.mark.parametrize("at", [0, 3, 5])
def test_an_answer_that_a_bare_quote_cut_short_is_damage(dump: Dump, container: str, rest: str, at: int) -> None:
    rows = [{"instruction": f"Write letter {number}", "output": "Dear {name}" + rest} for number in range(6)]
    texts = [json.dumps(each, ensure_ascii=False).encode() for each in rows]
    texts[at] = texts[at].replace(b"{name}", b'{name"}')
    records, _ = read_in_all_chunks(dump, CONTAINERS[container](texts))
    assert all(each in rows for each in good(records))
    if not (container == "object" and at == 0):  # nothing tells an object around records from one with a damaged first
        assert good(records) == rows[:at] + rows[at + 1 :]
        assert rules(records) == ["unreadable"]


@pytest.mark.parametrize("end", ["];", "]);", "}]", "]\n}\n", ",\n]", "\n// the end"])
def test_marks_after_the_last_record_leave_it_whole(dump: Dump, end: str) -> None:
    rows = [row(number) for number in range(6)]
    records, _ = read_in_all_chunks(dump, json.dumps(rows)[:-1].encode() + end.encode())
    assert good(records) == rows


@pytest.mark.parametrize("end", ["]}", '], "count": 120}', '], "notes": [{"a": 1}]}'])
def test_records_of_a_new_shape_after_the_damage_are_whole_whatever_follows_their_array(dump: Dump, end: str) -> None:
    rows = [shape(0, number) for number in range(20)] + [shape(2, number) for number in range(100)]
    texts = [json.dumps(each).encode() for each in rows]
    texts[19] = texts[19].replace(b"ask", b'a"sk')
    records, reader = read_in_all_chunks(dump, b'{"version": 1, "data": [' + b", ".join(texts) + end.encode())
    assert good(records) == rows[:19] + rows[20:]
    assert rules(records) == ["unreadable"]
    assert len(reader.warnings) == 1


# ── a lost beginning ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cut", ['[{"from"', '{"from"', '{"from": "gpt"', "ask"])
@pytest.mark.parametrize("turn_pairs", [1, 40])
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("container", ["array", "array of lines", "lines"])
def test_a_dump_that_lost_its_beginning_loses_one_record(
    dump: Dump, container: str, tail: bool, turn_pairs: int, cut: str
) -> None:
    rows = [{"id": f"r{number}", "conversations": turns(number) * turn_pairs} for number in range(30)]
    if tail:
        rows = [{**each, "lang": "en"} for each in rows]
    data = CONTAINERS[container]([json.dumps(each).encode() for each in rows])
    records, reader = read_in_all_chunks(dump, data[data.index(cut.encode()) :])
    assert good(records) == rows[1:]
    assert rules(records) == ["unreadable"]
    assert reader.warnings[0].bytes == len(records[0].raw)


# ── brackets that mean nothing ────────────────────────────────────────────────────────────────────────────────────


def test_a_stray_bracket_does_not_change_how_the_lines_after_it_are_read(dump: Dump) -> None:
    rows = [shape(number % 5, number) for number in range(20)]
    texts = [json.dumps(each).encode() for each in rows]
    texts[7] = texts[7][:30]
    texts[8] = b"[" + b" " * 3
    records, reader = read_in_all_chunks(dump, b"[\n" + b"\n".join(texts) + b"\n")
    assert good(records) == rows[:7] + rows[9:]
    assert len(records) == 19
    assert reader.warnings[-1].text == "dump.json: 2 '[' open nothing, the first at byte 0"


def test_lines_between_brackets_are_read_without_a_warning(dump: Dump) -> None:
    rows = [row(number) for number in range(9)]
    data = b"[\n" + b"\n".join(json.dumps(each).encode() for each in rows) + b"\n]\n"
    records, reader = read_in_all_chunks(dump, data)
    assert (good(records), reader.warnings) == (rows, [])


def test_brackets_that_close_nothing_are_counted_in_one_warning(dump: Dump) -> None:
    data = b"\n]]\n".join(json.dumps(row(number)).encode() for number in range(9))
    records, reader = read_in_all_chunks(dump, data)
    assert good(records) == [row(number) for number in range(9)]
    (damage,) = reader.warnings
    assert damage.bytes == 16
    assert damage.text == f"dump.json: 16 ']' close nothing, the first at byte {data.index(b']]', 100)}"


# ── damage without end ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_warning_says_how_many_records_the_damage_seems_to_hold(dump: Dump) -> None:
    texts = [json.dumps(row(number)).encode() for number in range(10)]
    texts[4:7] = [b" ".join(text[:-2] for text in texts[4:7])]
    records, reader = read_in_all_chunks(dump, CONTAINERS["array"](texts))
    assert good(records) == [row(number) for number in range(10) if number not in (4, 5, 6)]
    assert reader.warnings[0].text.endswith("; it seems to hold 3 records")


def test_each_damaged_line_is_a_record_until_there_are_too_many_in_a_row(dump: Dump) -> None:
    whole = json.dumps(row(0)).encode() + b"\n"
    records, reader = read_in_all_chunks(dump, whole + b'{"id": "x\n' * 500 + whole)
    assert [record.problem is None for record in records] == [True] + [False] * (MAX_DAMAGED_LINES + 1) + [True]
    assert len(records[-2].raw) == 10 * (500 - MAX_DAMAGED_LINES) - 1
    assert sum(warning.bytes for warning in reader.warnings) == sum(len(record.raw) for record in records[1:-1])


def test_a_record_that_never_ends_is_one_damaged_record_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    whole = json.dumps(row(1)).encode()
    with path.open("wb") as file:
        file.write(whole + b'\n{"id": "x", "conversations": [{"from": "human", "value": "')
        for _ in range(40):
            file.write(b"text " * 200_000)
        file.write(b"\n" + whole + b"\n")
    records, reader = read(path, max_record_bytes=1 << 20)
    assert good(records) == [row(1), row(1)]
    assert rules(records) == ["unreadable"]
    assert len(records[1].raw) == MAX_DAMAGE_BYTES
    assert reader.warnings[0].bytes > 40_000_000
    assert "seems to hold 1 record;" in reader.warnings[0].text
    assert "bytes are kept" in reader.warnings[0].text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'{"a":' * 50_000, id="nested objects"),
        pytest.param(b'[{"a": [1, ' * 20_000, id="nested lists"),
        pytest.param(b'{"' * 100_000, id="braces and quotes"),
        pytest.param(b'{"a": 1}, ' * 20_000, id="objects"),
    ],
)
def test_the_search_for_records_decodes_little_in_vain(tmp_path: Path, text: bytes) -> None:
    """The sum of what is decoded in vain stays within the budget, and the record after it is found all the same."""
    whole = json.dumps(row(1)).encode()
    path = tmp_path / "hostile.json"
    path.write_bytes(b"[" + whole + b", \0" + text + b"\n" + b" " * 100_000 + whole + b", " + whole + b"]")
    records, _ = read(path)
    assert good(records)[0] == row(1)
    assert good(records)[-1] == row(1)


def test_damage_before_anything_is_known_of_records_holds_a_number_of_them(dump: Dump) -> None:
    records, reader = dump(b'[{"id": "x", "a"b": 1}, ' + json.dumps(row(1)).encode() + b"]")
    assert good(records) == [row(1)]
    assert reader.warnings[0].text.endswith("it seems to hold 1 record")
