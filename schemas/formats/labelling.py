"""Rows for labelling in a spreadsheet: one for each conversation, with empty columns for a label and a comment.

A text that a spreadsheet would take for a formula gets an apostrophe in front, and so does one that begins with an
apostrophe, so that reading removes exactly what writing added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from curate.errors import RecordError
from curate.schemas import writing
from curate.schemas.conversation import Conversation, Message
from curate.schemas.formats.format import Format
from curate.schemas.reading import turns
from curate.schemas.reading.key_kinds import KINDS, flag_label

NAME = "csv"
SUMMARY = "A table for labelling: id, system, history, prompt, answer, model, metadata, and empty label and comment."

COLUMNS = ("id", "system", "history", "prompt", "answer", "model", "metadata", "label", "comment")
_KEYS = set(COLUMNS)
LACKS = ("name", "tool_call_id", "extra", "tools", "rejected_answer")
# What begins a formula, or is taken for the beginning of one after a blank is cut (also in full width); see OWASP's
# page on CSV injection.
GUARDED = tuple("=+-@\t\r\n'＝＋－＠")


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether curate wrote this row."""
    return record.keys() == _KEYS and all(isinstance(record[key] or "", str) for key in COLUMNS)


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one row; a label that says no marks the conversation as bad, any other label goes to the metadata."""
    cells = {key: _unguard(str(value or "")) for key, value in record.items()}
    metadata, history = _decode(cells["metadata"] or "{}"), _decode(cells["history"] or "[]")
    if not isinstance(metadata, dict) or not isinstance(history, list):
        raise _changed(record)
    conversation = Conversation(cells["id"] or None, [], cells["model"] or None, metadata=metadata)
    if cells["system"]:
        conversation.messages.append(Message("system", cells["system"]))
    for pair in (*history, (cells["prompt"], cells["answer"])):
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise _changed(record)
        conversation.messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    _read_labels(conversation, cells)
    return conversation


def _read_labels(conversation: Conversation, cells: Mapping[str, str]) -> None:
    for key in ("label", "comment"):
        if cells[key].strip():
            conversation.metadata[key] = cells[key]
    kind = KINDS.get("label")
    if kind == "bad_if_false" and cells["label"].strip():
        flag_label(conversation, "label", kind, cells["label"], None)


def _decode(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _changed(record: Mapping[str, object]) -> RecordError:
    reason = "the history or the metadata is not the JSON that curate wrote"
    return RecordError("bad_value", reason, turns.preview([record["history"], record["metadata"]]))


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a conversation of prompts, each with its answer; raises RecordError for what a row cannot express."""
    writing.refuse(conversation)
    messages = conversation.messages
    system = messages[0].content if messages and messages[0].role == "system" else ""
    chat = messages[1:] if messages and messages[0].role == "system" else messages
    roles = [message.role for message in chat]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise RecordError(writing.RULE, f"{len(messages)} messages; a row has prompts, each with an answer")
    texts = [message.content for message in chat]
    pairs = list(zip(texts[:-2:2], texts[1:-2:2], strict=True))
    cells = {
        "system": system,
        "history": json.dumps(pairs, ensure_ascii=False, indent=1) if pairs else "",
        "prompt": texts[-2],
        "answer": texts[-1],
        "model": conversation.model or "",
        "metadata": json.dumps(conversation.metadata, ensure_ascii=False) if conversation.metadata else "",
    }
    name = None if conversation.source_id is None else _guard(conversation.source_id)
    return {"id": name, **{key: _guard(cells.get(key, "")) for key in COLUMNS[1:]}}


def _guard(text: str) -> str:
    if "\0" in text:
        raise RecordError(writing.RULE, "a text has a zero byte, which a table cannot hold", text)
    return f"'{text}" if text.lstrip(" \u00a0").startswith(GUARDED) else text


def _unguard(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].lstrip(" \u00a0").startswith(GUARDED) else text


FORMAT = Format(NAME, SUMMARY, recognises, parse, dump, lacks=LACKS)
