"""TRL's shapes, tables for labelling, Alpaca's history, shards; and what a format cannot hold is named or counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.conversion.convert import convert
from curate.errors import CurateError, InputError, RecordError
from curate.schemas import formats
from curate.schemas.conversation import Conversation, Message
from curate.schemas.formats import alpaca, labelling, trl
from curate.schemas.writing import WriteOptions
from tests.support.small_set import kept, write_set

USER, ANSWER = Message("user", "hi"), Message("assistant", "hello")
CALLS = json.dumps([{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}])
PLAIN = Conversation("a", [USER, ANSWER])
CUT = replace(PLAIN, messages=[USER, replace(ANSWER, stop=False)])
UNTRAINED = replace(PLAIN, messages=[USER, replace(ANSWER, train=False)])
LONG = Conversation(
    "b", [Message("system", "Be kind."), USER, ANSWER, Message("user", "more"), Message("assistant", "x")]
)


def dump_of(folder: Path, rows: list[Any]) -> Path:
    file = folder / "dump.json"
    file.write_text(json.dumps(rows), "utf-8")
    return file


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def set_of(folder: Path, *chats: Conversation) -> Path:
    """Write a set with these conversations."""
    fields = [name for name in Message.__dataclass_fields__ if name not in ("is_html", "was_html", "place")]
    rows = [
        kept(
            index,
            chat.source_id or f"c{index}",
            messages=[{name: getattr(message, name) for name in fields} for message in chat.messages],
            rejected_answer=[{name: getattr(m, name) for name in fields} for m in chat.rejected_answer] or None,
            tools=chat.tools,
            model=chat.model,
            metadata=json.dumps(chat.metadata) if chat.metadata else None,
        )
        for index, chat in enumerate(chats)
    ]
    return write_set(folder / "set", rows, [])


# ---- trl


def test_chats_for_trl_have_only_keys_that_every_record_has(tmp_path: Path) -> None:
    source = set_of(tmp_path, replace(PLAIN, metadata={"n": 1}, model="m"), replace(LONG, metadata={"n": "text"}))
    result = convert(source, tmp_path / "out.jsonl", to="trl")
    rows = lines(tmp_path / "out.jsonl")
    assert [row.keys() for row in rows] == [{"id", "messages"}] * 2
    assert rows[0]["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert result.not_held == {"metadata": 2, "model": 1}


def test_each_trained_answer_becomes_a_prompt_with_a_completion(tmp_path: Path) -> None:
    untrained = replace(LONG, source_id="u", messages=[USER, replace(ANSWER, train=False), *LONG.messages[3:]])
    result = convert(set_of(tmp_path, LONG, untrained), tmp_path / "out.jsonl", to="trl", shape="prompt-completion")
    rows = lines(tmp_path / "out.jsonl")
    assert [(row["id"], row["answer"], len(row["prompt"])) for row in rows] == [("b", 0, 2), ("b", 1, 4), ("u", 0, 3)]
    assert [row["completion"] for row in rows] == [
        [{"role": "assistant", "content": text}] for text in ("hello", "x", "x")
    ]
    assert (result.written, result.left_out) == (2, {})


def test_preference_pairs_are_written_and_read_again(tmp_path: Path) -> None:
    pair = replace(LONG, rejected_answer=[Message("assistant", "no")])
    result = convert(set_of(tmp_path, pair, PLAIN), tmp_path / "out.jsonl", to="trl")
    row = lines(tmp_path / "out.jsonl")[0]
    assert row.keys() == {"id", "prompt", "chosen", "rejected"}
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("x", "no")
    assert (result.left_out, result.not_held) == ({"not_representable": 1}, {})
    assert formats.parse(row).messages == pair.messages


DIRTY_TRL: dict[str, tuple[str, Conversation, str]] = {
    "an answer that is not trained on": ("messages", UNTRAINED, "not to be trained on"),
    "an answer that was cut": ("messages", CUT, "was cut off"),
    "a completion that was cut": ("prompt-completion", CUT, "was cut off"),
    "no trained answer": ("prompt-completion", UNTRAINED, "no answer"),
    "an answer without a prompt": ("prompt-completion", replace(PLAIN, messages=[ANSWER]), "without a prompt"),
    "only a prompt": ("prompt-completion", replace(PLAIN, messages=[USER]), "no answer"),
    "no rejected answer": ("preference", PLAIN, "no rejected answer"),
    "a pair without an answer": ("preference", Conversation("a", [USER], rejected_answer=[ANSWER]), "no prompt with"),
    "a pair without a prompt": ("preference", Conversation("a", [ANSWER], rejected_answer=[ANSWER]), "no prompt with"),
    "a chosen answer that was cut": ("preference", replace(CUT, rejected_answer=[ANSWER]), "was cut off"),
    "nothing": ("preference", Conversation("a", [], rejected_answer=[ANSWER]), "no prompt with"),
}


@pytest.mark.parametrize("case", DIRTY_TRL)
def test_what_a_shape_of_trl_cannot_hold_is_named(case: str) -> None:
    shape, chat, reason = DIRTY_TRL[case]
    with pytest.raises(RecordError, match=reason) as error:
        trl.dump_all(chat, WriteOptions(shape=shape))
    assert error.value.rule == "not_representable"


def test_tools_and_reasoning_are_kept_for_trl() -> None:
    tools = json.dumps([{"type": "function", "function": {"name": "f"}}])
    messages = [USER, Message("assistant", "", tool_calls=CALLS), Message("tool", "1", name="f", tool_call_id="1")]
    chat = Conversation("t", [*messages, replace(ANSWER, reasoning="Hm.")], tools=tools)
    (row,) = trl.dump_all(chat, WriteOptions())
    assert row["tools"] == tools
    turns: Any = row["messages"]
    assert turns[1]["tool_calls"] == json.loads(CALLS)
    assert (turns[2]["tool_call_id"], turns[2]["name"], turns[3]["reasoning_content"]) == ("1", "f", "Hm.")


# ---- csv

CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
STARTS = st.sampled_from(
    ["", "=", "+", "-", "@", "\t", "\r", "\n", "'", "''", "'=", " =", "＝", '"', '\\"', ",", ";", "\u00a0-"]
)
CELLS = st.builds(str.__add__, STARTS, CELL)
CHATS = st.lists(
    st.builds(
        lambda name, system, texts, model, metadata: Conversation(
            name,
            [Message("system", system)] * bool(system)
            + [
                Message(("user", "assistant")[i % 2], text)
                for i, text in enumerate([t for pair in texts for t in pair])
            ],
            model or None,
            metadata=metadata,
        ),
        CELLS.filter(bool),
        CELLS,
        st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=3),
        CELLS,
        st.dictionaries(
            st.sampled_from(["title", "n", "nested"]), CELLS | st.integers(-9, 9) | st.lists(CELLS, max_size=2)
        ),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=20, deadline=None)
@given(CHATS)
def test_a_table_for_labelling_is_read_back_without_loss(chats: list[Conversation]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert convert(set_of(folder, *chats), folder / "out.csv", to="csv").written == len(chats)
        convert(folder / "out.csv", folder / "back.jsonl", to="jsonl")
        rows = lines(folder / "back.jsonl")
        assert [row["id"] for row in rows] == [chat.source_id for chat in chats]
        for row, chat in zip(rows, chats, strict=True):
            assert [(m["role"], m["content"]) for m in row["messages"]] == [(m.role, m.content) for m in chat.messages]
            assert (row["model"], row["metadata"]) == (chat.model, chat.metadata)


@given(CHATS)
def test_no_cell_of_a_table_begins_a_formula(chats: list[Conversation]) -> None:
    for chat in chats:
        for cell in labelling.dump(chat).values():
            assert not str(cell).lstrip(" \u00a0").startswith(tuple("=+-@\t\r\n＝＋－＠"))


def test_a_table_opens_in_a_spreadsheet(tmp_path: Path) -> None:
    chat = Conversation("=cmd|' /C calc'!A0", [Message("user", 'ü, "x"\n=1+1'), Message("assistant", "-1")])
    convert(set_of(tmp_path, chat, LONG), tmp_path / "out.csv", to="csv")
    data = (tmp_path / "out.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")  # by which spreadsheets know UTF-8
    first, second = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    assert list(first) == list(labelling.COLUMNS)
    assert (first["id"], first["prompt"], first["answer"]) == ("'=cmd|' /C calc'!A0", 'ü, "x"\n=1+1', "'-1")
    assert (second["system"], second["prompt"], json.loads(second["history"])) == (
        "Be kind.",
        "more",
        [["hi", "hello"]],
    )
    assert (first["label"], first["comment"], second["label"]) == ("", "", "")


LABELS: dict[str, tuple[str, dict[str, int], dict[str, str]]] = {  # label: what is left out, and the metadata
    "bad": ("bad", {"bad_label": 1}, {}),
    "no": ("No", {"bad_label": 1}, {}),
    "0": ("0", {"bad_label": 1}, {}),
    "false": ("FALSE", {"bad_label": 1}, {}),
    "good": ("good", {}, {"label": "good", "comment": "fine"}),
    "1": ("1", {}, {"label": "1", "comment": "fine"}),
    "blank": (" ", {}, {"comment": "fine"}),
    "none": ("", {}, {"comment": "fine"}),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_read_from_a_table(tmp_path: Path, case: str) -> None:
    label, left_out, metadata = LABELS[case]
    row = {**labelling.dump(PLAIN), "label": label, "comment": "fine"}
    with (tmp_path / "labelled.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, labelling.COLUMNS)
        table.writeheader()
        table.writerows([row, labelling.dump(LONG)])
    result = convert(tmp_path / "labelled.csv", tmp_path / "out.jsonl", to="jsonl")
    assert result.left_out == left_out
    if metadata:
        assert lines(tmp_path / "out.jsonl")[0]["metadata"] == metadata


@pytest.mark.parametrize("cell", ["history", "metadata"])
@pytest.mark.parametrize("text", ["[[1, 2]]", '[["a"]]', "{", "3", "[1", '"x"'])
def test_a_cell_of_json_that_was_changed_is_named(cell: str, text: str) -> None:
    with pytest.raises(RecordError, match="not the JSON that curate wrote"):
        formats.parse({**labelling.dump(PLAIN), cell: text})


DIRTY_ROWS: dict[str, tuple[Conversation, str]] = {
    "a tool's call": (replace(PLAIN, messages=[USER, replace(ANSWER, tool_calls=CALLS)]), "calls a tool"),
    "a tool's result": (replace(PLAIN, messages=[USER, Message("tool", "1"), ANSWER]), "is a tool's result"),
    "an answer that was cut": (CUT, "was cut off"),
    "an answer without loss": (UNTRAINED, "not to be trained on"),
    "two prompts": (replace(PLAIN, messages=[USER, USER, ANSWER]), "prompts, each with an answer"),
    "an answer first": (replace(PLAIN, messages=[ANSWER, USER]), "prompts, each with an answer"),
    "a later system message": (replace(PLAIN, messages=[USER, Message("system", "x")]), "prompts, each with an answer"),
    "a system message alone": (replace(PLAIN, messages=[Message("system", "x")]), "prompts, each with an answer"),
    "nothing": (replace(PLAIN, messages=[]), "prompts, each with an answer"),
}  # fmt: skip


@pytest.mark.parametrize("case", DIRTY_ROWS)
def test_what_a_row_of_a_table_or_alpaca_cannot_hold_is_named(case: str) -> None:
    chat, reason = DIRTY_ROWS[case]
    for write in (labelling.dump, lambda chat: alpaca.dump(chat, history=True)):
        with pytest.raises(RecordError, match=reason) as error:
            write(chat)
        assert error.value.rule == "not_representable"


def test_reasoning_is_folded_into_alpacas_output_and_refused_by_a_table() -> None:
    chat = replace(PLAIN, messages=[USER, replace(ANSWER, reasoning="Hm.")])
    assert str(alpaca.dump(chat)["output"]).startswith("<think>\nHm.\n</think>\n\n")
    assert formats.parse(alpaca.dump(chat)).messages == chat.messages
    with pytest.raises(RecordError, match="has reasoning"):
        labelling.dump(chat)
    untrained = replace(ANSWER, reasoning="Hm.", train_reasoning=False)
    with pytest.raises(RecordError, match="not to be trained on"):
        alpaca.dump(replace(PLAIN, messages=[USER, untrained]))


def test_a_zero_byte_is_not_put_into_a_table() -> None:
    with pytest.raises(RecordError, match="zero byte"):
        labelling.dump(replace(PLAIN, messages=[Message("user", "a\0b"), ANSWER]))


# ---- alpaca


def test_earlier_exchanges_become_alpacas_history(tmp_path: Path) -> None:
    convert(set_of(tmp_path, PLAIN, LONG), tmp_path / "out.json", to="alpaca", history=True)
    first, second = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert (first["history"], second["history"]) == ([], [["hi", "hello"]])
    assert (second["instruction"], second["output"], second["system"]) == ("more", "x", "Be kind.")
    assert formats.parse(second).messages == LONG.messages
    result = convert(set_of(tmp_path, PLAIN, LONG), tmp_path / "out.json", to="alpaca")
    assert result.left_out == {"not_representable": 1}
    assert "--history" in (tmp_path / "out.json.left-out.jsonl").read_text("utf-8")


# ---- what formats hold

FULL = Conversation(
    "full",
    [Message("system", "S", name="boss"), USER, replace(ANSWER, extra='{"rating":5}')],
    "gpt-4",
    tools='[{"type":"function","function":{"name":"f"}}]',
    rejected_answer=[Message("assistant", "no")],
    metadata={"title": "T"},
)
WHOLE: dict[str, dict[str, int]] = {
    "sharegpt": {"rejected_answer": 1},
    "openai": {"rejected_answer": 1},
    "jsonl": {},
    "parquet": {},
    "alpaca": dict.fromkeys(("name", "extra", "tools", "rejected_answer"), 1),
    "vicuna": dict.fromkeys(("name", "extra", "tools", "rejected_answer", "model", "metadata"), 1),
    "csv": dict.fromkeys(("name", "extra", "tools", "rejected_answer"), 1),
    "trl": dict.fromkeys(("extra", "model", "metadata"), 1),  # as a preference pair
}


@pytest.mark.parametrize("to", WHOLE)
def test_what_a_format_has_no_place_for_is_counted(tmp_path: Path, to: str) -> None:
    result = convert(set_of(tmp_path, FULL, PLAIN), tmp_path / "out", to=to)
    assert result.not_held == WHOLE[to]
    if to != "parquet":
        text = (tmp_path / "out").read_text("utf-8")
        held = {"boss": "name", "rating": "extra", '"function"': "tools", '"T"': "metadata", "gpt-4": "model"}
        plain = text.replace('""', '"').replace('\\"', '"')
        assert {field for word, field in held.items() if word not in plain} == set(result.not_held) - {
            "rejected_answer"
        }


COLLISIONS = [("sharegpt", "conversations"), ("openai", "messages"), ("alpaca", "output"), ("alpaca", "instruction")]


@pytest.mark.parametrize(("to", "key"), COLLISIONS)
def test_a_key_of_the_dump_never_replaces_one_of_the_format_in_silence(tmp_path: Path, to: str, key: str) -> None:
    result = convert(set_of(tmp_path, replace(PLAIN, metadata={key: "mine"})), tmp_path / "out", to=to)
    assert result.left_out == {"not_representable": 1}
    assert f"own key {key!r}" in lines(tmp_path / "out.left-out.jsonl")[0]["reason"]


# ---- shards and compression


@pytest.mark.parametrize(
    ("to", "name"), [("openai", "x.jsonl.gz"), ("csv", "x.csv.zst"), ("parquet", "x.parquet"), ("vicuna", "x.json")]
)
def test_shards_hold_each_conversation_once_and_are_read_again(tmp_path: Path, to: str, name: str) -> None:
    source = set_of(tmp_path, *(replace(PLAIN, source_id=f"c{i}") for i in range(10)))
    (tmp_path / "out").mkdir()
    result = convert(source, tmp_path / "out" / name, to=to, shards=4)
    ending = name.removeprefix("x")
    assert [file.name for file in result.files] == [f"x-0000{i}-of-00004{ending}" for i in range(4)]
    assert sorted(tmp_path.joinpath("out").iterdir()) == sorted(result.files)
    for number, file in enumerate(result.files):
        convert(file, tmp_path / "back.jsonl", to="jsonl")
        assert [row["id"] for row in lines(tmp_path / "back.jsonl")] == [f"c{i}" for i in range(number, 10, 4)]
    first = [file.read_bytes() for file in result.files]
    convert(source, tmp_path / "out" / name, to=to, shards=4)
    assert [file.read_bytes() for file in result.files] == first


def test_shards_of_another_number_are_not_mixed(tmp_path: Path) -> None:
    source = set_of(tmp_path, PLAIN)
    convert(source, tmp_path / "out.jsonl", to="jsonl", shards=2)
    with pytest.raises(InputError, match="is a shard of another number"):
        convert(source, tmp_path / "out.jsonl", to="jsonl", shards=3)


@pytest.mark.parametrize(
    ("to", "name"), [("csv", "x.csv.gz"), ("text", "x.txt.gz"), ("trl", "x.jsonl.zst"), ("vicuna", "x.json.zst")]
)
def test_every_text_target_can_be_compressed(tmp_path: Path, to: str, name: str) -> None:
    source = set_of(tmp_path, PLAIN, LONG)
    convert(source, tmp_path / name, to=to)
    convert(source, tmp_path / "plain", to=to)
    packed = (tmp_path / name).read_bytes()
    zst = name.endswith(".zst")
    data = zstandard.ZstdDecompressor().decompressobj().decompress(packed) if zst else gzip.decompress(packed)
    assert data == (tmp_path / "plain").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "openai", "history": True}, "history has no effect on 'openai'"),
        ({"to": "openai", "shape": "messages"}, "a shape has no effect on 'openai'"),
        ({"to": "trl", "shape": "chat"}, "unknown shape 'chat'; known: messages, prompt-completion, preference"),
        ({"to": "hf", "shards": 2}, "shards have no effect on 'hf'"),
        ({"to": "jsonl", "shards": 0}, "shards is 0"),
    ],
    ids=["history", "shape of another format", "unknown shape", "shards of a folder", "no shards"],
)
def test_an_option_without_effect_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CurateError, match=message):
        convert(set_of(tmp_path, PLAIN), tmp_path / "out", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
