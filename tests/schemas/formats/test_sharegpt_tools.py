"""Calls and results of tools in ShareGPT's records: written as LLaMA-Factory reads them, and read again unchanged."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.schemas import Conversation, Message, formats
from curate.schemas.formats import sharegpt

ODD, EVEN = ("human", "observation"), ("gpt", "function_call")


def call(name: str, arguments: object, call_id: str | None = None) -> dict[str, Any]:
    head = {"id": call_id} if call_id else {}
    return {**head, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def calls(*items: dict[str, Any]) -> str:
    return json.dumps(items, separators=(",", ":"))


def read_as_llama_factory(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the turns that LLaMA-Factory's converter accepts: alternating, and each call an object with two keys."""
    turns = [turn for turn in record["conversations"] if turn["from"] != "system"]
    for place, turn in enumerate(turns):
        assert turn["from"] in (ODD, EVEN)[place % 2], "it would skip the record"
        if turn["from"] == "function_call":
            value = json.loads(turn["value"].rpartition("</think>")[2])
            for function in value if isinstance(value, list) else [value]:
                assert isinstance(function["name"], str) and isinstance(function["arguments"], dict)
    return [(turn["from"], turn["value"]) for turn in turns]


def written_and_read(*messages: Message) -> tuple[list[tuple[str, str]], list[Message]]:
    record = json.loads(json.dumps(sharegpt.dump(Conversation("a", list(messages)))))
    return read_as_llama_factory(record), formats.parse(record).messages


PROMPT, ANSWER = Message("user", "Is it cold?"), Message("assistant", "It is.")


def test_one_call_is_a_turn_of_its_own() -> None:
    messages = [PROMPT, Message("assistant", "", tool_calls=calls(call("weather", {"city": "Oslo"}, "c1")))]
    messages += [Message("tool", "4", name="weather", tool_call_id="c1"), ANSWER]
    turns, again = written_and_read(*messages)
    assert turns == [
        ("human", "Is it cold?"),
        ("function_call", '{"name":"weather","arguments":{"city":"Oslo"}}'),
        ("observation", "4"),
        ("gpt", "It is."),
    ]
    assert again == messages


def test_several_calls_and_results_are_one_turn_each() -> None:
    both = calls(call("f", {"x": 1}, "c1"), call("g", {}, "c2"))
    results = [
        Message("tool", "1", tool_call_id="c1"),
        Message("tool", "2", name="g", tool_call_id="c2", extra='{"k":1}'),
    ]
    messages = [PROMPT, Message("assistant", "I look.", tool_calls=both, reasoning="Both."), *results, ANSWER]
    turns, again = written_and_read(*messages)
    assert [name for name, _ in turns] == ["human", "function_call", "observation", "gpt"]
    assert turns[2][1] == "1\n</tool_response>\n<tool_response>\n2"
    assert again == messages


@pytest.mark.parametrize(
    "value",
    [
        calls(call("f", [1])),
        calls({"type": "function", "function": {"name": "f", "arguments": "{"}}),
        calls({"type": "web_search_call", "query": "tea"}),
        calls({"type": "function", "function": {"name": "f", "arguments": "{}"}}, {"type": "custom", "input": "x"}),
    ],
    ids=["no object", "no JSON", "another kind", "one of two"],
)
def test_a_call_that_llama_factory_cannot_read_stays_a_key(value: str) -> None:
    messages = [PROMPT, Message("assistant", "", tool_calls=value)]
    record = sharegpt.dump(Conversation("a", messages))
    assert record["conversations"][1]["from"] == "gpt"  # type: ignore[index]
    assert [message.tool_calls for message in formats.parse(json.loads(json.dumps(record))).messages] == [None, value]


def test_a_key_of_calls_that_differs_from_the_value_is_kept() -> None:
    turn = {"from": "function_call", "value": '{"name": "f", "arguments": {}}', "tool_calls": [call("g", {})]}
    conversation = formats.parse({"conversations": [{"from": "human", "value": "Is it?"}, turn]})
    message = conversation.messages[1]
    assert json.loads(message.tool_calls or "")[0]["function"]["name"] == "f" and '"g"' in (message.extra or "")


@pytest.mark.parametrize("results", [["1", "2"], [{"value": "1"}, {"value": "3"}], [{"value": "1"}], "12"], ids=repr)
def test_results_that_are_not_those_of_the_value_are_kept(results: object) -> None:
    turn = {"from": "observation", "value": "1\n</tool_response>\n<tool_response>\n2", "results": results}
    turns = [{"from": "human", "value": "Is it?"}, turn]
    [_, message] = formats.parse({"conversations": turns}).messages
    assert json.loads(message.extra or "")["results"] == results


TEXT = st.sampled_from(["", "a", "b\nc", " d "])
CALLS = st.lists(
    st.builds(call, st.sampled_from("fg"), st.dictionaries(TEXT, TEXT | st.none(), max_size=2)), min_size=1
)
STEPS = st.builds(
    lambda made, text, reasoning, train, results: [
        Message("assistant", text, tool_calls=calls(*made), reasoning=reasoning, train=train),
        *(Message("tool", result) for result in results),
    ],
    CALLS,
    TEXT,
    st.none() | st.just("I think."),
    st.booleans(),
    st.lists(TEXT, min_size=1, max_size=3),
)


@given(st.lists(STEPS, max_size=3))
def test_calls_and_results_are_read_again_as_they_were(steps: list[list[Message]]) -> None:
    messages = [PROMPT, *(message for step in steps for message in step), ANSWER]
    _, again = written_and_read(*messages)
    assert [replace(message, tool_call_id=None) for message in again] == messages
