"""Turns as tables hold them: a list for each key, and text as JSON, Python and NumPy print it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import formats

TURNS = [{"from": "human", "value": "Name a sea by Italy."}, {"from": "gpt", "value": 'It\'s the "Adriatic".\n'}]
CONTENTS = [("user", TURNS[0]["value"]), ("assistant", TURNS[1]["value"])]


def contents(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in formats.parse(record).messages]


def rules(record: dict[str, Any]) -> list[str]:
    return [edit.rule for edit in formats.parse(record).edits]


def columns(turns: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [turn.get(key) for turn in turns] for key in turns[0]}


def test_an_object_with_a_list_for_each_key_is_a_list_of_turns() -> None:
    record = {"conversations": columns(TURNS)}
    assert contents(record) == CONTENTS and rules(record) == ["turns_from_columns"]
    openai = {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Yo"], "name": None}}
    assert contents(openai) == [("user", "Hi"), ("assistant", "Yo")]


@pytest.mark.parametrize(
    "value",
    [
        {"from": ["human", "gpt"], "value": ["Hi"]},
        {"from": ["human"], "value": "Hi"},
        {"from": [], "value": []},
        {"from": ["human"], "other": ["Hi"]},
        {"from": "human", "value": "Hi"},
    ],
)
def test_lists_that_do_not_fit_are_rejected(value: object) -> None:
    with pytest.raises(RecordError) as caught:
        formats.parse({"conversations": value})
    assert caught.value.rule == "no_messages"


TEXTS = {
    "JSON": json.dumps(TURNS),
    "Python": repr(TURNS),
    "NumPy": str(np.array(TURNS)),
    "NumPy's repr": repr(np.array(TURNS)),
    "NumPy without commas": f"[{TURNS[0]!r} {TURNS[1]!r}]",
    "white space": f" \n{TURNS!r}\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_list_of_turns_is_read_from_text(text: str) -> None:
    assert contents({"conversations": text}) == CONTENTS
    assert rules({"conversations": text}) == ["turns_from_text"]


@pytest.mark.parametrize(
    "text",
    ["Hello", "['a' 'b']", "[{'from': 'human', 'value': f'x'}]", "__import__('os')", "[" * 5000, "[{]", "{}"],
)
def test_other_text_is_not_a_list_of_turns(text: str) -> None:
    with pytest.raises(RecordError) as caught:
        formats.parse({"conversations": text})
    assert caught.value.rule == "no_messages"


def test_text_with_parts_left_out_is_named() -> None:
    with np.printoptions(threshold=3), pytest.raises(RecordError, match="printed with parts left out"):
        formats.parse({"conversations": str(np.array(TURNS * 20))})
    dots = [{"from": "human", "value": "Well..."}, {"from": "gpt", "value": "..."}]
    assert contents({"conversations": str(np.array(dots))}) == [("user", "Well..."), ("assistant", "...")]


@given(st.lists(st.text(), min_size=2, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_texts_survive_being_printed_by_numpy(texts: list[str]) -> None:
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    assert contents({"messages": str(np.array(turns))}) == [(turn["role"], turn["content"]) for turn in turns]
    assert contents({"messages": repr(np.array(turns))}) == [(turn["role"], turn["content"]) for turn in turns]


@pytest.mark.parametrize("value", [None, "", "nan", "None", "NULL", float("nan")])
def test_an_alpaca_input_that_a_table_writes_for_nothing_is_no_input(value: object) -> None:
    record = {"instruction": "Name a gulf.", "input": value, "output": "The Gulf of Aden."}
    assert contents(record)[0] == ("user", "Name a gulf.")


def test_an_alpaca_input_of_0_is_an_input() -> None:
    assert contents({"instruction": "Is it even?", "input": 0, "output": "Yes."})[0][1].endswith("0")
