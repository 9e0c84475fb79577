"""Gemini's activity in Google Takeout (`MyActivity.json`): one exchange a record, its answer in HTML.

Takeout has no ids and no titles, so exchanges of one chat cannot be told from those of another: each is a conversation.
Only English activity is read, where a prompt's title begins with "Prompted": in other languages the words around the
prompt are unknown, and would become part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message
from curate.schemas.formats.format import Format
from curate.schemas.reading import media, turns
from curate.schemas.reading.key_kinds import has_content

NAME = "gemini"
SUMMARY = (
    "Gemini's activity in Google Takeout (MyActivity.json, in English): {header, title, time, safeHtmlItem: [{html}]}."
)

PRODUCT = "Gemini Apps"
PRODUCTS = (PRODUCT, "Bard")  # its earlier name
PROMPTED = "Prompted"  # the first word of a prompt's title, before the prompt itself
FILES = "attachedFiles"  # images and sound have keys that every format knows
PERSONAL_KEYS = ("titleUrl", "locationInfos", "account", "authorization", "sessionToken", "activityControls")
_USED = frozenset({"title", "safeHtmlItem", *PERSONAL_KEYS})


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record is an activity of Takeout, of Gemini or of another product."""
    return "header" in record and "title" in record and "time" in record


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one exchange; raises RecordError for an activity that is no prompt, or whose prompt is not clear."""
    conversation = Conversation(None, [])
    conversation.messages.append(Message("user", _prompt(record)))
    if html := [str(item["html"]) for item in _items(record)]:
        conversation.messages.append(Message("assistant", "\n".join(html), is_html=True))
    turns.read_other_keys(conversation, record, _USED)
    if others := [rest for item in _items(record) if (rest := {key: item[key] for key in item if key != "html"})]:
        conversation.metadata["safeHtmlItem"] = turns.to_plain_json(others)
    if personal := [key for key in PERSONAL_KEYS if has_content(record.get(key))]:
        conversation.edit("personal_data", None, ", ".join(personal), "", len(personal))
    if has_content(record.get(FILES)):
        reason = f"turn 0 has {FILES!r}, which a text model cannot see"
        conversation.flaw(media.RULE, 0, reason, turns.preview(record[FILES]))
    return conversation


def _prompt(record: Mapping[str, object]) -> str:
    header, title = record["header"], record["title"]
    products = record.get("products")
    named = [header, *(products if isinstance(products, list) else [])]
    if not any(name in PRODUCTS for name in named):
        raise RecordError("no_messages", f"the record is an activity of {turns.preview(header)[:40]!r}, not of Gemini")
    if not isinstance(title, str) or not title.strip():
        raise RecordError("no_messages", "the activity has no title, which holds the prompt", turns.preview(record))
    word, _, prompt = title.partition(" ")
    if word != PROMPTED:
        reason = f"the activity's title does not begin with {PROMPTED!r}: it is no prompt, or not in English"
        raise RecordError(
            "no_messages", f"{reason}; export it with the Google account's language set to English", title
        )
    return prompt


def _items(record: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Return the items of the answer, each with HTML; raises RecordError for anything else."""
    value = record.get("safeHtmlItem") or []
    items: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(item, dict) and isinstance(item.get("html"), str) for item in items):
        raise RecordError("bad_value", "'safeHtmlItem' holds something other than HTML", turns.preview(value))
    return items


FORMAT = Format(NAME, SUMMARY, recognises, parse, writes=False)
