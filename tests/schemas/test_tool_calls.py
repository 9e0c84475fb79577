"""Tool calls and definitions in every shape that dumps have are read as OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import formats
from curate.schemas.conversation import Conversation
from curate.schemas.reading import tool_calls

OSLO = {"type": "function", "function": {"name": "clock", "arguments": '{"zone":"Oslo"}'}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab'\" {", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)


def read(calls: object) -> tuple[Any, list[str]]:
    """Read calls, and name the edits."""
    conversation = Conversation(None, [])
    text = tool_calls.read_calls(conversation, calls, 1)
    return text and json.loads(text), [edit.rule for edit in conversation.edits]


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([OSLO], id="openai"),
        pytest.param(OSLO, id="one-call"),
        pytest.param(json.dumps([OSLO]), id="json-text"),
        pytest.param([json.dumps(OSLO)], id="each-as-json-text"),
        pytest.param({"name": "clock", "arguments": '{"zone":"Oslo"}'}, id="older-function-call"),
        pytest.param({"name": "clock", "arguments": {"zone": "Oslo"}}, id="arguments-as-object"),
        pytest.param([{"name": "clock", "parameters": {"zone": "Oslo"}}], id="llama-parameters"),
        pytest.param([{"type": "tool_use", "name": "clock", "input": {"zone": "Oslo"}}], id="anthropic"),
        pytest.param([{"function": {"name": "clock", "arguments": {"zone": "Oslo"}}, "id": None}], id="null-id"),
    ],
)
def test_every_shape_of_a_call_is_read_as_openais(calls: object) -> None:
    assert read(calls) == ([OSLO], [])


@pytest.mark.parametrize("calls", [None, [], "", "[]", {}])
def test_no_calls_are_nothing(calls: object) -> None:
    assert read(calls) == (None, [])


@pytest.mark.parametrize("calls", ["x", "3", [1], [{}], [OSLO, None]])
def test_what_is_no_call_is_named(calls: object) -> None:
    with pytest.raises(RecordError) as error:
        read(calls)
    assert error.value.rule == "bad_value"
    assert "tool calls of turn 1" in error.value.reason


@pytest.mark.parametrize("call", [{"type": "custom", "custom": {"name": "f", "input": "x"}}, {"id": 1}])
def test_a_call_of_a_providers_own_kind_is_unchanged(call: dict[str, object]) -> None:
    assert read([call]) == ([call], [])


def test_the_id_of_a_call_and_its_other_keys_are_kept() -> None:
    calls, _ = read([{"id": "k1", "index": 2, "function": {"name": "f", "arguments": "{}", "strict": True}}])
    assert calls == [
        {"id": "k1", "type": "function", "function": {"name": "f", "arguments": "{}", "strict": True}, "index": 2}
    ]


def test_keys_that_a_table_filled_with_nulls_are_removed_by_name() -> None:
    arguments = {"zone": "Oslo", "city": None, "at": {"hour": 1, "minute": None}, "days": [{"n": 1, "m": None}, None]}
    calls, edits = read([{"name": "clock", "arguments": arguments}])
    assert json.loads(calls[0]["function"]["arguments"]) == {
        "zone": "Oslo",
        "at": {"hour": 1},
        "days": [{"n": 1}, None],
    }
    assert edits == ["null_arguments"]


def test_a_null_in_the_models_own_text_is_kept() -> None:
    text = '{"zone": null}'
    assert read([{"name": "clock", "arguments": text}]) == (
        [{"type": "function", "function": {"name": "clock", "arguments": text}}],
        [],
    )


@pytest.mark.parametrize("times", [1, 2])
def test_arguments_encoded_twice_are_decoded(times: int) -> None:
    text = '{"zone": "Oslo"}'
    encoded = text
    for _ in range(times):
        encoded = json.dumps(encoded)
    calls, edits = read([{"name": "clock", "arguments": encoded}])
    assert calls[0]["function"]["arguments"] == text
    assert edits == ["arguments_decoded"]


@given(JSON)
def test_arguments_lose_nothing_but_nulls(value: object) -> None:
    text = tool_calls.clean_arguments(value)
    expected = json.loads(value) if isinstance(value, str) and _is_json(value) else value
    if not isinstance(value, str):
        expected = tool_calls.strip_nulls(value)[0]
        assert json.loads(text) == expected


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


CALL = '{"name": "clock", "arguments": {"zone": "Oslo"}}'


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        pytest.param(f"<tool_call>\n{CALL}\n</tool_call>", "", id="hermes"),
        pytest.param(f"I look.\n<tool_call>{CALL}</tool_call>\n", "I look.", id="after-text"),
        pytest.param("<tool_call>{'name': 'clock', 'arguments': {'zone': 'Oslo'}}</tool_call>", "", id="python-quotes"),
        pytest.param(f"<functioncall> {CALL} <|endoftext|>", "", id="glaive"),
        pytest.param(
            """<functioncall> {"name": "clock", "arguments": '{"zone":"Oslo"}'} <|endoftext|>""", "", id="glaive-2"
        ),
        pytest.param(f"<functioncall>{CALL}</functioncall>", "", id="glaive-closed"),
        pytest.param(f"<tool_call>{CALL}", "", id="without-end"),
    ],
)
def test_calls_in_the_marks_of_a_text_are_read(text: str, rest: str) -> None:
    conversation = Conversation(None, [])
    content, calls = tool_calls.split_calls(conversation, text, 1)
    assert content == rest
    assert json.loads(calls or "") == [OSLO]
    assert [edit.rule for edit in conversation.edits] == ["call_from_text"]


@pytest.mark.parametrize(
    "text",
    [
        "Qwen writes <tool_call> before a call.",
        f"Write <tool_call>{CALL}</tool_call> to call a tool.",
        f"```\n<tool_call>{CALL}</tool_call>",
        "<tool_call>{broken</tool_call>",
        f"<tool_call>{CALL}</tool_call><tool_call>nothing</tool_call>",
        "<functioncall> ",
    ],
)
def test_a_text_that_only_mentions_calls_is_kept(text: str) -> None:
    conversation = Conversation(None, [])
    assert tool_calls.split_calls(conversation, text, 1) == (text, None)
    assert {edit.rule for edit in conversation.edits} <= {"unread_call"}


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n<function=clock>\n<parameter=zone>\nOslo\n</parameter>\n</function>\n</tool_call>",
        "<function=clock><parameter=zone>Oslo</parameter></function>",
        '<function=clock>{"zone": "Oslo"}</function>',
        '<|python_tag|>{"name": "clock", "parameters": {"zone": "Oslo"}}<|eom_id|>',
        '[TOOL_CALLS][{"name": "clock", "arguments": {"zone": "Oslo"}}]</s>',
        '[TOOL_CALLS] clock[ARGS]{"zone": "Oslo"}',
    ],
)
def test_an_answer_that_is_nothing_but_calls_is_read(text: str) -> None:
    turns = [{"role": "user", "content": "Time?"}, {"role": "assistant", "content": text}]
    message = formats.parse({"messages": turns}).messages[1]
    assert (message.content, json.loads(message.tool_calls or "")) == (
        "",
        [{"type": "function", "function": {"name": "clock", "arguments": '{"zone":"Oslo"}'}}],
    )


@pytest.mark.parametrize(
    "text",
    [
        "<|python_tag|>print(1)",
        "[TOOL_CALLS]",
        "<function=f><parameter=x>1</function>",
        "<function=f>{}</function> Done.",
    ],
)
def test_a_call_that_cannot_be_read_whole_stays_text_by_name(text: str) -> None:
    conversation = Conversation(None, [])
    assert tool_calls.split_calls(conversation, text, 1) == (text, None)
    assert [edit.rule for edit in conversation.edits] == ["unread_call"]


def test_results_in_marks_are_split() -> None:
    assert tool_calls.split_results("<tool_response>\n9-17\n</tool_response>\n<tool_response>{}</tool_response>") == [
        "9-17",
        "{}",
    ]
    assert tool_calls.split_results("so <tool_response>9</tool_response>") == []
    assert tool_calls.split_results("<tool_response>9") == []


PARAMETERS = {"type": "object", "properties": {"zone": {"type": "string"}}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": PARAMETERS}}


@pytest.mark.parametrize(
    ("tools", "edits"),
    [
        pytest.param([CLOCK], [], id="openai"),
        pytest.param(json.dumps([CLOCK]), [], id="json-text"),
        pytest.param([{"name": "clock", "parameters": PARAMETERS}], [], id="older-functions"),
        pytest.param([{"name": "clock", "input_schema": PARAMETERS}], [], id="anthropic"),
        pytest.param({"name": "clock", "parameters": PARAMETERS}, [], id="one-tool"),
        pytest.param(
            [{"type": "function", "function": {"name": "clock", "description": None, "parameters": PARAMETERS}}],
            ["null_arguments"],
            id="filled-with-nulls",
        ),
    ],
)
def test_definitions_are_read_as_openais(tools: object, edits: list[str]) -> None:
    conversation = Conversation(None, [])
    assert json.loads(tool_calls.read_tools(conversation, tools) or "") == [CLOCK]
    assert [edit.rule for edit in conversation.edits] == edits


@pytest.mark.parametrize("tools", [None, [], "", "calculator", ["calculator"], [{}], [{"description": "x"}], 3])
def test_what_defines_no_tool_is_none(tools: object) -> None:
    assert tool_calls.read_tools(Conversation(None, []), tools) is None
