"""Repair the order of a conversation's turns.

Every change is recorded: text that is changed or cut as an edit, and a removed exchange as a `LostExchange` with
its position, rule and reason. `message` of an edit and `message_range` are
positions among the messages as parsed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from curate.errors import RecordError
from curate.pipeline.repair_text import is_empty
from curate.schemas.conversation import Conversation, Edit, Flaw, Message
from curate.schemas.reading.media import remove_placeholders
from curate.schemas.reading.turn.training_marks import HIDDEN

REPAIRS: dict[str, str] = {
    "id_to_text": "An id that is a number or a list is written as text.",
    "turns_from_dict": 'Turns under the keys "0", "1", "2" … become a list.',
    "key_case": "Keys such as Question and Answer are read in lower case.",
    "turns_from_columns": "Turns as an object with a list for each key become a list of turns.",
    "record_unwrapped": "A record that is the value of a key of another is read, with the keys beside it.",
    "json_in_text": "A record stored as JSON text is decoded.",
    "python_repr": "A record as Python prints it ('single quotes', True, None) is read.",
    "json_comments": "Comments inside a record are passed over.",
    "trailing_comma": "A comma after the last value of an object or list is passed over.",
    "turns_from_text": "A list of turns stored as JSON text is decoded.",
    "role_alias": "Another name for a role (bing, bard, prompter …) becomes that role.",
    "second_system": "A system text beside turns that begin with another stays in the metadata.",
    "media_removed": 'Text of a turn is kept without its images, sound or files; only where `multimodal` is "keep".',
    "personal_data": "Hashed addresses and headers of WildChat's users are removed, from the record and its turns.",
    "other_replies": "Of a tree of replies, one path is read; counts the messages beside it.",
    "tied_answers": "Several answers have the best score; the first is read, and none of these is the rejected answer.",
    "rejected_answer": "The rejected answer is removed if the chosen one is, or if turns before it are joined to it.",
    "role_inferred": "A missing role is inferred from its neighbours, if they alternate.",
    "value_to_text": "A number in place of text is written as text.",
    "parts_joined": "Content in several text parts becomes one text, one part per line.",
    "empty_value": "A turn whose text is null or missing becomes an empty turn.",
    "tool_call": "A turn of role function_call becomes an answer that calls a tool.",
    "call_from_text": "A tool call in the marks of an answer's text (<tool_call>, <functioncall>) becomes a call.",
    "unread_call": "An answer that begins with the marks of a tool call, and cannot be read as one, stays text.",
    "example_turn": "OpenAI's examples (system messages named example_user, example_assistant) become untrained turns.",
    "null_arguments": "Keys that a table filled with nulls are removed from a call's arguments or a tool's definition.",
    "arguments_decoded": "A call's arguments that were encoded as JSON text twice are decoded once more.",
    "hidden_message": "Messages that ChatGPT did not show (system messages, weight 0) are left out.",
    "private_data": "What a user wrote for every chat, memory and account ids are left out; their text is not kept.",
    "broken_tree": "A tree of messages has a cycle or lacks a node; the branch is read as far as it goes.",
    "missing_result": "A tool call without a result gets an empty one.",
    "attachment_text": "The text of an attached file, which the model saw, is added to the prompt.",
    "citation_marks": "Marks of citations become links, where the dump has them, or are cut.",
    "sandbox_links": "A link into ChatGPT's sandbox becomes its text.",
    "result_from_text": "A tool's result in the marks of a text (<tool_response>) becomes a tool's message.",
    "unlinked_result": "A tool's result has the id of no call before it, and is kept.",
    "reasoning_from_text": "Reasoning in marks at the start of an answer (<think>…</think>) is read apart from it.",
    "unclosed_reasoning": "Marks of reasoning are never closed: there is no answer, and it was cut off.",
    "unclear_reasoning": "Marks of reasoning that do not pair up stay in an answer's text, and it is not trained on.",
    "second_reasoning": "Of two reasonings of one answer that differ, the second stays where it is.",
    "reasoning_turn": "A turn of nothing but reasoning becomes the reasoning of the answer after it.",
    "text_from_key": "The text of a turn whose usual key is blank is read from another (text, refusal, markdown …).",
    "context_joined": "The text of documents or files beside a prompt is put before it.",
    "partly_trained": "A message of which only parts may be trained on (train_detail) is not trained on.",
    "unclear_train_mark": "A message whose mark for training (train, mask …) is not understood is not trained on.",
    "lone_surrogate": "Half of a UTF-16 surrogate pair becomes U+FFFD; two matching halves become one character.",
    "line_ends": "Carriage returns become line feeds.",
    "train_joined": "An answer that only a dropped copy of the conversation trains is trained in this one.",
    "damaged_stream": "The record may be altered (see the rule of that name), and is kept unchanged.",
    "continues": "The conversation continues one of the set that --against names; its id is in `after`.",
    "lenient_json": "A value that JSON does not allow (NaN, Infinity) is read as null.",
    "html_to_markdown": 'An answer in ChatGPT\'s HTML becomes markdown; in any HTML if `html` is "always".',
    "prompt_markup": "The markup of ChatGPT's page around a prompt is removed.",
    "chrome": "Counters, button labels and other text of the page around an answer are cut.",
    "join_system": "A second system message before the first prompt is joined to the first.",
    "fold_system": "A system message amid the turns is put before its prompt, as the template cannot say it there.",
    "hidden_turn": "A turn that the user does not see (deleted, hidden, channel analysis …) is cut from its exchange.",
    "leading_answer": "Turns before the first prompt are cut.",
    "trailing_prompt": "Turns after the last answer are cut.",
    "lost_context": 'A piece begins with a prompt such as "continue", and lacks the answer that this goes on with.',
    "repeated_turn": "A turn with the same role and text as the one before it is cut.",
    "join_turns": "Consecutive turns of one role become one, joined by a blank line.",
    "empty_turn": "An empty system message is cut, and so is an empty turn if its exchange has another of its role.",
}
LOSSES: dict[str, str] = {
    "bad_label": "`label` or `kto_tag` is false, or `toxic` or `redacted` true, of the record or a turn.",
    "multimodal": "Needs images, video, sound or files, which a text model cannot see.",
    "raw_html": "The answer mentions ChatGPT's wrapper in a text that is not the page's, so it cannot be converted.",
    "needs_context": "Needs a file or a document whose text is not in the record.",
    "hidden_turn": "The only prompt or answer is one that the user does not see (deleted, hidden, channel analysis …).",
    "empty_answer": "The answer has no visible text.",
    "empty_prompt": "The prompt has no visible text.",
    "rate_limit": 'The answer is the rate-limit notice "Too many requests in 1 hour".',
    "no_answer": "Only a tool's output follows the prompt.",
    "single_round": "The exchange is not the first, and only the first is kept.",
    "too_few_turns": "The record has no prompt with an answer.",
    "role_order": "Two turns in a row have the same role, and `join_turns` is off.",
    "leading_answer": "There are turns before the first prompt, and `leading_answer` is off.",
    "trailing_prompt": "There are turns after the last answer, and `trailing_prompt` is off.",
    "role_alias": "A role has another name, and `roles` is off.",
}

RATE_LIMIT = ("Too many requests in 1 hour. Try again later.", "!Too many requests in 1 hour. Try again later.")

RAW_HTML = "raw_html"


@dataclass(frozen=True)
class RepairSettings:
    """Which repairs run; the recipe `vicuna` documents each value."""

    html: Literal["auto", "always", "never"] = "auto"
    chrome: bool = True
    roles: bool = True
    join_turns: bool = True
    leading_answer: bool = True
    trailing_prompt: bool = True
    empty_answer: Literal["exchange", "cut", "record"] = "exchange"
    rate_limit: Literal["exchange", "record", "keep"] = "exchange"
    single_round: bool = False
    citations: Literal["links", "drop"] = "links"
    multimodal: Literal["rest", "exchange", "record", "keep"] = "rest"
    bad_label: Literal["reject", "keep"] = "reject"


# The setting of [repair] that turns a rule off, and its value then. The other rules of this module are always on.
SWITCHES: dict[str, tuple[str, object]] = {
    "bad_label": ("bad_label", "keep"),
    "multimodal": ("multimodal", "keep"),
    "rate_limit": ("rate_limit", "keep"),
    "single_round": ("single_round", False),
    "role_alias": ("roles", True),
    "role_order": ("join_turns", True),
    "leading_answer": ("leading_answer", True),
    "trailing_prompt": ("trailing_prompt", True),
}


@dataclass(frozen=True)
class LostExchange:
    """An exchange that was removed, and why."""

    message_range: tuple[int, int]  # positions of its messages: start, stop
    rule: str
    reason: str
    evidence: str
    characters: int  # of its messages


class NothingLeft(RecordError):
    """All exchanges of a record are lost: the record's rule is the one that took most of its text."""

    def __init__(self, lost: Sequence[LostExchange]) -> None:
        sizes = Counter[str]()
        for exchange in lost:
            sizes[exchange.rule] += exchange.characters
        main = next(exchange for exchange in lost if exchange.rule == max(sizes, key=lambda rule: sizes[rule]))
        super().__init__(main.rule, main.reason, main.evidence)
        self.lost = list(lost)


def rules_that_are_on(settings: RepairSettings) -> dict[str, RepairSettings]:
    """Return the rules that the settings could turn off but do not, each with the settings that turn off all others."""
    off = all_off(settings)
    names = {rule: name for rule, (name, value) in SWITCHES.items() if getattr(settings, name) != value}
    return {rule: replace(off, **{name: getattr(settings, name)}) for rule, name in names.items()}


def all_off(settings: RepairSettings) -> RepairSettings:
    """Return settings that turn off all rules that can be turned off."""
    return replace(settings, **dict(SWITCHES.values()))  # type: ignore[arg-type]  # values of these settings


def has_switched(lost: Sequence[LostExchange], rule: str | None, filters: Collection[str]) -> bool:
    """Return whether one of the rules that took these exchanges, or the `rule` of a record, can be turned off.

    `filters` are those of the recipe that remove exchanges.
    """
    rules = {rule, *(exchange.rule for exchange in lost)}
    return any(name in SWITCHES or name in filters for name in rules)


def order(conversation: Conversation, settings: RepairSettings) -> list[LostExchange]:
    """Put the turns in order, in place: at most one system message, then exchanges. Later system messages stay.

    Call this after conversion to markdown, since HTML without text is not empty. Tool outputs stay
    in their exchange. Raises RecordError if a setting rejects the record, NothingLeft if no exchange is left.
    """
    if is_in_order(conversation, settings):
        return []
    if not settings.roles and (mapped := _mapped_roles(conversation)):
        reason = f"the role of turn {mapped[0].message} is {mapped[0].before[:40]!r}, and `roles` is off"
        raise RecordError("role_alias", reason, mapped[0].before)
    flaws = _flaws(conversation, settings)
    last = [message.place for message in conversation.messages[-1:]]
    system, turns = _take_system(conversation, conversation.messages, flaws)
    turns = _cut_ends(conversation, turns, settings)
    kept, lost = _sort_exchanges(conversation, _exchanges(turns), flaws, settings)
    if not kept:
        raise _nothing_left(conversation, lost)
    while kept[-1][-1].role != "assistant":  # the answer was in a lost exchange
        cut = kept[-1].pop()
        conversation.edit("trailing_prompt", cut.place, cut.content, "")
    turns = [turn for exchange in kept for turn in exchange]
    while turns[0].role == "system":  # those of a lost exchange
        system.append(turns.pop(0))
    conversation.messages = [*_join_system(conversation, system), *turns]
    if conversation.rejected_answer and [conversation.messages[-1].place] != last:
        _drop_rejected(conversation)
    return lost


def _drop_rejected(conversation: Conversation) -> None:
    """Remove the rejected answer, since the one that was preferred to it is gone or has other messages before it."""
    text = conversation.rejected_answer[-1].content
    conversation.rejected_answer = []
    conversation.edit("rejected_answer", None, text, "")


def note_folds(conversation: Conversation) -> None:
    """Record which system messages a template folds into prompts, because it cannot say them amid the turns."""
    for message in conversation.messages[1:]:
        if message.role == "system":
            conversation.edit("fold_system", message.place, message.content, message.content)


def _flaws(conversation: Conversation, settings: RepairSettings) -> dict[int, Flaw]:
    """Return the first flaw of each message that takes its exchange out; remove what `multimodal` keeps the text of.

    Raises RecordError for a flaw of the whole record, of a system message, or of any message if a setting says so.
    """
    by_place: dict[int, Flaw] = {}
    for flaw in conversation.flaws:
        if flaw.rule == "multimodal" and settings.multimodal == "keep":
            remove_media(conversation, flaw)
        elif flaw.rule != "bad_label" or settings.bad_label == "reject":
            is_system = flaw.message is not None and conversation.messages[flaw.message].role == "system"
            whole = flaw.message is None or (is_system and flaw.rule != HIDDEN)
            if flaw.message is None or whole or (flaw.rule == "multimodal" and settings.multimodal == "record"):
                raise RecordError(flaw.rule, flaw.reason, flaw.evidence)
            by_place.setdefault(flaw.message, flaw)
    if settings.multimodal == "rest":
        _flag_rest(conversation, by_place)
    return by_place


def _flag_rest(conversation: Conversation, flaws: dict[int, Flaw]) -> None:
    """Flag what follows the first message with media: later turns may be about it, and do not say so."""
    first = min((place for place, flaw in flaws.items() if flaw.rule == "multimodal"), default=None)
    if first is not None:
        later = conversation.messages[first + 1 :]
        for number, message in enumerate(later, start=1):
            is_last = number == len(later) or later[number].role == "user"
            if message.role == "assistant" and is_last:
                reason = f"turn {message.place} follows turn {first}, which holds what a text model cannot see"
                flaws.setdefault(message.place, Flaw("multimodal", message.place, reason, flaws[first].evidence))


def remove_media(conversation: Conversation, flaw: Flaw) -> None:
    """Remove the placeholders of a message, and record what is gone."""
    if flaw.message is not None:
        message = conversation.messages[flaw.message]
        message.content = remove_placeholders(message.content)
    if flaw.evidence:  # else it only follows a message with media
        conversation.edit("media_removed", flaw.message, flaw.evidence, "")


def is_in_order(conversation: Conversation, settings: RepairSettings) -> bool:
    """Set the place of each message, and return whether there is nothing to repair and no reason to reject."""
    messages = conversation.messages
    for place, message in enumerate(messages):
        message.place = place
    if conversation.flaws or (not settings.roles and _mapped_roles(conversation)):
        return False
    return _alternates(messages, settings)


def _mapped_roles(conversation: Conversation) -> list[Edit]:
    return [edit for edit in conversation.edits if edit.rule.startswith("role_")]


def _alternates(messages: Sequence[Message], settings: RepairSettings) -> bool:
    """Return whether there is nothing to repair: the common case, hence one pass without allocation."""
    first = 1 if messages and messages[0].role == "system" else 0
    expected = "user"
    for message in messages[first:]:
        if message.role != expected:
            return False
        text = message.content
        if not text[:1].isalnum() and _is_blank(text, settings):
            return False
        if expected == "user":
            expected = "assistant"
        elif text.startswith(RATE_LIMIT):
            return False
        else:
            expected = "user"
    if settings.single_round and len(messages) > first + 2:
        return False
    return expected == "user" and len(messages) > first and not (first and is_empty(messages[0].content))


def _is_blank(text: str, settings: RepairSettings) -> bool:
    """Return whether a turn is empty; in mode `cut` also if it starts with an unprintable character (FastChat)."""
    return is_empty(text) or (settings.empty_answer == "cut" and not text.lstrip()[0].isprintable())


def _take_system(
    conversation: Conversation, turns: Sequence[Message], flaws: Mapping[int, Flaw]
) -> tuple[list[Message], list[Message]]:
    """Separate the system messages before the first prompt from the turns; later ones stay where they are."""
    first = next((turn.place for turn in turns if turn.role == "user"), len(turns))
    system: list[Message] = []
    remaining: list[Message] = []
    for turn in turns:
        if turn.role == "system" and (turn.place in flaws or is_empty(turn.content)):
            rule = HIDDEN if turn.place in flaws else "empty_turn"
            conversation.edit(rule, turn.place, turn.content, "")
        else:
            (system if turn.role == "system" and turn.place < first else remaining).append(turn)
    return system, remaining


def _join_system(conversation: Conversation, system: Sequence[Message]) -> list[Message]:
    """Join the system messages at the start into one."""
    for turn in system[1:]:
        conversation.edit("join_system", turn.place, turn.content, turn.content)
    return [replace(system[0], content="\n\n".join(turn.content for turn in system))] if system else []


def _cut_ends(conversation: Conversation, turns: list[Message], settings: RepairSettings) -> list[Message]:
    """Cut the turns before the first prompt and after the last answer."""
    start, stop = 0, len(turns)
    while start < stop and turns[start].role != "user":
        start += 1
    while stop > start and turns[stop - 1].role != "assistant":
        stop -= 1
    for rule, allowed, cut in (
        ("leading_answer", settings.leading_answer, turns[:start]),
        ("trailing_prompt", settings.trailing_prompt, turns[stop:]),
    ):
        if cut and not allowed:
            where = "before the first prompt" if cut[0].place == turns[0].place else "after the last answer"
            reason = f"{len(cut)} turns {where}, from turn {cut[0].place}"
            raise RecordError(rule, reason, cut[0].content)
        for turn in cut:
            conversation.edit(rule, turn.place, turn.content, "")
    return turns[start:stop]


def _exchanges(turns: Sequence[Message]) -> list[list[Message]]:
    """Split the turns into exchanges: consecutive prompts, and all turns up to the next prompt.

    System messages after an answer belong to the prompt that follows.
    """
    exchanges: list[list[Message]] = []
    system: list[Message] = []
    previous_role = ""
    for turn in turns:
        if turn.role == "system":
            system.append(turn)
            continue
        if turn.role == "user" and previous_role != "user":
            exchanges.append([])
        exchanges[-1] += [*system, turn]
        system, previous_role = [], turn.role
    return exchanges


def _sort_exchanges(
    conversation: Conversation, exchanges: list[list[Message]], flaws: Mapping[int, Flaw], settings: RepairSettings
) -> tuple[list[list[Message]], list[LostExchange]]:
    """Return the kept exchanges, with their turns joined, and the lost ones."""
    kept: list[list[Message]] = []
    lost: list[LostExchange] = []
    system: list[Message] = []  # of lost exchanges: still in force
    for number, exchange in enumerate(exchanges):
        start, stop = exchange[0].place, exchange[-1].place + 1
        characters = count_characters(exchange)
        if settings.single_round and kept:
            evidence = exchange[0].content[:200]
            reason = "only the first exchange is kept"
            lost.append(LostExchange((start, stop), "single_round", reason, evidence, characters))
            continue
        exchange = _without_hidden(conversation, exchange, flaws) if flaws else exchange
        flawed = _flawed(exchange, flaws)
        fault = flawed or _fault(exchange, settings)
        if fault is None:
            whole = [*system, *_without_empty(conversation, exchange)]
            kept.append(_join(conversation, whole, settings))
            system = []
            continue
        system += [turn for turn in exchange if turn.role == "system"]
        mode = "exchange" if flawed else _what_goes(fault.rule, settings)
        if mode == "record":
            raise fault
        if mode == "cut":
            stop = exchanges[-1][-1].place + 1
            fault.reason += ", and the conversation ends before it"
            characters = count_characters(turn for later in exchanges[number:] for turn in later)
        lost.append(LostExchange((start, stop), fault.rule, fault.reason, fault.evidence, characters))
        if mode == "cut":
            break
    return kept, lost


def _what_goes(rule: str, settings: RepairSettings) -> str:
    """Return what a fault of an exchange removes: the exchange, that and all later ones (cut), or the record."""
    return {"rate_limit": settings.rate_limit, "no_answer": "exchange"}.get(rule, settings.empty_answer)


def count_characters(messages: Iterable[Message]) -> int:
    """Return the number of characters that messages say."""
    return sum(len(message.content) for message in messages)


def _without_hidden(conversation: Conversation, exchange: list[Message], flaws: Mapping[int, Flaw]) -> list[Message]:
    """Cut the turns that the user does not see, if a prompt and an answer are left."""
    visible = [turn for turn in exchange if not (turn.place in flaws and flaws[turn.place].rule == HIDDEN)]
    if not {"user", "assistant"} <= {turn.role for turn in visible}:
        return exchange
    for turn in exchange:
        if turn not in visible:
            conversation.edit(HIDDEN, turn.place, turn.content, "")
    return visible


def _is_blank_turn(turn: Message, settings: RepairSettings) -> bool:
    return turn.tool_calls is None and _is_blank(turn.content, settings)


def _flawed(exchange: Sequence[Message], flaws: Mapping[int, Flaw]) -> RecordError | None:
    """Return why the dump itself says that an exchange must not be trained on, or None."""
    flaw = next((flaws[turn.place] for turn in exchange if turn.place in flaws), None) if flaws else None
    return RecordError(flaw.rule, flaw.reason, flaw.evidence) if flaw else None


def _fault(exchange: Sequence[Message], settings: RepairSettings) -> RecordError | None:
    """Return why the exchange must be removed, or None.

    If only some turns of a role are empty, they are cut later; the exchange stays, unless `empty_answer` removes more
    than the exchange.
    """
    any_or_all = all if settings.empty_answer == "exchange" else any
    prompts = [turn for turn in exchange if turn.role == "user"]
    answers = [turn for turn in exchange if turn.role == "assistant"]
    if not answers:
        reason = f"the prompt, message {prompts[0].place}, has no answer, only a tool's output"
        return RecordError("no_answer", reason, exchange[0].content)
    for rule, turns in (("empty_prompt", prompts), ("empty_answer", answers)):
        if any_or_all(_is_blank_turn(turn, settings) for turn in turns):
            blank = next(turn for turn in turns if _is_blank_turn(turn, settings))
            fault = "has no text" if is_empty(blank.content) else "begins with an unprintable character"
            reason = f"message {blank.place}, of role {blank.role}, {fault}"
            return RecordError(rule, reason, exchange[0].content)
    for turn in answers:
        if settings.rate_limit != "keep" and turn.content.startswith(RATE_LIMIT):
            return RecordError("rate_limit", f"message {turn.place} is a rate-limit notice", turn.content)
    return None


def _without_empty(conversation: Conversation, exchange: list[Message]) -> list[Message]:
    """Cut empty turns; a tool's output may be empty."""
    remaining = []
    for turn in exchange:
        if turn.role != "tool" and turn.tool_calls is None and not turn.reasoning and is_empty(turn.content):
            conversation.edit("empty_turn", turn.place, turn.content, "")
        else:
            remaining.append(turn)
    return remaining


def _join(conversation: Conversation, exchange: Sequence[Message], settings: RepairSettings) -> list[Message]:
    """Join consecutive turns of the same role, except tool outputs; cut repeated turns."""
    joined: list[Message] = []
    for turn in exchange:
        role = turn.role
        if not joined or joined[-1].role != role or role == "tool":
            joined.append(turn)
            continue
        if not settings.join_turns:
            reason = f"message {turn.place} is the second of role {role} in a row"
            raise RecordError("role_order", reason, turn.content)
        previous = joined[-1]
        if _text_of(previous) == _text_of(turn):
            conversation.edit("repeated_turn", turn.place, turn.content, "")
            previous.was_html = previous.was_html or turn.was_html
            continue
        joined[-1] = _join_messages(previous, turn)
        conversation.edit("join_turns", turn.place, turn.content, joined[-1].content)
    return joined


def _text_of(message: Message) -> tuple[str, str | None, str | None]:
    return message.content, message.tool_calls, message.reasoning


def _join_messages(first: Message, second: Message) -> Message:
    """Return two messages of one role as one: trained on only if both are, with the second's stop token."""
    texts = [text for text in (first.content, second.content) if text]
    calls = [call for message in (first, second) if message.tool_calls for call in json.loads(message.tool_calls)]
    tool_calls = json.dumps(calls, ensure_ascii=False, separators=(",", ":")) if calls else None
    reasonings = [message.reasoning for message in (first, second) if message.reasoning]
    return Message(
        first.role,
        "\n\n".join(texts),
        first.name if first.name == second.name else None,
        tool_calls,
        first.train and second.train,
        second.stop,
        "\n\n".join(reasonings) or None,
        first.train_reasoning and second.train_reasoning,
        first.tool_call_id,
        _join_extra(first.extra, second.extra),
        was_html=first.was_html or second.was_html,
        place=first.place,
    )


def _join_extra(first: str | None, second: str | None) -> str | None:
    """Return the keys of two turns; those of which the values differ hold both, as a list."""
    if not (first and second):
        return first or second
    joined: dict[str, object] = json.loads(first)
    for key, value in json.loads(second).items():
        joined[key] = value if joined.get(key, value) == value else [joined[key], value]
    return json.dumps(joined, ensure_ascii=False, separators=(",", ":"))


def _nothing_left(conversation: Conversation, lost: Sequence[LostExchange]) -> RecordError:
    """Return why a record has no exchange left: its lost exchanges, or that it never had one."""
    if lost:
        return NothingLeft(lost)
    messages = conversation.messages
    roles = ", ".join(message.role for message in messages[:6]) + (" …" if len(messages) > 6 else "")
    turns = "1 turn" if len(messages) == 1 else f"{len(messages)} turns"
    reason = f"no prompt with an answer: {turns} ({roles})"
    return RecordError("too_few_turns", reason, messages[0].content if messages else "")
