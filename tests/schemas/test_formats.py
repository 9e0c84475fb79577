"""Each record's format is recognised; a defect with a clear meaning is repaired, any other is rejected."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import InputError, RecordError
from curate.schemas import Conversation, Message, formats
from curate.schemas.formats import alpaca, native, openai, sharegpt, vicuna
from curate.schemas.prompts import INPUT_MARK
from curate.schemas.reading.tool_calls import call_ids

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("id", "conversations", "items", "messages", "instruction", "input", "output", "system", "history", "model")
TURN_KEYS = ("from", "role", "value", "content", "text", "name", "tool_calls", "function_call", "weight", "stop")
ROLE_NAMES = st.sampled_from(["human", "gpt", "user", "assistant", "system", "tool", "bing", "function_call", "nobody"])
TURNS = st.lists(
    st.dictionaries(st.sampled_from(TURN_KEYS), JSON | ROLE_NAMES, max_size=5)
    | st.fixed_dictionaries({"from": ROLE_NAMES, "value": JSON})
    | JSON,
    max_size=5,
)
RECORDS = JSON | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), TURNS | JSON, max_size=5)


def human(text: object) -> dict[str, object]:
    return {"from": "human", "value": text}


def gpt(text: object) -> dict[str, object]:
    return {"from": "gpt", "value": text}


def contents(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def rules(conversation: Conversation) -> list[tuple[str, int | None]]:
    return [(edit.rule, edit.message) for edit in conversation.edits]


HELLO = [("user", "hi"), ("assistant", "hello")]


@pytest.mark.parametrize(
    "record",
    [
        pytest.param({"id": "a", "conversations": [human("hi"), gpt("hello")]}, id="sharegpt"),
        pytest.param({"items": [human("hi"), {**gpt("hello"), "markdown": None, "text": None}]}, id="sharegpt-api"),
        pytest.param({"conversations": [{"role": "user", "content": "hi"}, gpt("hello")]}, id="keys-mixed"),
        pytest.param({"conversations": [human("hi"), {"from": "gpt", "text": "hello"}]}, id="text-key"),
        pytest.param(
            {"conversations": [human("hi"), {"from": "gpt", "value": None, "text": "hello"}]}, id="null-then-text"
        ),
        pytest.param({"conversations": None, "items": [human("hi"), gpt("hello")]}, id="null-with-items"),
        pytest.param(
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}, id="openai"
        ),
        pytest.param({"instruction": "hi", "input": "", "output": "hello"}, id="alpaca"),
    ],
)
def test_each_format_is_recognised_without_an_edit(record: dict[str, object]) -> None:
    conversation = formats.parse(record)
    assert contents(conversation) == HELLO
    assert conversation.edits == []


def test_other_keys_of_a_record_are_kept_as_metadata() -> None:
    record = {"id": "a", "conversations": [human("hi")], "model": "gpt-4", "title": "T", "created": 1, "x": [1, None]}
    conversation = formats.parse(record)
    assert (conversation.source_id, conversation.model) == ("a", "gpt-4")
    assert conversation.metadata == {"title": "T", "created": 1, "x": [1, None]}


def test_metadata_is_plain_json() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    record = {
        "conversations": [human("hi")],
        "a": math.nan,
        "b": [math.inf, 2**70],
        "deep": deep,
        "model": {"slug": "x"},
    }
    metadata = formats.parse(record).metadata
    assert (metadata["a"], metadata["b"]) == (None, [None, str(2**70)])
    assert metadata["model"] == {"slug": "x"}
    json.dumps(metadata, allow_nan=False)


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_a_system_key_becomes_the_first_message(key: str) -> None:
    conversation = formats.parse({key: [human(5), gpt("hello")], "system": "Be kind."})
    assert contents(conversation) == [("system", "Be kind."), ("user", "5"), ("assistant", "hello")]
    assert rules(conversation) == [("value_to_text", 1)]
    assert conversation.metadata == {}


def test_a_system_key_stays_metadata_if_the_turns_begin_with_a_system_message() -> None:
    conversation = formats.parse({"messages": [{"role": "system", "content": "a"}, human("hi")], "system": "b"})
    assert contents(conversation) == [("system", "a"), ("user", "hi")]
    assert conversation.metadata == {"system": "b"}


@pytest.mark.parametrize(
    ("record", "expected", "noted"),
    [
        pytest.param({"id": 7}, HELLO, [("id_to_text", None)], id="int-id"),
        pytest.param({"id": 1.5}, HELLO, [("id_to_text", None)], id="float-id"),
        pytest.param({"id": ["a", "b"]}, HELLO, [("id_to_text", None)], id="list-id"),
        pytest.param({"id": None}, HELLO, [], id="null-id"),
        pytest.param({"id": ""}, HELLO, [], id="empty-id"),
        pytest.param(
            {"conversations": [human(42), gpt("hello")]},
            [("user", "42"), ("assistant", "hello")],
            [("value_to_text", 0)],
            id="number-value",
        ),
        pytest.param(
            {"conversations": [human("hi"), gpt([{"type": "text", "text": "hello"}])]},
            HELLO,
            [("parts_joined", 1)],
            id="list-value",
        ),
        pytest.param(
            {"conversations": [human(["a", "b"]), gpt({"content_type": "text", "parts": ["c"]})]},
            [("user", "a\nb"), ("assistant", "c")],
            [("parts_joined", 0), ("parts_joined", 1)],
            id="lists-of-text",
        ),
        pytest.param(
            {"conversations": [human("hi"), {"from": "gpt"}]},
            [("user", "hi"), ("assistant", "")],
            [("empty_value", 1)],
            id="missing-value",
        ),
        pytest.param(
            {"conversations": [human(None), gpt("hello")]},
            [("user", ""), ("assistant", "hello")],
            [("empty_value", 0)],
            id="null-value",
        ),
        pytest.param(
            {"conversations": [human("hi"), {"value": "hello"}, human("bye")]},
            [*HELLO, ("user", "bye")],
            [("role_inferred", 1)],
            id="missing-role-between",
        ),
        pytest.param(
            {"conversations": [human("hi"), {"from": None, "value": "hello"}]},
            HELLO,
            [("role_inferred", 1)],
            id="null-role",
        ),
        pytest.param(
            {"conversations": [{"value": "hi"}, gpt("hello")]}, HELLO, [("role_inferred", 0)], id="missing-role-first"
        ),
        pytest.param(
            {"conversations": {"0": human("hi"), "1": gpt("hello")}},
            HELLO,
            [("turns_from_dict", None)],
            id="turns-in-a-dict",
        ),
        pytest.param(
            {"conversations": {str(n): human(str(n)) for n in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)}},
            [("user", str(n)) for n in range(1, 11)],
            [("turns_from_dict", None)],
            id="dict-in-order-of-number",
        ),
        pytest.param(
            {"conversations": json.dumps([human("hi"), gpt("hello")])},
            HELLO,
            [("turns_from_text", None)],
            id="turns-as-text",
        ),
        pytest.param(
            {"conversations": [{"from": "Prompter", "value": "hi"}, {"from": "chatgpt", "value": "hello"}]},
            HELLO,
            [("role_alias", 0), ("role_alias", 1)],
            id="aliases",
        ),
        pytest.param(
            {"conversations": [{"from": "USER", "value": "hi"}, {"from": "gpt-4-turbo", "value": "hello"}]},
            HELLO,
            [("role_alias", 0), ("role_alias", 1)],
            id="other-case",
        ),
    ],
)
def test_defects_with_a_clear_meaning_are_repaired_and_recorded(
    record: dict[str, object], expected: list[tuple[str, str]], noted: list[tuple[str, int | None]]
) -> None:
    conversation = formats.parse({"conversations": [human("hi"), gpt("hello")], **record})
    assert contents(conversation) == expected
    assert rules(conversation) == noted


@pytest.mark.parametrize(
    ("source_id", "text"), [(7, "7"), (1.5, "1.5"), (["a", "b"], '["a","b"]'), ({"$oid": "f"}, '{"$oid":"f"}')]
)
def test_an_id_becomes_text(source_id: object, text: str) -> None:
    assert formats.parse({"id": source_id, "conversations": [human("hi")]}).source_id == text


@pytest.mark.parametrize(
    ("value", "rule", "text"),
    [
        pytest.param(None, "not_a_record", "null", id="null"),
        pytest.param("https://sharegpt.com/c/x", "not_a_record", "text", id="text"),
        pytest.param(3, "not_a_record", "a number", id="number"),
        pytest.param([1, 2], "not_a_record", "a list of 2", id="list"),
        pytest.param({"id": "a"}, "no_messages", "'id'", id="only-an-id"),
        pytest.param({}, "no_messages", "empty", id="empty-object"),
        pytest.param({"id": "a", "conversations": None}, "no_messages", "null", id="null-conversations"),
        pytest.param({"id": "a", "conversations": []}, "no_messages", "empty", id="empty-conversations"),
        pytest.param({"conversations": 5}, "no_messages", "a number", id="number-conversations"),
        pytest.param({"conversations": "hi"}, "no_messages", "text", id="text-conversations"),
        pytest.param({"conversations": {"a": human("x")}}, "no_messages", "'a'", id="dict-without-numbers"),
        pytest.param({"conversations": {"0": human("x"), "2": gpt("y")}}, "no_messages", "'2'", id="dict-with-a-gap"),
        pytest.param({"headline": "a", "body": "b"}, "unknown_format", "'headline', 'body'", id="other-keys"),
        pytest.param({"conversations": [human("a"), None]}, "bad_turn", "turn 1 is null", id="null-turn"),
        pytest.param({"conversations": ["a"]}, "bad_turn", "turn 0 is text", id="text-turn"),
        pytest.param({"conversations": [["a", "b", "c"]]}, "bad_turn", "a list of 3", id="list-turn"),
        pytest.param({"conversations": [human(True)]}, "bad_value", "true or false", id="bool-value"),
        pytest.param({"conversations": [human(math.nan)]}, "bad_value", "a number", id="nan-value"),
        pytest.param({"conversations": [human({"x": 1})]}, "bad_value", "an object", id="object-value"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "widget"}]}]},
            "bad_value",
            "'widget'",
            id="part-of-another-type",
        ),
        pytest.param({"conversations": [{"from": "narrator", "value": "a"}]}, "unknown_role", "'narrator'", id="role"),
        pytest.param({"conversations": [{"from": 5, "value": "a"}]}, "unknown_role", "a number", id="number-role"),
        pytest.param({"conversations": [{"value": "a"}]}, "unknown_role", "neighbours", id="lone-turn-without-role"),
        pytest.param(
            {"conversations": [human("a"), {"value": "b"}, gpt("c")]}, "unknown_role", "neighbours", id="role-unsettled"
        ),
        pytest.param(
            {"conversations": [human("a"), {"value": "b"}, {"value": "c"}, gpt("d")]},
            "unknown_role",
            "turn 1",
            id="two-roles-missing",
        ),
        pytest.param(
            {"messages": [{"role": "assistant", "tool_calls": "x"}]}, "bad_value", "tool calls", id="tool-calls"
        ),
        pytest.param({"instruction": "a", "output": "b", "history": ["x"]}, "bad_turn", "history", id="history"),
    ],
)
def test_other_defects_are_rejected_with_a_reason(value: object, rule: str, text: str) -> None:
    with pytest.raises(RecordError) as caught:
        formats.parse(value)
    assert caught.value.rule == rule
    assert text in caught.value.reason
    assert rule in formats.PROBLEMS


def test_a_tool_call_is_an_answer_without_text() -> None:
    call = '{"name": "weather", "arguments": {"city": "Rom"}}'
    turns = [
        human("hi"),
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "sunny"},
        gpt("ok"),
    ]
    conversation = formats.parse({"conversations": turns})
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[1].content == ""
    assert json.loads(conversation.messages[1].tool_calls or "") == [
        {"type": "function", "function": {"name": "weather", "arguments": '{"city":"Rom"}'}}
    ]
    assert rules(conversation) == [("tool_call", 1)]


def test_openai_tools_and_weights_are_kept() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "assistant", "content": "42", "weight": 0},
    ]
    conversation = formats.parse({"messages": messages})
    assert conversation.edits == []
    assert conversation.messages[0].role == "system"
    assert conversation.messages[1].name == "Ann"
    assert [message.train for message in conversation.messages] == [True, True, True, True, False]
    written = openai.dump(conversation)["messages"]
    assert written == [{"role": "system", "content": "Be brief."}, *messages[1:]]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"learn": False}])
def test_a_turn_can_be_left_out_of_the_loss(flag: dict[str, object]) -> None:
    conversation = formats.parse({"conversations": [human("hi"), {**gpt("hello"), **flag}]})
    assert [message.train for message in conversation.messages] == [True, False]


def test_alpaca_keeps_its_input_system_and_history() -> None:
    record = {"instruction": "Sum.", "input": "1 2", "output": "3", "system": "Be exact.", "history": [["a", "b"]]}
    conversation = formats.parse(record)
    assert contents(conversation) == [
        ("system", "Be exact."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", f"Sum.{INPUT_MARK}1 2"),
        ("assistant", "3"),
    ]


def test_alpaca_writes_a_single_exchange_and_refuses_others() -> None:
    record = {"id": "a", "instruction": "Sum.", "input": "1 2", "output": "3", "system": "Be exact."}
    assert alpaca.dump(alpaca.parse(record)) == record
    two = Conversation("a", [Message("user", "a"), Message("assistant", "b")] * 2)
    with pytest.raises(RecordError, match="one prompt and one answer"):
        alpaca.dump(two)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([Message("assistant", "a")], "role assistant, where user"),
        ([Message("user", "a"), Message("user", "b")], "role user, where assistant"),
        ([Message("user", "a")], "each with an answer"),
        ([Message("user", "a"), Message("tool", "b"), Message("assistant", "c")], "role tool"),
        ([Message("user", "a"), Message("assistant", "b", stop=False)], "was cut"),
        ([Message("user", "a"), Message("assistant", "b", train=False)], "not to be trained on"),
        ([Message("user", "a"), Message("assistant", "", tool_calls="[]")], "calls a tool"),
    ],
)
def test_vicuna_refuses_conversations_that_its_trainer_would_misread(messages: list[Message], text: str) -> None:
    with pytest.raises(RecordError, match=text):
        vicuna.dump(Conversation("a", messages))


def test_vicuna_puts_the_system_message_before_the_first_prompt() -> None:
    messages = [Message("system", "Be kind."), Message("user", "hi"), Message("assistant", "hello")]
    assert vicuna.dump(Conversation("a", messages)) == {
        "id": "a",
        "conversations": [human("Be kind.\n\nhi"), gpt("hello")],
    }


def test_an_unknown_format_gets_the_nearest_name_suggested() -> None:
    with pytest.raises(InputError, match="did you mean 'sharegpt'"):
        formats.get("sharegtp")
    for name, form in formats.FORMATS.items():
        assert formats.get(name) is form
        assert form.summary.endswith(".")


@pytest.mark.parametrize("key", ["conversations", "messages", "id", "metadata"])
def test_deep_nesting_rejects_the_record_without_ending_the_run(key: str) -> None:
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    record: dict[str, object] = {"conversations": [human(deep)], key: deep}
    try:
        formats.parse(record)
    except RecordError as error:
        assert error.rule in formats.PROBLEMS
    while deep:  # unwrap from the outside, because the interpreter frees nested lists recursively
        deep = deep.pop()


@given(RECORDS)
def test_any_json_value_is_parsed_or_rejected(value: object) -> None:
    try:
        conversation = formats.parse(value)
    except RecordError as error:
        assert error.rule in formats.PROBLEMS
        assert error.reason
        error.evidence.encode()
        error.reason.encode()
        return
    assert conversation.messages
    for message in conversation.messages:
        assert isinstance(message.content, str)
        assert message.tool_calls is None or isinstance(json.loads(message.tool_calls), list)
    json.dumps(conversation.metadata, allow_nan=False)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAME = st.none() | TEXT.filter(bool)
CALLS = st.none() | st.just('[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\\"x\\":1}"}}]')
PLAIN_TEXT = TEXT.filter(bool)
REASONING = st.none() | TEXT.filter(str.strip) | st.just("a </think> b")
EXTRA = st.none() | st.sampled_from(['{"rank":3}', '{"finish_reason":"stop","usage":{"n":[1,null]}}', '{"note":"b"}'])
FLAG = st.booleans()
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["system", "user"]), PLAIN_TEXT, NAME, train=FLAG, extra=EXTRA)
    | st.builds(Message, st.just("tool"), PLAIN_TEXT, NAME, tool_call_id=st.just("c1") | NAME, extra=EXTRA)
    | st.builds(
        Message, st.just("assistant"), PLAIN_TEXT, NAME, CALLS, FLAG, FLAG, REASONING, train_reasoning=FLAG, extra=EXTRA
    ),
    min_size=1,
    max_size=6,
)
METADATA = st.dictionaries(
    st.sampled_from(["title", "created", "system", "url"]), TEXT | st.integers(-9, 9), max_size=3
)
TOOLS = st.none() | st.just('[{"type":"function","function":{"name":"f","parameters":{}}}]')
CONVERSATIONS = st.builds(
    Conversation,
    st.none() | PLAIN_TEXT,
    MESSAGES,
    st.none() | PLAIN_TEXT,
    TOOLS,
    metadata=METADATA,
).filter(lambda it: it.messages[0].role == "system" or "system" not in it.metadata)


def comparable(conversation: Conversation) -> tuple[object, ...]:
    """Return all that a format must keep; a result of a tool gets the id of its call."""
    messages = [
        replace(
            message,
            tool_call_id=call_id or None,
            train_reasoning=message.train_reasoning or message.reasoning is None,
        )
        for message, call_id in zip(conversation.messages, call_ids(conversation.messages), strict=True)
    ]
    return (
        *(conversation.source_id, messages, conversation.model, conversation.tools, conversation.rejected_answer),
        conversation.metadata,
    )


@pytest.mark.parametrize("form", [sharegpt, native], ids=["sharegpt", "jsonl"])
@given(CONVERSATIONS)
def test_lossless_formats_round_trip(form: Any, conversation: Conversation) -> None:
    again = formats.parse(json.loads(json.dumps(form.dump(conversation))))
    assert comparable(again) == comparable(conversation)
    assert {edit.rule for edit in again.edits} <= {"second_system", "unlinked_result", "reasoning_from_text"}


@given(CONVERSATIONS)
def test_openai_round_trips_everything_but_cut_answers_which_it_refuses(conversation: Conversation) -> None:
    if not all(message.stop for message in conversation.messages):
        with pytest.raises(RecordError, match="was cut"):
            openai.dump(conversation)
        return
    again = formats.parse(json.loads(json.dumps(openai.dump(conversation))))
    assert comparable(again) == comparable(conversation)
    assert {edit.rule for edit in again.edits} <= {"second_system", "unlinked_result"}


MALFORMED = {
    "conversations_dict": "turns_from_dict",
    "deep_nesting": None,
    "huge_single_value": None,
    "int_id": "id_to_text",
    "list_id": "id_to_text",
    "list_value": "parts_joined",
    "lone_surrogate_answer": None,
    "lone_surrogate_prompt": None,
    "markup_in_prompt": None,
    "missing_conversations": "no_messages",
    "missing_from": "role_inferred",
    "missing_id": None,
    "missing_value": "empty_value",
    "non_dict_turn": "bad_turn",
    "null_conversations": "no_messages",
    "null_turn": "bad_turn",
    "null_value": "empty_value",
    "number_value": "value_to_text",
    "row_null": "not_a_record",
    "row_string": "not_a_record",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_row_affects_no_other_row(shared: Path, name: str) -> None:
    rows = json.loads((shared / "data" / "malformed" / f"{name}.json").read_text("utf-8"))
    reported: list[str] = []
    for row in rows:
        try:
            reported += [edit.rule for edit in formats.parse(row).edits]
        except RecordError as error:
            reported.append(error.rule)
    expected = MALFORMED[name]
    assert reported == ([expected] if expected else [])
