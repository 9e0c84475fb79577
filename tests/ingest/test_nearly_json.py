"""Records that are nearly JSON: Python's repr, comments, trailing commas; named where they are read, and where not."""

from __future__ import annotations

import json
import pprint
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.ingest.text.literals import MAX_LITERAL_BYTES, LiteralError, read_literal
from tests.support.raw_dumps import ROWS, Dump, good, reads, row, rules, values

CHUNKS = pytest.mark.parametrize("chunk_bytes", [64, 1000, 1 << 20])


@pytest.fixture
def dump(tmp_path: Any) -> Dump:
    return reads(tmp_path)


# ── Python's repr ─────────────────────────────────────────────────────────────────────────────────────────────────

PYTHON = [
    row(n, text) for n, text in enumerate(["it's", 'say "hi"', "both ' and \"", "tab\t, line\nend", "é 你 \\ \x07"])
]


@CHUNKS
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\n".join(map(repr, PYTHON)), id="lines"),
        pytest.param(repr(PYTHON), id="a list"),
        pytest.param(pprint.pformat(PYTHON, width=1000), id="printed over several lines"),
        pytest.param(",\n".join(map(repr, PYTHON)) + ",\n", id="lines with commas"),
    ],
)
def test_records_as_python_prints_them_are_read(dump: Dump, text: str, chunk_bytes: int) -> None:
    records, reader = dump(text.encode(), chunk_bytes=chunk_bytes)
    assert values(records) == PYTHON
    assert [name for record in records for name, _ in record.repairs] == ["python_repr"] * 5
    assert reader.warnings == []


@CHUNKS
def test_they_may_stand_among_json(dump: Dump, chunk_bytes: int) -> None:
    lines = [repr(each) if n % 3 == 1 else json.dumps(each) for n, each in enumerate(ROWS)]
    records, _ = dump("\n".join(lines).encode(), chunk_bytes=chunk_bytes)
    assert values(records) == ROWS
    assert [bool(record.repairs) for record in records] == [n % 3 == 1 for n in range(13)]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_any_value_is_the_same_after_repr(value: dict[str, Any]) -> None:
    text = repr(value).encode("utf-8", "surrogatepass")
    record = read_literal(text)
    assert (json.loads(record.json), record.end) == (value, len(text))


@settings(max_examples=200)
@given(st.text("{}[](),:'\"\\ \n/*#tTn1aé", max_size=30))
def test_any_text_is_read_as_json_or_python_would_or_refused(text: str) -> None:
    data = text.encode()
    try:
        record = read_literal(data)
    except LiteralError:
        return
    json.loads(record.json, strict=False)
    assert 0 < record.end <= len(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': (1, 'b')}", {"a": [1, "b"]}),
        ("{'a': ('b',)}", {"a": ["b"]}),
        ("{'a': ()}", {"a": []}),
        ("{1: 'a', -2.5: None}", {"1": "a", "-2.5": None}),
        (r"{'a': '\x41\u00e9\U0001f600\'\\'}", {"a": "Aé😀'\\"}),
        ("{'a': True, 'b': false, 'c': null}", {"a": True, "b": False, "c": None}),
        ("{'a': 1, # what it is\n 'b': 2}", {"a": 1, "b": 2}),
    ],
)
def test_values_with_a_clear_meaning_are_read(text: str, value: object) -> None:
    assert json.loads(read_literal(text.encode()).json) == value


REFUSED = {
    "a quote in a text": "{'a': 'it's'}",
    "texts side by side": "{'a': 'b' 'c'}",
    "an array of NumPy": "{'a': array([1, 2])}",
    "a date": "{'a': datetime.date(2023, 1, 1)}",
    "bytes": "{'a': b'c'}",
    "a set": "{'a', 'b'}",
    "a set of one": "{'a'}",
    "a set of one in a record": "{'a': {1}}",
    "an object": "{'a': <object at 0x7f>}",
    "dots": "{'a': [1, ...]}",
    "a value in brackets": "{'a': ('b')}",
    "an escape of no meaning": r"{'a': '\d'}",
    "a sum": "{'a': 1 + 2}",
    "a call": "{'a': __import__('os')}",
    "a name": "{'a': b}",
    "two commas": "{'a': 1,, 'b': 2}",
    "a key that is a list": "{['a']: 1}",
    "no closing bracket": "{'a': [1}",
    "a line end in a text": "{'a': 'b\nc'}",
}


@CHUNKS
@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_is_not_clear_costs_its_record_and_says_what_it_is(dump: Dump, text: str, chunk_bytes: int) -> None:
    data = b"\n".join([json.dumps(ROWS[0]).encode(), text.replace("\n", "\\\n").encode(), json.dumps(ROWS[1]).encode()])
    records, _ = dump(data, chunk_bytes=chunk_bytes)
    assert good(records) == ROWS[:2]
    assert set(rules(records)) == {"unreadable"}
    assert "as Python prints it" in str(next(record.problem for record in records if record.problem))


def test_javascript_is_named(dump: Dump) -> None:
    records, _ = dump(json.dumps(ROWS[0]).encode() + b"\n{id: 'x', items: []}\n")
    assert "JavaScript with keys that have no quotes" in str(records[1].problem)


@pytest.mark.parametrize("key", ["'a'", '"a"'])
def test_a_key_that_occurs_twice_is_refused_here_too(dump: Dump, key: str) -> None:
    records, _ = dump(f"{json.dumps(ROWS[0])}\n{{{key}: 1, {key}: 2, 'b': None}}\n".encode())
    assert rules(records) == ["duplicate_keys"]


# ── comments and commas ───────────────────────────────────────────────────────────────────────────────────────────


@CHUNKS
def test_comments_between_and_inside_records_are_passed_over(dump: Dump, chunk_bytes: int) -> None:
    texts = [json.dumps(each) for each in ROWS]
    texts[3] = texts[3].replace('"conversations":', '// the turns\n "conversations": /* two */')
    text = "// my dump\n[\n" + texts[0] + ", /* second */\n" + ",\n# more\n".join(texts[1:]) + " // last\n] // end"
    records, reader = dump(text.encode(), chunk_bytes=chunk_bytes)
    assert values(records) == ROWS
    assert [number for number, record in enumerate(records) if record.repairs] == [3]
    assert records[3].repairs == (("json_comments", "// the turns"),)
    assert [warning.text.partition(": ")[2] for warning in reader.warnings] == [
        "15 comments between records are passed over, the first at byte 0"
    ]


@CHUNKS
def test_trailing_commas_are_passed_over(dump: Dump, chunk_bytes: int) -> None:
    texts = [json.dumps(each).replace("}]}", "},],}") for each in ROWS]
    records, reader = dump(("[" + ", ".join(texts) + ",]").encode(), chunk_bytes=chunk_bytes)
    assert values(records) == ROWS
    assert all([name for name, _ in record.repairs] == ["trailing_comma"] for record in records)
    assert reader.warnings == []


def test_comments_inside_texts_are_text(dump: Dump) -> None:
    value = {"id": "x", "v": "// no /* comment */ # here, ]", "w": [1]}
    text = json.dumps(value).replace("[1]", "[1,]")
    assert values(dump(f"{json.dumps(ROWS[0])}\n{text}\n".encode())[0]) == [ROWS[0], value]


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "x", "v": "see "} // the rest", "w": 1}',
        '{"id": "x", "v": "see "// the rest", "w": 1}',
        '{"id": "x", "v": [1,,2]}',
        '{"id": "x", "v": 1 /* open}',
        '{"id": "x", "v": 1 / 2}',
        '{"id": "x",, "v": 1}',
        '{, "id": "x"}',
        '{"id": "x" "v": 1,}',
        '{"id": "x", "v": "\\q",}',
    ],
)
@CHUNKS
def test_damage_is_not_taken_for_a_comment_or_a_comma(dump: Dump, line: str, chunk_bytes: int) -> None:
    texts = [json.dumps(ROWS[0]), line, json.dumps(ROWS[1])]
    records, _ = dump("\n".join(texts).encode(), chunk_bytes=chunk_bytes)
    assert good(records) == ROWS[:2]
    assert rules(records) == ["unreadable"]


def test_a_record_that_is_too_long_is_refused() -> None:
    with pytest.raises(LiteralError, match="longer than"):
        read_literal(b"{'a': '" + b"x" * MAX_LITERAL_BYTES + b"'}")


HOSTILE = {
    "nested": b"{'a':" * 40_000,
    "nested lines": b"{'a':\n" * 40_000,
    "nested lists": b"{'a':" + b"[" * 200_000,
    "one long object": b"{" + b"'a':1," * 40_000,
    "objects that are not closed": (b"{'a':1," * 100 + b"\n") * 300,
    "open comments": b"/* " * 80_000,
    "comments": b"{/**/" * 40_000,
    "open texts": b"{'a\n" * 60_000,
    "slashes": b"/" * 200_000,
    "escapes": b"{'a': '" + b"\\'" * 100_000,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_read_to_its_end(dump: Dump, data: bytes) -> None:
    records, _ = dump(json.dumps(ROWS[0]).encode() + b"\n" + data + b"\n")
    assert good(records)[:1] == ROWS[:1]
