"""Turns are put in order, broken text is repaired, and every change is recorded."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.pipeline import repair_text, repair_turns
from curate.pipeline.repair_turns import LOSSES, REPAIRS, RepairSettings
from curate.schemas import Conversation, Message, Role, formats

ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
LIMIT = "!Too many requests in 1 hour. Try again later."
DEFAULT = RepairSettings()


def chat(*turns: str) -> Conversation:
    """Build a conversation from texts whose first letter is the role: `u hello`."""
    return Conversation("x", [Message(ROLES[turn[0]], turn[2:]) for turn in turns])


def order(conversation: Conversation, settings: RepairSettings) -> tuple[Conversation, list[repair_turns.LostExchange]]:
    return conversation, repair_turns.order(conversation, settings)


def shown(conversation: Conversation) -> list[str]:
    return [f"{message.role[0]} {message.content}" for message in conversation.messages]


def edits(conversation: Conversation) -> list[tuple[str, int | None]]:
    return [(edit.rule, edit.message) for edit in conversation.edits]


@pytest.mark.parametrize(
    ("turns", "kept", "places", "noted"),
    [
        pytest.param(["u 1", "a 2"], ["u 1", "a 2"], [0, 1], [], id="in-order"),
        pytest.param(
            ["s 0", "u 1", "a 2", "u 3", "a 4"],
            ["s 0", "u 1", "a 2", "u 3", "a 4"],
            [0, 1, 2, 3, 4],
            [],
            id="with-system",
        ),
        pytest.param(
            ["a 0", "a 1", "u 2", "a 3"],
            ["u 2", "a 3"],
            [2, 3],
            [("leading_answer", 0), ("leading_answer", 1)],
            id="leading",
        ),
        pytest.param(
            ["s 0", "a 1", "u 2", "a 3"],
            ["s 0", "u 2", "a 3"],
            [0, 2, 3],
            [("leading_answer", 1)],
            id="system-then-leading",
        ),
        pytest.param(["u 1", "a 2", "u 3"], ["u 1", "a 2"], [0, 1], [("trailing_prompt", 2)], id="trailing"),
        pytest.param(["u 1", "u 2", "a 3"], ["u 1\n\n2", "a 3"], [0, 2], [("join_turns", 1)], id="joined-prompts"),
        pytest.param(
            ["u 1", "a 2", "a 3", "a 4"],
            ["u 1", "a 2\n\n3\n\n4"],
            [0, 1],
            [("join_turns", 2), ("join_turns", 3)],
            id="joined-answers",
        ),
        pytest.param(["u 1", "u 1", "a 2"], ["u 1", "a 2"], [0, 2], [("repeated_turn", 1)], id="repeated"),
        pytest.param(
            ["s 0", "s 1", "u 2", "a 3"], ["s 0\n\n1", "u 2", "a 3"], [0, 2, 3], [("join_system", 1)], id="two-systems"
        ),
        pytest.param(
            ["u 1", "a 2", "s 3", "u 4", "a 5"],
            ["u 1", "a 2", "s 3", "u 4", "a 5"],
            [0, 1, 2, 3, 4],
            [],
            id="system-amid",
        ),
        pytest.param(
            ["u 1", "s 2", "a 3", "s 4", "a 5"],
            ["u 1", "s 2", "a 3", "s 4", "a 5"],
            [0, 1, 2, 3, 4],
            [],
            id="system-inside-an-exchange",
        ),
        pytest.param(["u 1", "a 2", "s 3"], ["u 1", "a 2"], [0, 1], [("trailing_prompt", 2)], id="system-last"),
        pytest.param(["s ", "u 1", "a 2"], ["u 1", "a 2"], [1, 2], [("empty_turn", 0)], id="empty-system"),
        pytest.param(
            ["u 1", "u \u200b", "a 2"], ["u 1", "a 2"], [0, 2], [("empty_turn", 1)], id="empty-beside-a-prompt"
        ),
        pytest.param(["u 1", "a  ", "a 2"], ["u 1", "a 2"], [0, 2], [("empty_turn", 1)], id="empty-beside-an-answer"),
        pytest.param(["u 1", "a 2", "t 3", "a 4"], ["u 1", "a 2", "t 3", "a 4"], [0, 1, 2, 3], [], id="tool-inside"),
        pytest.param(
            ["u 1", "a 2", "t 3", "t ", "a 4"], ["u 1", "a 2", "t 3", "t ", "a 4"], [0, 1, 2, 3, 4], [], id="two-tools"
        ),
        pytest.param(
            ["t 0", "u 1", "a 2", "t 3"],
            ["u 1", "a 2"],
            [1, 2],
            [("leading_answer", 0), ("trailing_prompt", 3)],
            id="tool-at-both-ends",
        ),
    ],
)
def test_turns_are_put_in_order(
    turns: list[str], kept: list[str], places: list[int], noted: list[tuple[str, int | None]]
) -> None:
    conversation, lost = order(chat(*turns), DEFAULT)
    assert shown(conversation) == kept
    assert [message.place for message in conversation.messages] == places
    assert lost == []
    assert edits(conversation) == noted


@pytest.mark.parametrize(
    ("turns", "kept", "lost"),
    [
        pytest.param(["u 1", "a ", "u 2", "a 3"], ["u 2", "a 3"], [("empty_answer", (0, 2))], id="empty-answer"),
        pytest.param(
            ["u 1", "a 2", "u 3", "a \n\u200b\ufeff"], ["u 1", "a 2"], [("empty_answer", (2, 4))], id="invisible-answer"
        ),
        pytest.param(["u ", "a 2", "u 3", "a 4"], ["u 3", "a 4"], [("empty_prompt", (0, 2))], id="empty-prompt"),
        pytest.param(
            ["s 0", "u 1", "a 2", "s 3", "u 4", "a ", "u 5", "a 6"],
            ["s 0", "u 1", "a 2", "s 3", "u 5", "a 6"],
            [("empty_answer", (3, 6))],
            id="its-system-message-stays-in-force",
        ),
        pytest.param(
            ["s 0", "u ", "a 2", "s 3", "u 4", "a 5"],
            ["s 0\n\n3", "u 4", "a 5"],
            [("empty_prompt", (1, 3))],
            id="then-a-system-message",
        ),
        pytest.param(["u 1", "a " + LIMIT, "u 3", "a 4"], ["u 3", "a 4"], [("rate_limit", (0, 2))], id="rate-limit"),
        pytest.param(
            ["u 1", "a " + LIMIT[1:] + " Sorry.", "u 3", "a 4"],
            ["u 3", "a 4"],
            [("rate_limit", (0, 2))],
            id="rate-limit-plain",
        ),
        pytest.param(["u 1", "t 2", "u 3", "a 4"], ["u 3", "a 4"], [("no_answer", (0, 2))], id="tool-alone"),
        pytest.param(
            ["u 0", "u 1", "a ", "u 2", "a 3"],
            ["u 2", "a 3"],
            [("empty_answer", (0, 3))],
            id="prompts-are-not-joined-over-it",
        ),
        pytest.param(
            ["u 1", "a 2", "t 3", "u 4", "a "], ["u 1", "a 2"], [("empty_answer", (3, 5))], id="tool-left-at-the-end"
        ),
    ],
)
def test_an_empty_exchange_is_the_only_one_rejected(
    turns: list[str], kept: list[str], lost: list[tuple[str, tuple[int, int]]]
) -> None:
    conversation, losses = order(chat(*turns), DEFAULT)
    assert shown(conversation) == kept
    assert [(loss.rule, loss.message_range) for loss in losses] == lost
    assert all(loss.rule in LOSSES and loss.reason for loss in losses)


@pytest.mark.parametrize("rule", ["empty_answer", "rate_limit"])
def test_a_setting_rejects_the_whole_record_instead(rule: str) -> None:
    answer = {"empty_answer": "a ", "rate_limit": "a " + LIMIT}[rule]
    with pytest.raises(RecordError) as caught:
        order(chat("u 1", answer, "u 2", "a 3"), RepairSettings(empty_answer="record", rate_limit="record"))
    assert caught.value.rule == rule


def test_a_setting_ends_the_conversation_at_an_empty_answer() -> None:
    settings = RepairSettings(empty_answer="cut")
    conversation, losses = order(chat("u 1", "a 2", "u 3", "a ", "u 5", "a 6"), settings)
    assert shown(conversation) == ["u 1", "a 2"]
    assert [(loss.rule, loss.message_range) for loss in losses] == [("empty_answer", (2, 6))]


def test_with_the_cut_setting_a_turn_that_begins_unprintably_is_empty() -> None:
    turns = ("u 1", "a 2", "u \u200bhello", "a 4")
    conversation, (lost_one,) = order(chat(*turns), RepairSettings(empty_answer="cut"))
    assert shown(conversation) == ["u 1", "a 2"]
    assert lost_one.reason.startswith("message 2, of role user, begins with an unprintable character")
    conversation, lost = order(chat(*turns), DEFAULT)
    assert (shown(conversation), lost) == (list(turns), [])


def test_with_the_cut_setting_leading_white_space_does_not_make_a_turn_empty() -> None:
    turns = ["u \n\tldr r0, =x", "a  2"]
    conversation, lost = order(chat(*turns), RepairSettings(empty_answer="cut"))
    assert (shown(conversation), lost) == (turns, [])


def test_rate_limit_notices_can_be_kept() -> None:
    conversation, lost = order(chat("u 1", "a " + LIMIT), RepairSettings(rate_limit="keep"))
    assert (len(conversation.messages), lost) == (2, [])


def test_a_single_round_keeps_the_first_exchange_and_rejects_the_others() -> None:
    settings = RepairSettings(single_round=True)
    conversation, losses = order(chat("s 0", "u 1", "a 2", "u 3", "a 4", "u 5", "a 6"), settings)
    assert shown(conversation) == ["s 0", "u 1", "a 2"]
    assert [(loss.rule, loss.message_range) for loss in losses] == [("single_round", (3, 5)), ("single_round", (5, 7))]


@pytest.mark.parametrize(
    ("turns", "rule"),
    [
        pytest.param(["u 1"], "too_few_turns", id="single-turn"),
        pytest.param(["a 1", "a 2"], "too_few_turns", id="answers-only"),
        pytest.param(["s 1"], "too_few_turns", id="system-only"),
        pytest.param([], "too_few_turns", id="none"),
        pytest.param(["u 1", "a "], "empty_answer", id="empty-answer-only"),
        pytest.param(["u 1", "a " + LIMIT], "rate_limit", id="rate-limit-only"),
    ],
)
def test_a_record_with_nothing_left_gives_a_reason(turns: list[str], rule: str) -> None:
    with pytest.raises(RecordError) as caught:
        order(chat(*turns), DEFAULT)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("turns", "settings", "rule"),
    [
        pytest.param(["a 0", "u 1", "a 2"], RepairSettings(leading_answer=False), "leading_answer", id="leading"),
        pytest.param(["u 1", "a 2", "u 3"], RepairSettings(trailing_prompt=False), "trailing_prompt", id="trailing"),
        pytest.param(["u 1", "u 2", "a 3"], RepairSettings(join_turns=False), "role_order", id="join"),
        pytest.param(["u 1", "u 1", "a 3"], RepairSettings(join_turns=False), "role_order", id="repeat"),
    ],
)
def test_a_repair_that_is_off_rejects_the_record(turns: list[str], settings: RepairSettings, rule: str) -> None:
    with pytest.raises(RecordError) as caught:
        order(chat(*turns), settings)
    assert caught.value.rule == rule


def test_role_aliases_are_rejected_when_mapping_is_off() -> None:
    record = {"conversations": [{"from": "human", "value": "hi"}, {"from": "bing", "value": "hello"}]}
    with pytest.raises(RecordError, match="'bing'"):
        order(formats.parse(record), RepairSettings(roles=False))
    assert order(formats.parse(record), DEFAULT)[1] == []


def test_a_tool_call_is_not_empty_and_is_not_joined_across_its_result() -> None:
    call = Message("assistant", "", tool_calls='[{"id":"1"}]')
    messages = [Message("user", "hi"), call, Message("tool", "42"), Message("assistant", "It is 42.")]
    conversation, lost = order(Conversation("x", list(messages)), DEFAULT)
    assert (conversation.messages, lost, conversation.edits) == (messages, [], [])


def test_joined_answers_keep_their_calls_and_the_stricter_flags() -> None:
    first = Message("assistant", "Let me see.", train=False, tool_calls='[{"id":"1"}]')
    second = Message("assistant", "", stop=False, tool_calls='[{"id":"2"}]', was_html=True)
    conversation, _ = order(Conversation("x", [Message("user", "hi"), first, second]), DEFAULT)
    joined = conversation.messages[1]
    assert (joined.content, joined.train, joined.stop) == ("Let me see.", False, False)
    assert (joined.was_html, joined.place) == (True, 1)
    assert json.loads(joined.tool_calls or "") == [{"id": "1"}, {"id": "2"}]


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t", "\u200b\u200d\ufeff", "\u00a0", "\u2800", "\u3164", "\x00\x1f", "\ufe0f"]
)
def test_invisible_text_is_empty(text: str) -> None:
    assert repair_text.is_empty(text)


@pytest.mark.parametrize("text", ["a", "\u200b我", ".", "🙂", "\u200b\u200b-", "❤\ufe0f"])
def test_visible_text_is_not_empty(text: str) -> None:
    assert not repair_text.is_empty(text)


@pytest.mark.parametrize(
    ("before", "after", "rule", "count"),
    [
        pytest.param("a\r\nb\rc\n", "a\nb\nc\n", "line_ends", 2, id="line-ends"),
        pytest.param("hi \udc80 there", "hi \ufffd there", "lone_surrogate", 1, id="lone-surrogate"),
        pytest.param("\ud83d", "\ufffd", "lone_surrogate", 1, id="half-at-the-end"),
        pytest.param("ok \ud83d\ude00", "ok 😀", "lone_surrogate", 2, id="halves-that-belong-together"),
    ],
)
def test_broken_text_is_repaired_and_recorded(before: str, after: str, rule: str, count: int) -> None:
    conversation = chat("u " + before, "a fine")
    repair_text.clean_text(conversation)
    assert conversation.messages[0].content == after
    assert [(edit.rule, edit.message, edit.count) for edit in conversation.edits] == [(rule, 0, count)]
    conversation.edits[0].before.encode()


@pytest.mark.parametrize(
    "text", ["  a\t\n\n b  ", "#include <stdio.h>", "1 / 2 of the class", "a\u200bb\x00c", "😀é中"]
)
def test_other_text_is_unchanged(text: str) -> None:
    conversation = chat("u " + text, "a " + text)
    repair_text.clean_text(conversation)
    assert [message.content for message in conversation.messages] == [text, text]
    assert conversation.edits == []


def test_all_texts_of_a_record_can_be_encoded() -> None:
    bad = "\udc80"
    record = {
        "id": bad,
        "model": bad,
        "x": {bad: [bad]},
        "conversations": [{"from": "human", "value": [bad], "name": bad}],
    }
    conversation = formats.parse(record)
    repair_text.clean_text(conversation)
    everything = repr(conversation)
    assert "\\udc80" not in everything.replace("\\\\udc80", "")
    assert conversation.metadata == {"x": {"\ufffd": ["\ufffd"]}}


def test_every_rule_has_a_description_and_every_setting_a_default() -> None:
    assert all(text.endswith(".") for text in (*REPAIRS.values(), *LOSSES.values(), *formats.PROBLEMS.values()))
    assert all(getattr(DEFAULT, field.name) is not None for field in fields(RepairSettings))


TEXTS = st.sampled_from(["", " ", "\u200b", LIMIT, "hello"])
SETTINGS = st.builds(
    RepairSettings,
    roles=st.booleans(),
    join_turns=st.booleans(),
    leading_answer=st.booleans(),
    trailing_prompt=st.booleans(),
    empty_answer=st.sampled_from(["exchange", "cut", "record"]),
    rate_limit=st.sampled_from(["exchange", "record", "keep"]),
    single_round=st.booleans(),
)
TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant"] * 3 + ["system", "tool"]), TEXTS, st.booleans()), max_size=9
)


@given(TURNS, SETTINGS)
def test_turns_end_up_in_order_and_every_message_is_accounted_for(
    turns: list[tuple[Role, str, bool]], settings: RepairSettings
) -> None:
    messages = [
        Message(
            role,
            f"{text}{index}" if text == "hello" else text,
            tool_calls='[{"id":"1"}]' if call and role == "assistant" else None,
        )
        for index, (role, text, call) in enumerate(turns)
    ]
    conversation = Conversation("x", list(messages))
    try:
        losses = repair_turns.order(conversation, settings)
    except RecordError as error:
        assert error.rule in LOSSES
        return
    _assert_in_order(conversation.messages)
    kept = {message.place: message for message in conversation.messages}
    assert len(kept) == len(conversation.messages)
    assert {edit.rule for edit in conversation.edits} <= set(REPAIRS)
    rejected = {index for lost in losses for index in range(*lost.message_range)}
    edited = {edit.message: edit.before for edit in conversation.edits}
    for index, message in enumerate(messages):
        if index in kept:
            assert kept[index].role == message.role
            assert kept[index].content.startswith(message.content)
        else:
            assert index in rejected or edited[index] == message.content


def _assert_in_order(messages: list[Message]) -> None:
    roles = [message.role for message in messages]
    roles = roles[roles[0] == "system" :]
    assert (roles[0], roles[-1]) == ("user", "assistant")
    assert not any(role == next_role != "tool" for role, next_role in itertools.pairwise(roles))
    sides = [role for role in roles if role != "tool"]
    assert ("user", "user") not in itertools.pairwise(sides)


@given(TURNS)
def test_turns_in_order_are_unchanged(turns: list[tuple[Role, str, bool]]) -> None:
    conversation = Conversation("x", [Message(role, text) for role, text, _ in turns])
    try:
        once, _ = order(conversation, DEFAULT)
    except RecordError:
        return
    messages, noted = list(once.messages), len(once.edits)
    again, lost = order(once, DEFAULT)
    assert (again.messages, lost, len(again.edits)) == (messages, [], noted)


@pytest.fixture(scope="module")
def injected(shared: Path) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = json.loads((shared / "data" / "injected.json").read_text("utf-8"))["rows"]
    return rows


@pytest.fixture(scope="module")
def dump(shared: Path) -> dict[str, dict[str, Any]]:
    """Return the first row of each id."""
    with gzip.open(shared / "data" / "sharegpt_dirty.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    first_rows: dict[str, dict[str, Any]] = {}
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("id"), str):
            first_rows.setdefault(row["id"], row)
    return first_rows


def repaired(row: dict[str, Any]) -> tuple[Counter[str], Conversation | None]:
    """Return the rules that changed or rejected a row, and what is left of it."""
    rules: Counter[str] = Counter()
    try:
        conversation = formats.parse(row)
        for message in conversation.messages:
            if message.role == "assistant" and message.content.startswith('<div class="markdown'):
                message.content = message.content.split(">", 1)[1].removesuffix("</div>").removeprefix("<p>")
        repair_text.clean_text(conversation)
        conversation, losses = order(conversation, DEFAULT)
    except RecordError as error:
        return Counter([error.rule]), None
    rules.update(edit.rule for edit in conversation.edits)
    rules.update(loss.rule for loss in losses)
    return rules, conversation


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("leading_gpt", {"leading_answer", "too_few_turns"}),
        ("trailing_human", {"trailing_prompt", "too_few_turns"}),
        ("wrong_role_order", {"repeated_turn", "leading_answer", "trailing_prompt"}),
        ("empty_answer", {"empty_answer", "leading_answer", "trailing_prompt"}),
        ("too_many_requests", {"rate_limit"}),
        ("single_turn", {"too_few_turns"}),
        ("empty_conversations", {"no_messages"}),
    ],
)
def test_each_kind_of_dirt_triggers_its_rule(
    injected: dict[str, list[Any]], dump: dict[str, dict[str, Any]], kind: str, expected: set[str]
) -> None:
    entries = injected[kind]
    assert entries
    for entry in entries:
        rules, conversation = repaired(dump[entry["id"] if isinstance(entry, dict) else entry])
        assert rules.keys() & expected, (entry, rules)
        if conversation is not None:
            _assert_in_order(conversation.messages)


def test_odd_roles_are_mapped(injected: dict[str, list[Any]], dump: dict[str, dict[str, Any]]) -> None:
    for entry in injected["odd_role"]:
        conversation = formats.parse(dump[entry["id"]])
        odd = [edit.before for edit in conversation.edits if edit.rule == "role_alias"]
        assert odd == [entry["role"]] * (entry["role"] in ("bing", "chatgpt"))
