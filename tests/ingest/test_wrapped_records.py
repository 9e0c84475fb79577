"""Records in other containers of text: an object of them by id, a wrapper, JavaScript, and JSON once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curate.errors import RecordError
from curate.ingest.text.members import read_member
from curate.schemas import formats
from tests.support.raw_dumps import ROWS, Dump, good, reads, row, rules, values

CHUNKS = pytest.mark.parametrize("chunk_bytes", [64, 1000, 1 << 20])


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    return reads(tmp_path)


def without_id(each: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in each.items() if key != "id"}


BY_ID = {each["id"]: without_id(each) for each in ROWS}
SORTED = [dict(sorted(each.items())) for each in ROWS]

CONTAINERS = {
    "by id": json.dumps(BY_ID),
    "by id, indented": json.dumps(BY_ID, indent=1),
    "by id, beside a version": json.dumps({"version": 2, **BY_ID, "end": None}),
    "by id, with their own ids": json.dumps({each["id"]: each for each in ROWS}),
    "in data.result": json.dumps({"status": "ok", "data": {"count": 13, "result": ROWS, "next": None}, "more": 1}),
    "in three objects": json.dumps({"response": {"data": {"data": ROWS}}}),
    "JavaScript": f"window.DATA = {json.dumps(ROWS)};",
    "JavaScript of several statements": (
        f"const a = [\n{json.dumps(ROWS[0])}\n];\nvar b = {json.dumps(ROWS[1:])};\nexport default a;\n"
    ),
    "a module": f"module.exports = {json.dumps(ROWS)}\n",
    "an archive's variable": f"window.YTD.chats.part0 = {json.dumps(ROWS, indent=2)}",
    "a callback": f"show({json.dumps(ROWS)});",
    "behind a guard": f")]}}',\n{json.dumps(ROWS)}",
    "JSON in lines of text": "\n".join(json.dumps(json.dumps(each)) for each in ROWS),
    "JSON in an array of texts": json.dumps([json.dumps(each, indent=1) for each in ROWS]),
    "JSON encoded three times": "\n".join(json.dumps(json.dumps(json.dumps(each))) for each in ROWS),
}


@CHUNKS
@pytest.mark.parametrize("text", CONTAINERS.values(), ids=CONTAINERS)
def test_the_records_are_read(dump: Dump, text: str, chunk_bytes: int) -> None:
    records, reader = dump(text.encode(), chunk_bytes=chunk_bytes)
    assert values(records) == ROWS
    assert [record.index for record in records] == list(range(13))
    assert all(record.raw in text.encode() for record in records)
    assert ["JavaScript" in warning.text for warning in reader.warnings] in ([], [True])


def test_repairs_name_what_was_unwrapped(dump: Dump) -> None:
    assert dump(CONTAINERS["by id"].encode())[0][2].repairs == (("record_unwrapped", "r2"),)
    [(name, text)] = dump(CONTAINERS["JSON in lines of text"].encode())[0][2].repairs
    assert (name, json.loads(text)) == ("json_in_text", ROWS[2])


@CHUNKS
def test_an_object_of_turns_by_id_is_read(dump: Dump, chunk_bytes: int) -> None:
    text = json.dumps({each["id"]: each["conversations"] for each in ROWS})
    assert values(dump(text.encode(), chunk_bytes=chunk_bytes)[0]) == ROWS


def test_a_records_own_id_comes_before_its_key() -> None:
    assert read_member(b'"k": {"id": "a", "messages": [1]}') == {"id": "a", "messages": [1], "key": "k"}
    assert read_member(b'"k": {"messages": [1]}') == {"messages": [1], "id": "k"}


# ── dirty cases ───────────────────────────────────────────────────────────────────────────────────────────────────


@CHUNKS
def test_a_damaged_member_costs_itself(dump: Dump, chunk_bytes: int) -> None:
    text = CONTAINERS["by id"].replace("hello 6", 'hello "6"')
    records, reader = dump(text.encode(), chunk_bytes=chunk_bytes)
    assert rules(records) == ["unreadable"]
    kept = good(records)
    assert [each["conversations"] for each in kept] == [each["conversations"] for each in ROWS if each["id"] != "r6"]
    assert len(reader.warnings) == 1


@CHUNKS
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_an_object_that_is_cut_off_keeps_its_whole_members(dump: Dump, share: float, chunk_bytes: int) -> None:
    text = CONTAINERS["by id"].encode()
    records, reader = dump(text[: int(len(text) * share)], chunk_bytes=chunk_bytes)
    assert good(records) == ROWS[: len(good(records))]
    assert len(good(records)) >= int(13 * share) - 1
    assert "cut off" in reader.warnings[-1].text


PAIRS = [
    {"conversation_a": ROWS[0]["conversations"], "conversation_b": ROWS[1]["conversations"]},
    {"chosen": ROWS[0], "rejected": ROWS[1]},
    {"model_1": without_id(ROWS[0]), "model_2": without_id(ROWS[1])},
]


@pytest.mark.parametrize("pair", PAIRS)
def test_lines_with_several_chats_are_not_an_object_of_records(dump: Dump, pair: dict[str, Any]) -> None:
    lines = "\n".join(json.dumps(pair) for _ in range(3))
    assert values(dump(lines.encode())[0]) == [pair] * 3


@pytest.mark.parametrize(
    "record",
    [
        {"custom_id": "x", "body": {"messages": [{"role": "user", "content": "a"}]}},
        {"prompt": {"text": "a", "replies": []}, "message_tree_id": "t"},
        {"mapping": {"a": {"id": "a", "message": None}, "b": {"id": "b", "message": None}}, "title": "t"},
        {"conversations": {"0": {"from": "human", "value": "a"}, "1": {"from": "gpt", "value": "b"}}},
        {"data": ["a", "b"], "id": "x"},
        {"id": "x", "thread": [{"user": {"prompt": "a"}}, {"bot": {"text": "b"}}]},
    ],
)
def test_one_record_is_not_taken_apart(dump: Dump, record: dict[str, Any]) -> None:
    assert values(dump(json.dumps(record).encode())[0]) == [record]
    assert values(dump(json.dumps([record, record]).encode())[0]) == [record, record]


def test_text_that_is_no_json_stays_text(dump: Dump) -> None:
    texts = ["plain", "{not json", "[1, 2]", '"quoted"', "", "12"]
    found = values(dump(json.dumps([*texts, row(0)]).encode())[0])
    assert found == ["plain", "{not json", "[1, 2]", "quoted", "", "12", row(0)]


def test_json_in_text_is_checked_like_other_json(dump: Dump) -> None:
    deep = '{"a":' * 300 + "1" + "}" * 300
    twice = '{"a": 1, "a": 2}'
    records, _ = dump(json.dumps([deep, twice, json.dumps(row(0))]).encode())
    assert rules(records) == ["too_deep", "duplicate_keys"]
    assert good(records) == [row(0)]


# ── the Hub's rows, and tables by columns ─────────────────────────────────────────────────────────────────────────


def hub(*rows: dict[str, Any], cut: bool = False) -> str:
    cells = ["conversations"] if cut else []
    wrapped = [{"row_idx": number, "row": each, "truncated_cells": cells} for number, each in enumerate(rows)]
    features = [{"feature_idx": 0, "name": "conversations", "type": {"prompt": {"dtype": "string"}}}]
    return json.dumps({"features": features, "rows": wrapped, "num_rows_total": 2, "partial": False})


@CHUNKS
def test_rows_of_the_hubs_server_are_read_one_by_one(dump: Dump, chunk_bytes: int) -> None:
    asked = {"question": "What is it?", "answer": "A lake."}
    records, _ = dump(hub(ROWS[0], asked).encode(), chunk_bytes=chunk_bytes)
    conversations = [formats.parse(value) for value in values(records)]
    assert [message.content for message in conversations[1].messages] == ["What is it?", "A lake."]
    assert [conversation.edits[-1].rule for conversation in conversations] == ["record_unwrapped"] * 2
    assert conversations[0].source_id == "r0"


def test_a_row_whose_cells_were_cut_is_rejected(dump: Dump) -> None:
    records, _ = dump(hub(ROWS[0], cut=True).encode())
    with pytest.raises(RecordError) as error:
        formats.parse(records[0].value)
    assert error.value.rule == "truncated_row"


TABLES: dict[str, dict[str, Any]] = {
    "columns of pandas": {"instruction": {"0": "a?", "1": "b?"}, "output": {"0": "c", "1": "d"}},
    "one row": {"instruction": {"0": "a?"}, "output": {"0": "c"}},
    "turns in columns": {"conversations": {"0": ROWS[0]["conversations"], "1": []}, "id": {"0": "a", "1": "b"}},
    "lists": {"instruction": ["a?", "b?"], "output": ["c", "d"]},
    "lists of turns": {"id": ["a", "b"], "messages": [ROWS[0]["conversations"], ROWS[1]["conversations"]]},
    "rows apart from their names": {"columns": ["instruction", "output"], "index": [0], "data": [["a", "b"]]},
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_by_columns_says_what_it_is_and_what_to_type(dump: Dump, table: dict[str, Any]) -> None:
    records, _ = dump(json.dumps(table).encode())
    with pytest.raises(RecordError) as error:
        formats.parse(records[0].value)
    assert error.value.rule == "by_columns"
    assert "orient='records'" in error.value.reason


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": {"0": {"from": "human", "value": "a"}, "1": {"from": "gpt", "value": "b"}}},
        {"prompt": ["a"], "completion": ["b"]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tags": ["x", "y"]},
    ],
)
def test_a_record_that_looks_like_a_table_is_read(record: dict[str, Any]) -> None:
    assert [message.content for message in formats.parse(record).messages] == ["a", "b"]
