"""Placeholders for the contents of messages, and a chat template's text cut at placeholders and control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from curate.errors import RecordError
from curate.rendering.expected import EndedText
from curate.schemas.conversation import Message

# A placeholder is the message's index and a quotation mark between two private-use characters, with white space around
# them. In the template's output the white space is gone if the template strips contents, and a backslash is before the
# quotation mark if it writes them as JSON.
_EDGE = "\u2003"
_PLACEHOLDER = re.compile(f'({_EDGE}?)\ue0f0(\\d+)(\\\\?)"\ue0f1({_EDGE}?)')
_ESCAPED_CONTROL = re.compile("\ue0f2(\\d+)\ue0f3")  # a control string in a name or a tool call, by its id
_RESERVED = re.compile("[\ue0f0-\ue0f3]")


class EscapedControl(str):
    """A control string that a message says: text, not a control token."""


@dataclass(frozen=True)
class Placeholder:
    """The content of message number `message`.

    `keeps_left` and `keeps_right`: white space at that end is written too. `quoted`: it is within a JSON string.
    """

    message: int
    keeps_left: bool
    keeps_right: bool
    quoted: bool


Item = str | int | Placeholder  # text, a control token's id, or a placeholder


@dataclass(frozen=True)
class TemplatePart:
    """One item of a rendering; `message` is the index of the message whose text it is, as a model would write it.

    `after_content`: it comes after the message's content.
    """

    item: Item
    message: int | None = None
    after_content: bool = False


class TemplateScanner:
    """Puts placeholders into messages, and finds them and control tokens in the text that a template writes."""

    def __init__(self, control_ids: Mapping[str, int]) -> None:
        self.control_ids = control_ids
        self.control_names = {token: name for name, token in control_ids.items()}
        longest_first = sorted(control_ids, key=len, reverse=True)  # one control string may be the start of another
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def insert_placeholders(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with placeholders instead of contents, and escaped control strings."""
        return [
            replace(m, content=f'{_EDGE}\ue0f0{i}"\ue0f1{_EDGE}' if m.content else "")
            for i, m in enumerate(self.escape_controls(messages))
        ]

    def escape_controls(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with the control strings in names and tool calls escaped, so that they stay text."""

        def escape(text: str | None) -> str | None:
            if text and _RESERVED.search(text):
                reason = "a name or a tool call has one of the characters U+E0F0 to U+E0F3, which are reserved"
                raise RecordError("template_refuses", reason)
            return text and self._control.sub(lambda match: f"\ue0f2{self.control_ids[match[0]]}\ue0f3", text)

        return [replace(m, name=escape(m.name), tool_calls=escape(m.tool_calls)) for m in messages]

    def scan(self, text: str) -> list[tuple[Item, int]]:
        """Cut a template's text into items, each with its position in characters."""
        items: list[tuple[Item, int]] = []
        done = 0  # characters that are in an item
        matches = [*_PLACEHOLDER.finditer(text), *_ESCAPED_CONTROL.finditer(text), *self._control.finditer(text)]
        for match in sorted(matches, key=lambda match: match.start()):
            if match.start() > done:
                items.append((text[done : match.start()], done))
            items.append((self._item(match), match.start()))
            done = match.end()
        return [*items, (text[done:], done)] if done < len(text) else items

    def _item(self, match: re.Match[str]) -> Item:
        if match.re is _PLACEHOLDER:
            return Placeholder(int(match[2]), bool(match[1]), bool(match[4]), bool(match[3]))
        if match.re is _ESCAPED_CONTROL:
            return EscapedControl(self.control_names.get(int(match[1]), match[0]))
        return self.control_ids[match[0]]

    def split_at_controls(self, text: str) -> list[EndedText]:
        """Cut text without placeholders after each control token; the last part has none, and may be empty."""
        texts: list[EndedText] = [("", None)]
        for item, _ in self.scan(text):
            last = texts.pop()[0]
            texts += [(last, item), ("", None)] if isinstance(item, int) else [(last + str(item), None)]
        return texts

    def until_control(self, text: str, tokens: Collection[int]) -> str:
        """Return the text up to and including the first control token of `tokens`; all of it if there is none."""
        ends = (match.end() for match in self._control.finditer(text) if self.control_ids[match[0]] in tokens)
        return text[: next(ends, None)]

    def has_control(self, text: str) -> bool:
        """Return whether a text contains a control string."""
        return self._control.search(text) is not None

    def fill(self, item: Item, messages: Sequence[Message]) -> str:
        """Return an item as text: control tokens by name, a placeholder by its message's content."""
        if isinstance(item, int):
            return self.control_names[item]
        if isinstance(item, str):
            return item
        content = messages[item.message].content
        content = content if item.keeps_left else content.lstrip()
        content = content if item.keeps_right else content.rstrip()
        return json.dumps(content, ensure_ascii=False)[1:-1] if item.quoted else content


def strip_variants(content: str) -> tuple[str, ...]:
    """Return a content in the forms that a template may write: unchanged, or stripped at one end or both."""
    return content, content.rstrip(), content.lstrip(), content.strip()


def show_difference(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    """Return what follows where two texts, or two lists of ids, first differ, for an error message."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    window = slice(max(0, place - 10), place + 40)
    return f"{ours[window]!r} and {theirs[window]!r}"
