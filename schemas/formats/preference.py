"""Preference data: a prompt with a chosen answer, which is read, and a rejected one, which is kept beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message
from curate.schemas.formats import pairs
from curate.schemas.formats.datasets import marked_text
from curate.schemas.formats.format import Format
from curate.schemas.reading import turn_columns, turns
from curate.schemas.reading.key_kinds import CHOSEN_KEYS, COMPLETION_KEYS, REJECTED_KEYS, has_content, to_number

NAME = "preference"
SUMMARY = "TRL's, LLaMA-Factory's and OpenAI's preference pairs: {prompt, chosen, rejected}; HH-RLHF's texts too."
RULE = "bad_preference"


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has a chosen or a rejected answer; turns with one are read by their own format."""
    return any(_is_answer(record.get(key)) for key in (*CHOSEN_KEYS, *REJECTED_KEYS))


def parse(record: Mapping[str, object]) -> Conversation:
    """Read the prompt; the chosen answer stays in the metadata, from which `add_answer` moves it."""
    conversation = Conversation(None, [])
    conversation.source_id = turns.read_source_id(conversation, record.get("id"))
    used = {"id"}
    prompt = record.get("input")
    if isinstance(prompt, dict) and isinstance(prompt.get("messages"), list):  # OpenAI's form
        turns.read_messages(conversation, prompt["messages"], "role", "content")
        rest = {key: value for key, value in prompt.items() if key != "messages"}
        is_free = rest.keys().isdisjoint({"id", *record})
        record = {**record, **rest} if is_free else {**record, "prompt_settings": rest}
        used.add("input")
    else:
        used |= pairs.read_prompt(conversation, record)
    turns.read_other_keys(conversation, record, frozenset(used))
    return conversation


def add_answer(conversation: Conversation) -> None:
    """Move the chosen answer, or else a completion, from the metadata to the end of the messages.

    A chosen answer may repeat the whole chat. The rejected one becomes the conversation's, or stays in the metadata if
    it cannot be read. Raises RecordError if there is only a rejected answer, or if the turns contradict the chosen one.
    """
    metadata = conversation.metadata
    chosen, completion, rejected = (_key(metadata, keys) for keys in (CHOSEN_KEYS, COMPLETION_KEYS, REJECTED_KEYS))
    if chosen and (rejected or not _is_answered(conversation)):
        steps = _add_chosen(conversation, metadata.pop(chosen), chosen)
        if rejected and not _is_tied(conversation):
            keep_rejected(conversation, rejected, metadata.pop(rejected), steps=steps)
    elif _is_answered(conversation):
        return
    elif completion:
        pairs.add_messages(conversation, "assistant", metadata.pop(completion))
    elif rejected:
        raise RecordError(RULE, "the record has a rejected answer and no chosen one", turns.preview(metadata))


def _is_tied(conversation: Conversation) -> bool:
    """Return whether a pair's scores are equal, and note it; raises RecordError if the rejected answer has the higher.

    Sources of the keys: HuggingFaceH4/ultrafeedback_binarized and argilla's sets of pairs on huggingface.co/datasets.
    """
    metadata = conversation.metadata
    for pattern, name in product(("{0}_{1}", "{1}_{0}", "{1}-{0}"), ("score", "rating")):
        scores = [to_number(metadata.get(pattern.format(name, side))) for side in ("chosen", "rejected")]
        if scores[0] is None or scores[1] is None:
            continue
        if scores[0] < scores[1]:
            reason = f"the chosen answer has the {name} {scores[0]:g}, and the rejected one {scores[1]:g}"
            raise RecordError(RULE, reason, turns.preview(metadata))
        if scores[0] == scores[1]:
            conversation.edit("tied_answers", None, f"both answers have the {name} {scores[0]:g}", "", 2)
            return True
    return False


def _items(value: object) -> Sequence[object]:
    value = turn_columns.decode_messages(value, RULE) or value
    return marked_text.split_chat(value) or (value if isinstance(value, list) else [value])


def keep_rejected(
    conversation: Conversation, key: str, value: object, items: Sequence[object] | None = None, steps: int = 1
) -> None:
    """Make a value the rejected answer: to the messages before the last one, as an answer or as a whole chat.

    It stays in the metadata, under its key, if it is neither, or if it answers something else. `items` are its turns
    with the usual keys, if it has others. The last `steps` messages are the chosen answer; all but the last, calls of
    tools and their results, are those of the rejected one too.
    """
    other = Conversation(None, [])
    try:
        decoded = turn_columns.decode_messages(value, key) or value
        pairs.add_messages(other, "assistant", decoded if items is None else list(items))
    except RecordError:
        other.messages = []
    rejected = _after(conversation.messages, other.messages, steps) if _is_answered(conversation) else []
    if rejected and not other.flaws:
        conversation.rejected_answer = rejected
        conversation.edits += [replace(edit, message=None) for edit in other.edits]
    else:
        conversation.metadata[key] = turns.to_plain_json(value)


def _after(chosen: Sequence[Message], messages: list[Message], steps: int) -> list[Message]:
    """Return the messages of a chat, or of an answer, after what it has in common with the chosen one; none if none."""
    before = chosen[:-1]
    if not any(message.role == "user" for message in messages):
        before = before[len(chosen) - steps :]
    elif has_system(before) != has_system(messages):
        before, messages = before[has_system(before) :], messages[has_system(messages) :]
    repeated, rejected = messages[: len(before)], messages[len(before) :]
    is_answer = bool(rejected) and all(message.role in ("assistant", "tool") for message in rejected)
    is_repeated = _contents(repeated) == _contents(before) and all(
        message.extra in (None, kept.extra) and message.name in (None, kept.name)
        for message, kept in zip(repeated, before, strict=True)
    )
    return rejected if is_answer and is_repeated else []


def _key(metadata: Mapping[str, object], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if _is_answer(metadata.get(key))), None)


def _is_answer(value: object) -> bool:
    """Return whether a value can be an answer: not a number or a flag, such as `rejected: false`."""
    return isinstance(value, str | list | dict) and has_content(value)


def _is_answered(conversation: Conversation) -> bool:
    return bool(conversation.messages) and conversation.messages[-1].role == "assistant"


def _add_chosen(conversation: Conversation, value: object, key: str) -> int:
    """Add the chosen answer; return the number of its messages."""
    items = _items(value)
    if any(isinstance(item, dict) and turns.is_prompt(item) for item in items):
        _read_whole_chat(conversation, items, key)
        roles = [message.role for message in conversation.messages]
        return roles[::-1].index("user") if "user" in roles else len(roles)
    before = list(conversation.messages)
    if not any(message.role == "user" for message in before):
        raise RecordError(RULE, f"{key!r} holds an answer, and there is no prompt", turns.preview(value))
    pairs.add_messages(conversation, "assistant", value)
    added = conversation.messages[len(before) :]
    if before[-1].role == "assistant":  # the turns may include the chosen answer already
        if _contents(before[-len(added) :]) != _contents(added):
            raise RecordError(RULE, f"the last turn is an answer that differs from {key!r}", turns.preview(value))
        conversation.messages = before
    return len(added)


def _read_whole_chat(conversation: Conversation, items: Sequence[object], key: str) -> None:
    """Replace the messages, if there are any, by a chosen chat that contains them."""
    chosen = Conversation(None, [])
    turns.read_messages(chosen, items, "role", "content")
    if not contains(chosen.messages, conversation.messages):
        raise RecordError(RULE, f"the prompt is not in {key!r}", turns.preview(conversation.messages[0].content))
    system = conversation.messages[:1] if not has_system(chosen.messages) and has_system(conversation.messages) else []
    conversation.messages = chosen.messages
    conversation.edits = [edit for edit in conversation.edits if edit.message is None] + chosen.edits
    conversation.flaws = chosen.flaws
    if system:
        conversation.insert_system(system[0].content)


def has_system(messages: Sequence[Message]) -> bool:
    """Return whether messages begin with a system message."""
    return bool(messages) and messages[0].role == "system"


def contains(messages: Sequence[Message], part: Sequence[Message]) -> bool:
    """Return whether messages have others among them, in a row, but for blanks at their ends.

    A system message that only one of the two has does not count.
    """
    if has_system(part) and not has_system(messages):
        part = part[1:]
    whole, inner = _contents(messages), _contents(part)
    return any(whole[start : start + len(inner)] == inner for start in range(len(whole) - len(inner) + 1))


def _contents(messages: Sequence[Message]) -> list[tuple[str, str, str | None]]:
    return [(message.role, message.content.strip(), message.tool_calls) for message in messages]


FORMAT = Format(
    NAME,
    SUMMARY,
    recognises,
    parse,
    writes=False,
    requires=("prompt", "chosen", "rejected"),
)
