"""CSV and TSV files: their columns are keys, a damaged row is lost alone, and rows of one turn become conversations."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import InputError
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.ingest.tables.delimited_text import begins_table, read_table
from tests.support.raw_dumps import good, reads, rules, values

HEADER = "prompt,answer\n"


def read_csv(folder: Path, text: str | bytes, name: str = "a.csv", **settings_: Any) -> Any:
    return reads(folder)(text if isinstance(text, bytes) else text.encode(), name, **settings_)


def table(text: str, name: str = "a.csv", max_record_bytes: int = 1 << 20) -> list[Any]:
    """Return rows as objects, and a damaged row as its bytes."""
    rows: list[Any] = []
    for part in read_table(iter([text.encode("utf-8", "surrogateescape")]), name, max_record_bytes).rows:
        rows += [part.data] if part.lost else map(json.loads, part.data.splitlines())
    return rows


WHOLE: dict[str, tuple[str, list[dict[str, str]]]] = {
    "plain": ("prompt,answer\nHi,Hello\n", [{"prompt": "Hi", "answer": "Hello"}]),
    "no new line at the end": ("a,b\n1,2", [{"a": "1", "b": "2"}]),
    "quotes": ('a,b\n"say ""hi""","x, y"\n', [{"a": 'say "hi"', "b": "x, y"}]),
    "new lines in a field": ('a,b\n"one\n\ntwo\r\n",2\n', [{"a": "one\n\ntwo\r\n", "b": "2"}]),
    "CRLF": ("a,b\r\n1,2\r\n", [{"a": "1", "b": "2"}]),
    "CR alone": ("a,b\r1,2\r3,4\r", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
    "semicolons": ("a;b\n1,5;2\n", [{"a": "1,5", "b": "2"}]),
    "tabs": ("a\tb\n1, 2\t3; 4\n", [{"a": "1, 2", "b": "3; 4"}]),
    "bars": ("a|b\n1,2|3\n", [{"a": "1,2", "b": "3"}]),
    "a line for Excel": ("sep=;\na;b\n1,2;3\n", [{"a": "1,2", "b": "3"}]),
    "a text that ends like a line for Excel": ("sep=;b\n1;2\n", [{"sep=": "1", "b": "2"}]),
    "escaped quotes": ('a,b\n"say \\"hi\\", ok",2\n', [{"a": 'say "hi", ok', "b": "2"}]),
    "backslashes": ('a,b\n"C:\\new",\\n\n', [{"a": "C:\\new", "b": "\\n"}]),
    "a backslash before a quote": ('"a";"b"\n"\\""";"\n1"\n', [{"a": '\\"', "b": "\n1"}]),
    "a quote within a field": ('a,b\n5" disk,2\n', [{"a": '5" disk', "b": "2"}]),
    "blank lines": ("a,b\n\n1,2\n\n\n3,4\n", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
    "empty fields": ('a,b\n,""\n', [{"a": "", "b": ""}]),
    "a comma after each row": ("a,b,\n1,2,\n3,4,\n", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
    "a column without a name": (",a,b\n0,1,2\n", [{"column_1": "0", "a": "1", "b": "2"}]),
    "spaces around names": (" a , b\n1, 2\n", [{"a": "1", "b": " 2"}]),
    "one column": ("text\nHi, you\n", []),
    "quoted names": ('"a","b, c"\n1,2\n', [{"a": "1", "b, c": "2"}]),
    "separators of lines that are none in CSV": ("a,b\nx\u2028y,\x0b\x85\n", [{"a": "x\u2028y", "b": "\x0b\x85"}]),
}


@pytest.mark.parametrize(("text", "rows"), WHOLE.values(), ids=WHOLE.keys())
def test_a_whole_file_is_read_as_its_writer_meant(text: str, rows: list[dict[str, str]]) -> None:
    assert [row for row in table(text) if isinstance(row, dict)] == rows


DAMAGED = {
    "too few fields": ("a,b\n1,2\n3\n4,5\n", [0, "3\n", 2]),
    "too many fields": ("a,b\n1,2\n3,4,5\n6,7\n", [0, "3,4,5\n", 2]),
    "a quote that is not closed": ('a,b\n1,2\n3,"4\n5,6\n7,8\n', [0, '3,"4\n', 2, 3]),
    "a quote that the next one closes": ('a,b\n1,2\n3,"4\n5,"6"\n7,8\n', [0, '3,"4\n', 2, 3]),
    "a quote that is not closed, before fields with lines": ('a,b\n3,"4\n5,"6\n7"\n8,9\n', ['3,"4\n', 1, 2]),
    "text after a quote": ('a,b\n1,2\n"3"x,4\n5,6\n', [0, '"3"x,4\n', 2]),
    "text after a quote, in a field with lines": ('a,b\n"3\n4"x,5\n6,7\n', ['"3\n4"x,5\n', 1]),
    "quotes that are not doubled": (
        'a,b\n"so "x" is\nfoo, bar\nlast",5\n6,7\n',
        ['"so "x" is\nfoo, bar\nlast",5\n', 1],
    ),
    "quotes that are not doubled, on one line": ('a,b\n"say "x" ok",5\n6,7\n', ['"say "x" ok",5\n', 1]),
    "fields with lines in a row that is too short": ('a,b\n"1\n2, 3\n4"\n6,7\n', ['"1\n2, 3\n4"\n', 1]),
    "a byte that is not UTF-8": ("a,b\n1,2\n3,caf\udce9\n5,6\n", [0, "3,caf\udce9\n", 2]),
    "a zero byte": ("a,b\n1,2\n3,\0\n5,6\n", [0, "3,\0\n", 2]),
    "an unclosed quote at the end": ('a,b\n1,2\n3,"4', [0, '3,"4']),
    "a cut at the end": ("a,b\n1,2\n3", [0, "3"]),
    "a row that is too long": ("a,b\n1,2\n3," + "x" * 5000 + "\n4,5\n", [0, None, 2]),
}


@pytest.mark.parametrize(("text", "expected"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_row_is_lost_alone_with_its_bytes(text: str, expected: list[Any]) -> None:
    rows = table(text, max_record_bytes=4000)
    assert [number if isinstance(row, dict) else None for number, row in enumerate(rows)] == [
        item if isinstance(item, int) else None for item in expected
    ]
    for row, item in zip(rows, expected, strict=True):
        if isinstance(item, str):
            assert row == item.encode("utf-8", "surrogateescape")


def test_a_damaged_row_is_rejected_by_its_number_and_line(tmp_path: Path) -> None:
    records, reader = read_csv(tmp_path, HEADER + '"Hi\nyou",Hello\nonly one\nWho?,Me\n')
    assert good(records) == [{"prompt": "Hi\nyou", "answer": "Hello"}, {"prompt": "Who?", "answer": "Me"}]
    assert rules(records) == ["unreadable"] and records[1].raw == b"only one\n" and records[1].index == 1
    assert records[1].problem is not None
    assert records[1].problem.reason == "the row at line 4 cannot be read: it has 1 field, the header 2"
    assert [damage.text for damage in reader.warnings] == [f"a.csv: {records[1].problem.reason}"]


def test_many_damaged_rows_are_one_warning(tmp_path: Path) -> None:
    records, reader = read_csv(tmp_path, HEADER + "x\n" * 10 + "Hi,Hello\n")
    assert rules(records) == ["unreadable"] * 10
    (damage,) = reader.warnings
    assert damage.text.startswith("a.csv: 10 rows are rejected, the first because the row at line 2 cannot be read")


BAD_FILES = {
    "a name twice": ("a,b,a\n1,2,3\n", "has the column 'a' more than once: 1 and 3; give each its own name"),
    "a header only": ("a,b\n", "has a header but no rows"),
    "white space": ("\n\n", "has no line with the names of its columns"),
    "a header that is damaged": ('"a"b,c\n1,2\n', "has no header that can be read: the row at line 1 cannot be read"),
    "a header that is not UTF-8": ("caf\udce9,b\n1,2\n", "has no header that can be read: it has the byte 0xe9"),
    "no row that fits": (
        "a,b\n1\n2\n",
        "has no row that can be read; the row at line 2 ",
    ),
    "too many columns": (",".join(f"c{n}" for n in range(20_000)), "has 20,000 columns, over the limit of 10,000"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_csv(tmp_path, text.encode("utf-8", "surrogateescape"))
    assert str(caught.value).startswith(f"input 'a.csv' {message}")


def test_a_text_of_unbalanced_quotes_takes_bounded_time() -> None:
    lines = 'a","b\n' * 20_000
    rows = table("x,y\n" + lines, max_record_bytes=1 << 30)
    assert sum(len(row) for row in rows) == len(lines)


ANY = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.text("ab,;\t|\"'\n\r")
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=200, deadline=None)
def test_what_the_csv_module_writes_is_read_back(rows: list[tuple[str, str]], delimiter: str, newline: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "answer"), *rows])
    assert table(text.getvalue()) == [{"prompt": prompt, "answer": answer} for prompt, answer in rows]


@given(st.text('ab,"\n', max_size=60), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_no_text_is_lost_or_ends_the_reading(noise: str, size: int) -> None:
    text = "x,y\n1,2\n" + noise + ("\n3,4\n" * size)
    rows = table(text)
    assert rows[0] == {"x": "1", "y": "2"} or isinstance(rows[0], bytes) or "\n" in rows[0]["y"]
    letters = "".join(row.decode() if isinstance(row, bytes) else "".join(row.values()) for row in rows)
    assert [sum(letters.count(each) for each in "ab")] == [sum(noise.count(each) for each in "ab")]


@pytest.mark.parametrize("name", ["chats", "chats.json", "chats.txt", "chats.gz", "chats.dat"])
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("question,answer\r\nHi,Hello\r\nWhy?,So.\r\n", 2),
        ('"id";"Prompt";"Response"\n1;Hi;Hello\n', 1),
        ("instruction\tinput\toutput\nHi\t\tHello\n", 1),
        ("\ufeffprompt,completion\nHi,Hello\n", 1),
        ("conversation_id,role,content\n1,user,Hi\n1,assistant,Hello\n", 1),
    ],
)
def test_a_table_of_chats_is_known_by_its_header(tmp_path: Path, name: str, text: str, count: int) -> None:
    data = text.encode()
    records, reader = read_csv(tmp_path, gzip.compress(data) if name.endswith(".gz") else data, name)
    assert len(good(records)) == count and not reader.warnings
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(name.removesuffix(".gz"), data)
    assert sum(chunk.count for chunk in Reader(open_inputs([tmp_path / "x.zip"]))) == count


@pytest.mark.parametrize(
    "text",
    [
        "A question, and an answer\n",
        "question\nanswer\n",
        "question,answer",
        "prompt,price\n1,2\n",
        "name,age\nx,1\n",
        "answer,output\n1,2\n",
        "",
        "\n",
    ],
)
def test_other_text_is_no_table(text: str) -> None:
    assert not begins_table(text)


def test_a_csv_is_read_in_a_zip_compressed_and_in_utf_16(tmp_path: Path) -> None:
    text = HEADER + "Hé,Hello\n"
    expected = [{"prompt": "Hé", "answer": "Hello"}]
    assert values(read_csv(tmp_path, gzip.compress(text.encode()), "b.CSV.gz")[0]) == expected
    assert values(read_csv(tmp_path, text.encode("utf-16"), "c.csv")[0]) == expected
    assert values(read_csv(tmp_path, text.encode("utf-8-sig"), "d.csv")[0]) == expected
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("in/f.csv", text)
        archive.writestr("g.tsv", text.replace(",", "\t"))
    records, reader = reads(tmp_path)((tmp_path / "e.zip").read_bytes(), "e.zip")
    assert values(records) == expected * 2 and not reader.warnings


def test_rows_of_a_stream_whose_checksum_failed_are_in_doubt(tmp_path: Path) -> None:
    data = bytearray(gzip.compress((HEADER + "Hi,Hello\n" * 5).encode()))
    data[-8] ^= 1  # of the checksum
    records, reader = read_csv(tmp_path, bytes(data), "a.csv.gz")
    assert len(records) == 5
    assert [(doubt.first, doubt.stop) for doubt in reader.damaged_records] == [(0, 5)]


def test_the_limit_of_records_holds_for_rows(tmp_path: Path) -> None:
    records, reader = read_csv(tmp_path, HEADER + "Hi,Hello\n" * 50, limit=7)
    assert len(records) == reader.records_read == 7


# ── rows that are one turn each ───────────────────────────────────────────────────────────────────────────────────

TURNS = """conversation_id,turn,role,content
1,0,user,Name a hill in Rome.
1,1,assistant,The Aventine is one.
"""


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"turn": str(n), "role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def test_rows_of_one_turn_become_conversations() -> None:
    assert table(TURNS) == [{"id": "1", "messages": turns("Name a hill in Rome.", "The Aventine is one.")}]


def test_turns_may_be_in_any_order_and_conversations_interleaved() -> None:
    rows = "b,1,assistant,B1\na,0,user,A0\nb,0,user,B0\na,10,user,A10\na,2,user,A2\n"
    read = table("Conversation ID,Turn,Role,Text\n" + rows)
    assert [(chat["id"], [turn["content"] for turn in chat["messages"]]) for chat in read] == [
        ("b", ["B0", "B1"]),
        ("a", ["A0", "A2", "A10"]),
    ]


def test_columns_that_are_the_same_in_a_conversation_are_keys_of_the_record() -> None:
    header = "chat_id;from;value;model;weight;lang\n"
    (chat,) = table(header + "1;human;Hi;m1;0;en\n1;gpt;Hello;m1;0;fr\n")
    assert chat["model"] == "m1" and [turn["lang"] for turn in chat["messages"]] == ["en", "fr"]
    assert [turn["weight"] for turn in chat["messages"]] == ["0", "0"]


def test_a_conversation_that_may_have_lost_a_turn_is_lost() -> None:
    rows = "1,0,user,a\n1,1,assistant,b\n2,0,user,c\n2,1\n2,2,user,d\n3,0,user,e\n3,1,assistant,f\n"
    first, second, third = table("conversation_id,turn,role,content\n" + rows)
    assert isinstance(second, bytes) and [first["id"], third["id"]] == ["1", "3"]
    second = "conversation_id,turn,role,content\n" + rows.replace("2,1\n", "").replace(
        "3,0,user,e\n", "x\n3,0,user,e\n"
    )
    assert [isinstance(row, bytes) for row in table(second)] == [False, True, True]


@pytest.mark.parametrize(
    "header", ["message_id,parent_id,conversation_id,role,text", "id,role,text", "conversation_id,role,score"]
)
def test_rows_are_records_of_their_own_where_the_columns_do_not_say_otherwise(header: str) -> None:
    fields = header.split(",")
    assert table(f"{header}\n{','.join(fields)}\n") == [dict(zip(fields, fields, strict=True))]


def test_a_row_without_the_id_of_its_conversation_is_named(tmp_path: Path) -> None:
    records, _ = read_csv(tmp_path, TURNS + ",0,user,Hm\n")
    assert rules(records) == ["unreadable"] and records[1].problem is not None
    assert records[1].problem.reason == "1 rows have nothing under 'conversation_id'"


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 20])
def test_records_do_not_depend_on_the_size_of_chunks(tmp_path: Path, chunk_bytes: int) -> None:
    lines = [f"Name lake {n}.,Lake {n}\n" if n % 7 else "x\n" for n in range(200)]
    whole, _ = read_csv(tmp_path, HEADER + "".join(lines))
    parts, reader = read_csv(tmp_path, HEADER + "".join(lines), chunk_bytes=chunk_bytes)
    assert [(record.index, record.raw) for record in parts] == [(record.index, record.raw) for record in whole]
    assert reader.warnings and len(parts) == 200


def test_sources_of_tables_and_of_text_are_read_in_one_run(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "Hi,Hello\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "Who?", "answer": "Me"}\n')
    reader = Reader(open_inputs([tmp_path]))
    assert [chunk.source_file for chunk in reader] == ["a.csv", "b.jsonl"]
