"""Repairs on a conversation's messages: broken text, and the order of the turns.

Nothing goes without a trace: what is changed or cut is an edit with its text, and an exchange that is
taken out is a `Lost` with its place, rule and reason. `message` in an edit and `message_range` are
places among the messages as they were read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from curate.errors import RecordError
from curate.pipeline.repair_text import is_empty
from curate.schemas.conversation import Conversation, Message

REPAIRS: dict[str, str] = {
    "id_to_text": "An id that is a number or a list is written as text.",
    "turns_from_dict": 'Turns under the keys "0", "1", "2" … become a list.',
    "turns_from_text": "A list of turns that is itself JSON text is decoded.",
    "role_alias": "Another name for a role (bing, bard, prompter …) becomes that role.",
    "role_inferred": "A missing role is the one that alternates with its neighbours, where they settle it.",
    "value_to_text": "A number that stands for text is written as text.",
    "parts_joined": "Content in several parts of text becomes one text, a part per line.",
    "empty_value": "A turn whose text is null or missing is an empty turn.",
    "tool_call": "A turn of role function_call becomes an answer that calls a tool.",
    "lone_surrogate": "Half of a UTF-16 pair becomes U+FFFD; two halves that belong together become one character.",
    "line_ends": "Carriage returns become line feeds.",
    "lenient_json": "A value that JSON does not know (NaN, Infinity) is read as null.",
    "html_to_markdown": "An answer in ChatGPT's HTML becomes markdown.",
    "prompt_markup": "A prompt that was stored with the markup of ChatGPT's bubble around it is freed of that.",
    "chrome": "Counters, buttons and other traces of the page around an answer are cut.",
    "join_system": "A system message after the first, or after the first prompt, is joined to the one at the start.",
    "leading_answer": "What stands before the first prompt is cut.",
    "trailing_prompt": "What stands after the last answer is cut.",
    "repeated_turn": "A turn that only repeats the one before it, same role and text, is cut.",
    "join_turns": "Consecutive turns of one role become one, with a blank line between.",
    "empty_turn": "A turn without visible text is cut where others of its role stand beside it; so is an empty system.",
}
LOSSES: dict[str, str] = {
    "empty_answer": "The answer has no visible text.",
    "empty_prompt": "The prompt has no visible text.",
    "rate_limit": 'The answer is the notice "Too many requests in 1 hour" of a page that would not answer.',
    "no_answer": "Only a tool's output follows the prompt.",
    "single_round": "The exchange is not the first, and only that is kept.",
    "too_few_turns": "No prompt with an answer.",
    "role_order": "Two turns of one role in a row, where they are not to be joined.",
    "leading_answer": "Something stands before the first prompt, where it is not to be cut.",
    "trailing_prompt": "Something stands after the last answer, where it is not to be cut.",
    "role_alias": "A role has another name, where those are not to be mapped.",
}

RATE_LIMIT = ("Too many requests in 1 hour. Try again later.", "!Too many requests in 1 hour. Try again later.")


@dataclass(frozen=True)
class RepairSettings:
    """Which repairs run; what each value means is in the recipe `vicuna`."""

    html: Literal["auto", "never"] = "auto"
    chrome: bool = True
    roles: bool = True
    join_turns: bool = True
    leading_answer: bool = True
    trailing_prompt: bool = True
    empty_answer: Literal["exchange", "cut", "record"] = "exchange"
    rate_limit: Literal["exchange", "record", "keep"] = "exchange"
    single_round: bool = False
    citations: Literal["links", "drop"] = "links"


@dataclass(frozen=True)
class Lost:
    """An exchange that was taken out: the places [first, past the last] of its messages, and why."""

    message_range: tuple[int, int]
    rule: str
    reason: str
    evidence: str


def order(conversation: Conversation, settings: RepairSettings) -> list[Lost]:
    """Bring the turns into order, in place: a system message or none, then prompts each with its answer.

    To be called when answers are markdown already: HTML without text is not empty. Tools' outputs stay
    inside their exchange. Raises RecordError where nothing is left, or a setting says to reject.
    """
    if not settings.roles and (mapped := [edit for edit in conversation.edits if edit.rule.startswith("role_")]):
        reason = f"the role of turn {mapped[0].message} is {mapped[0].before[:40]!r}, and roles are not to be mapped"
        raise RecordError("role_alias", reason, mapped[0].before)
    messages = conversation.messages
    for place, message in enumerate(messages):
        message.place = place
    if _is_in_order(messages, settings):
        return []
    system, turns = _take_system(conversation, messages)
    turns = _cut_ends(conversation, turns, settings)
    kept, lost = _sort_exchanges(conversation, _exchanges(turns), settings)
    if not kept:
        raise _nothing_left(conversation, lost)
    while kept[-1][-1].role != "assistant":  # the exchange after it was lost
        cut = kept[-1].pop()
        conversation.edit("trailing_prompt", cut.place, cut.content, "")
    conversation.messages = [*system, *(turn for exchange in kept for turn in exchange)]
    return lost


def _is_in_order(messages: Sequence[Message], settings: RepairSettings) -> bool:
    """Tell whether there is nothing to do; the common case, so one pass and no allocation."""
    first = 1 if messages and messages[0].role == "system" else 0
    wanted = "user"
    for message in messages[first:]:
        if message.role != wanted:
            return False
        text = message.content
        if not text[:1].isalnum() and _is_blank(text, settings):
            return False
        if wanted == "user":
            wanted = "assistant"
        elif text.startswith(RATE_LIMIT):
            return False
        else:
            wanted = "user"
    if settings.single_round and len(messages) > first + 2:
        return False
    return wanted == "user" and len(messages) > first and not (first and is_empty(messages[0].content))


def _is_blank(text: str, settings: RepairSettings) -> bool:
    """Tell whether a turn counts as empty; where one cuts, also if it begins unprintably, as in FastChat."""
    return is_empty(text) or (settings.empty_answer == "cut" and not text.lstrip()[0].isprintable())


def _take_system(conversation: Conversation, turns: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """Part the system message from the others; those after the first, or amid the turns, are joined to it.

    One after the last answer stays with the turns, where it is cut with the trailing ones.
    """
    last = max((turn.place for turn in turns if turn.role == "assistant"), default=-1)
    first = next((turn.place for turn in turns if turn.role == "user"), len(turns))
    found: list[Message] = []
    others: list[Message] = []
    for turn in turns:
        if turn.role != "system" or turn.place > max(first, last):
            others.append(turn)
        elif is_empty(turn.content):
            conversation.edit("empty_turn", turn.place, turn.content, "")
        else:
            if found or turn.place > first:
                conversation.edit("join_system", turn.place, turn.content, turn.content)
            found.append(turn)
    if not found:
        return [], others
    text = "\n\n".join(turn.content for turn in found)
    return [replace(found[0], content=text)], others


def _cut_ends(conversation: Conversation, turns: list[Message], settings: RepairSettings) -> list[Message]:
    """Cut what stands before the first prompt and after the last answer."""
    first, past = 0, len(turns)
    while first < past and turns[first].role != "user":
        first += 1
    while past > first and turns[past - 1].role != "assistant":
        past -= 1
    for rule, allowed, cut in (
        ("leading_answer", settings.leading_answer, turns[:first]),
        ("trailing_prompt", settings.trailing_prompt, turns[past:]),
    ):
        if cut and not allowed:
            where = "before the first prompt" if cut[0].place == turns[0].place else "after the last answer"
            reason = f"{len(cut)} turns stand {where}, from turn {cut[0].place}"
            raise RecordError(rule, reason, cut[0].content)
        for turn in cut:
            conversation.edit(rule, turn.place, turn.content, "")
    return turns[first:past]


def _exchanges(turns: Sequence[Message]) -> list[list[Message]]:
    """Part the turns into exchanges: prompts in a row, and all up to the next prompt."""
    exchanges: list[list[Message]] = []
    before = ""
    for turn in turns:
        if turn.role == "user" and before != "user":
            exchanges.append([])
        exchanges[-1].append(turn)
        before = turn.role
    return exchanges


def _sort_exchanges(
    conversation: Conversation, exchanges: list[list[Message]], settings: RepairSettings
) -> tuple[list[list[Message]], list[Lost]]:
    """Return the exchanges that stay, their turns joined, and those that are lost."""
    kept: list[list[Message]] = []
    lost: list[Lost] = []
    for exchange in exchanges:
        place, past = exchange[0].place, exchange[-1].place + 1
        if settings.single_round and kept:
            shown = exchange[0].content[:200]
            lost.append(Lost((place, past), "single_round", "only the first exchange is kept", shown))
            continue
        fault = _fault(exchange, settings)
        if fault is None:
            kept.append(_join(conversation, _without_empty(conversation, exchange), settings))
            continue
        mode = {"rate_limit": settings.rate_limit, "no_answer": "exchange"}.get(fault.rule, settings.empty_answer)
        if mode == "record":
            raise fault
        if mode == "cut":
            past = exchanges[-1][-1].place + 1
            fault.reason += ", and the conversation ends before it"
        lost.append(Lost((place, past), fault.rule, fault.reason, fault.evidence))
        if mode == "cut":
            break
    return kept, lost


def _is_blank_turn(turn: Message, settings: RepairSettings) -> bool:
    return turn.tool_calls is None and _is_blank(turn.content, settings)


def _fault(exchange: Sequence[Message], settings: RepairSettings) -> RecordError | None:
    """Return why the exchange cannot stay; null if it can.

    One empty turn among several of its role is only cut, unless a setting gives up more than the exchange.
    """
    enough = all if settings.empty_answer == "exchange" else any
    prompts = [turn for turn in exchange if turn.role == "user"]
    answers = [turn for turn in exchange if turn.role == "assistant"]
    if not answers:
        reason = f"the prompt, message {prompts[0].place}, has no answer, only a tool's output"
        return RecordError("no_answer", reason, exchange[0].content)
    for rule, turns in (("empty_prompt", prompts), ("empty_answer", answers)):
        if enough(_is_blank_turn(turn, settings) for turn in turns):
            blank = next(turn for turn in turns if _is_blank_turn(turn, settings))
            why = "has no text" if is_empty(blank.content) else "begins with an unprintable character"
            reason = f"message {blank.place}, of role {blank.role}, {why}"
            return RecordError(rule, reason, exchange[0].content)
    for turn in answers:
        if settings.rate_limit != "keep" and turn.content.startswith(RATE_LIMIT):
            return RecordError("rate_limit", f"message {turn.place} is a rate-limit notice", turn.content)
    return None


def _without_empty(conversation: Conversation, exchange: list[Message]) -> list[Message]:
    """Cut empty turns that stand beside others of their role; a tool's output may be empty."""
    left = []
    for turn in exchange:
        if turn.role != "tool" and turn.tool_calls is None and is_empty(turn.content):
            conversation.edit("empty_turn", turn.place, turn.content, "")
        else:
            left.append(turn)
    return left


def _join(conversation: Conversation, exchange: Sequence[Message], settings: RepairSettings) -> list[Message]:
    """Join consecutive turns of one role, but for tools' outputs; one that only repeats is cut."""
    joined: list[Message] = []
    for turn in exchange:
        role = turn.role
        if not joined or joined[-1].role != role or role == "tool":
            joined.append(turn)
            continue
        if not settings.join_turns:
            reason = f"message {turn.place} is the second of role {role} in a row"
            raise RecordError("role_order", reason, turn.content)
        before = joined[-1]
        if (before.content, before.tool_calls) == (turn.content, turn.tool_calls):
            conversation.edit("repeated_turn", turn.place, turn.content, "")
            before.was_html = before.was_html or turn.was_html
            continue
        both = _joined(before, turn)
        conversation.edit("join_turns", turn.place, turn.content, both.content)
        joined[-1] = both
    return joined


def _joined(one: Message, other: Message) -> Message:
    """Return two messages of one role as one; it is trained on only if both are, and ends as the second does."""
    texts = [text for text in (one.content, other.content) if text]
    calls = [call for message in (one, other) if message.tool_calls for call in json.loads(message.tool_calls)]
    tool_calls = json.dumps(calls, ensure_ascii=False, separators=(",", ":")) if calls else None
    return Message(
        one.role,
        "\n\n".join(texts),
        one.name if one.name == other.name else None,
        tool_calls,
        one.train and other.train,
        other.stop,
        one.was_html or other.was_html,
        one.place,
    )


def _nothing_left(conversation: Conversation, lost: Sequence[Lost]) -> RecordError:
    """Return why a record is left without an exchange: its first loss, or that it never had one."""
    if lost:
        return RecordError(lost[0].rule, lost[0].reason, lost[0].evidence)
    messages = conversation.messages
    roles = ", ".join(message.role for message in messages[:6]) + (" …" if len(messages) > 6 else "")
    turns = "1 turn" if len(messages) == 1 else f"{len(messages)} turns"
    reason = f"no prompt with an answer: {turns} ({roles})"
    return RecordError("too_few_turns", reason, messages[0].content if messages else "")
