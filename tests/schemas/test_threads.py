"""Turns that are a tree: one path is read, and no answer is joined with its regenerated one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.schemas import formats

Turn = dict[str, Any]


def turn(name: str, role: str, parent: str | None, **others: object) -> Turn:
    return {"id": name, "role": role, "content": f"text {name}", "parent_id": parent, **others}


def read(*turns: object) -> tuple[list[str], list[int]]:
    """Return the ids of the turns that were read, and the numbers of those that were not."""
    conversation = formats.parse({"messages": list(turns)})
    left_out = [edit.count for edit in conversation.edits if edit.rule == "other_replies"]
    return [message.content.removeprefix("text ") for message in conversation.messages], left_out


def test_a_regenerated_answer_is_read_alone() -> None:
    assert read(turn("p", "user", None), turn("a", "assistant", "p"), turn("b", "assistant", "p")) == (["p", "b"], [1])


def test_an_edited_first_prompt_has_its_own_branch() -> None:
    root = "00000000-0000-0000-0000-000000000000"
    turns = [turn("p", "user", root), turn("a", "assistant", "p"), turn("q", "user", root), turn("b", "assistant", "q")]
    assert read(*turns) == (["q", "b"], [2])


def test_turns_in_another_order_are_put_in_theirs() -> None:
    assert read(turn("a", "assistant", "p"), turn("p", "user", None)) == (["p", "a"], [])


def test_results_of_calls_in_one_turn_all_stay() -> None:
    results = [turn(name, "tool", "a") for name in "rst"]
    turns = [turn("p", "user", None), turn("a", "assistant", "p"), *results, turn("b", "assistant", "t")]
    assert read(*turns) == (list("parstb"), [])


@pytest.mark.parametrize("key", ["children", "replies"])
def test_turns_that_hold_their_replies_are_read_along_the_last_ones(key: str) -> None:
    def holding(name: str, speaker: str, *replies: Turn) -> Turn:
        return {"messageId": name, "sender": speaker, "text": f"text {name}", key: list(replies)}

    chat = holding(
        "p", "User", holding("a", "GPT-4"), holding("b", "GPT-4", holding("q", "User", holding("c", "GPT-4")))
    )
    assert read(chat) == (["p", "b", "q", "c"], [1])


def test_replies_may_be_as_deep_as_a_chat_is_long() -> None:
    chat: Turn = {"role": "assistant", "content": "text 0", "children": []}
    for number in range(1, 400):
        role = "user" if number % 2 else "assistant"
        chat = {"role": role, "content": f"text {number}", "children": [chat]}
    assert read(chat) == ([str(number) for number in range(399, -1, -1)], [])


@pytest.mark.parametrize(
    "turns",
    [
        [turn("p", "user", None), turn("a", "assistant", "p"), turn("q", "user", "a"), turn("b", "assistant", "q")],
        [turn("p", "user", "chat"), turn("a", "assistant", "chat")],
        [turn("p", "user", None), turn("a", "assistant", None)],
        [turn("x", "user", None), turn("x", "assistant", None)],
        [turn("p", "user", None, children=3), turn("a", "assistant", None, replies=["thanks"])],
        [{"role": "user", "content": "text p"}, {"role": "assistant", "content": "text a", "children": []}],
        [turn("p", "user", None), {"role": "assistant", "content": "text a"}],
        [turn("p", "user", None, parentId=["x"]), turn("a", "assistant", "p", children=None)],
    ],
    ids=["linked", "one parent of no turn", "no parents", "same ids", "counts", "empty", "unlinked", "odd values"],
)
def test_a_chat_in_order_stays(turns: list[Turn]) -> None:
    expected = [each["content"].removeprefix("text ") for each in turns]
    assert read(*turns) == (expected, [])


def test_a_cycle_is_read_as_far_as_it_goes() -> None:
    names, left_out = read(turn("p", "user", "a"), turn("a", "assistant", "p"))
    assert (names, left_out) == (["p", "a"], [])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=7))
def test_each_turn_is_read_or_counted(parents: list[int]) -> None:
    turns = [turn("0", "user", None)]
    for number, place in enumerate(parents, 1):
        parent = turns[place % number]
        turns.append(turn(str(number), "assistant" if parent["role"] == "user" else "user", parent["id"]))
    names, left_out = read(*turns)
    assert len(names) + sum(left_out) == len(turns)
    by_id = {each["id"]: each for each in turns}
    assert [by_id[name]["parent_id"] for name in names] == [None, *names[:-1]]
    assert names[-1] == turns[-1]["id"]
