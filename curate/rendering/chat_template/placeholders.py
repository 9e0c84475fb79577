"""Placeholders for what messages say, and a chat template's text cut at placeholders and control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from curate.errors import RecordError
from curate.rendering.expected import EndedText
from curate.schemas.conversation import Message

# A placeholder is the message's index and a quotation mark between two private-use characters, with white space around
# them; `r` before the index marks a reasoning. If the template strips contents, its output lacks the white space. If it
# writes contents as JSON, there is a backslash before the quotation mark.
_EDGE = "\u2003"  # em space: Python strips it, and the text of a template hardly ever has it
_PLACEHOLDER = re.compile(f'({_EDGE}?)\ue0f0(r?)(\\d+)(\\\\?)"\ue0f1({_EDGE}?)')
_ESCAPED_CONTROL = re.compile("\ue0f2(\\d+)\ue0f3")  # a control string in a name or a tool call, by its id
_SHIELDED = re.compile("\ue0f4(\\d+)\ue0f5")  # a control string in a message while white space is stripped, by its id
# What a control token with `lstrip` or `rstrip` takes in: Unicode's White_Space, the `\s` of the tokenizers library.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# A name or tool call with one of these could pass for a placeholder. Contents may have them: they are filled in later.
_RESERVED = re.compile("[\ue0f0-\ue0f3]")


_FLAGS = {  # of control tokens, and what they mean
    "lstrip": "white space before it is lost",
    "rstrip": "white space after it is lost",
    "single_word": "it is no token next to a letter or digit",
}


class EscapedControl(str):
    """A control string in a name or a tool call: text, not a control token."""


@dataclass(frozen=True)
class Placeholder:
    """The content of message number `message`, or its reasoning.

    `keeps_left` and `keeps_right`: the template keeps white space at that end. `quoted`: it writes the text within a
    JSON string.
    """

    message: int
    keeps_left: bool
    keeps_right: bool
    quoted: bool
    is_reasoning: bool = False


Item = str | int | Placeholder  # text, a control token's id, or a placeholder


@dataclass(frozen=True)
class TemplatePart:
    """One item of a rendering, and the message that it belongs to.

    An answer owns its content and what the model writes around it, such as the stop token. `after_content`: the item
    comes after the message's content. `is_reasoning`: it is the answer's reasoning, or comes before that.
    """

    item: Item
    message: int | None = None  # index in the conversation; None for the template's own text
    after_content: bool = False
    is_reasoning: bool = False


class TemplateScanner:
    """Puts placeholders into messages, and locates them and control tokens in the text that a template writes.

    `flags` are `Tokenizer.control_flags`.
    """

    def __init__(self, control_ids: Mapping[str, int], flags: Mapping[str, Collection[str]]) -> None:
        self.control_ids = control_ids  # by control string
        self._flags = flags
        self.control_names = {token: name for name, token in control_ids.items()}
        longest_first = sorted(control_ids, key=len, reverse=True)  # one control string may be the start of another
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # `(?!)` never matches

    def insert_placeholders(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with placeholders instead of contents and reasonings, and escaped control strings.

        Raises RecordError as `escape_controls` does.
        """
        return [
            # An empty content stays empty: templates test for it.
            replace(
                m,
                content=f'{_EDGE}\ue0f0{i}"\ue0f1{_EDGE}' if m.content else "",
                reasoning=f'{_EDGE}\ue0f0r{i}"\ue0f1{_EDGE}' if m.reasoning else None,
            )
            for i, m in enumerate(self.escape_controls(messages))
        ]

    def escape_controls(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with the control strings in names and tool calls escaped, so that they stay text.

        Raises RecordError for a name or tool call with a reserved character.
        """

        def escape(text: str | None) -> str | None:
            if text and _RESERVED.search(text):
                reason = "a name or a tool call has one of the characters U+E0F0 to U+E0F3, which are reserved"
                raise RecordError("template_refuses", reason)
            return text and self._control.sub(lambda match: f"\ue0f2{self.control_ids[match[0]]}\ue0f3", text)

        return [replace(m, name=escape(m.name), tool_calls=escape(m.tool_calls)) for m in messages]

    def scan(self, text: str) -> list[tuple[Item, int]]:
        """Cut a template's text into items, each with its position in characters; together they are all of the text."""
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
            return Placeholder(int(match[3]), bool(match[1]), bool(match[5]), bool(match[4]), bool(match[2]))
        if match.re is _ESCAPED_CONTROL:
            return EscapedControl(self.control_names.get(int(match[1]), match[0]))
        return self.control_ids[match[0]]

    @cached_property
    def strips(self) -> bool:
        """Whether some control token takes in white space."""
        return any(flag.endswith("strip") for flags in self._flags.values() for flag in flags)

    def shield(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages without their control strings, which `unshield` puts back into a template's text."""

        def shielded(text: str | None) -> str | None:
            return text and self._control.sub(lambda match: f"\ue0f4{self.control_ids[match[0]]}\ue0f5", text)

        return [
            replace(
                m,
                content=shielded(m.content) or "",
                reasoning=shielded(m.reasoning),
                name=shielded(m.name),
                tool_calls=shielded(m.tool_calls),
            )
            for m in messages
        ]

    def unshield(self, text: str) -> str:
        """Return a text with the control strings that `shield` took out."""
        return _SHIELDED.sub(lambda match: self.control_names.get(int(match[1]), match[0]), text)

    def strip(self, text: str) -> str:
        """Return a template's text without the white space that its control tokens take in when a server reads it."""
        parts: list[str] = []
        last, done = "", 0  # the control string before, and where it ends
        for match in [*self._control.finditer(text), None]:
            part = text[done : match.start() if match else None]
            part = part.lstrip(_WHITE) if "rstrip" in self._flags.get(last, ()) else part
            last, done = (match[0], match.end()) if match else ("", len(text))
            part = part.rstrip(_WHITE) if "lstrip" in self._flags.get(last, ()) else part
            parts += [part, last]
        return "".join(parts)

    def describe_flags(self, text: str) -> str:
        """Return how a server reads a control string in a text, where that is not simply as the token; may be empty."""
        for match in self._control.finditer(text):
            for flag in self._flags.get(match[0], ()):
                return f"its control string {match[0]!r} has `{flag}`: {_FLAGS[flag]}"
        return ""

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
        """Return an item as text: a control token by name, a placeholder as its message's content or reasoning."""
        return next(self.fills(item, messages))

    def fills(self, item: Item, messages: Sequence[Message]) -> Iterator[str]:
        """Yield what an item may be as text: first what the placeholder shows, then without line ends at its ends."""
        if isinstance(item, int):
            yield self.control_names[item]
        elif isinstance(item, str):
            yield item
        else:
            message = messages[item.message]
            text = (message.reasoning or "") if item.is_reasoning else message.content
            # The template would do the same to the text as it did to the placeholder.
            text = text if item.keeps_left else text.lstrip()
            text = text if item.keeps_right else text.rstrip()
            for variant in dict.fromkeys((text, text.rstrip("\n"), text.lstrip("\n"), text.strip("\n"))):
                yield json.dumps(variant, ensure_ascii=False)[1:-1] if item.quoted else variant


def cut_at(items: Sequence[tuple[Item, int]], positions: Collection[int]) -> list[tuple[Item, int]]:
    """Return the items, with a text cut in two where one of `positions` is inside it.

    Positions are characters of the template's text; each item comes with its own.
    """
    parts: list[tuple[Item, int]] = []
    for item, start in items:
        cut = None
        if isinstance(item, str) and not isinstance(item, EscapedControl):
            cut = next((position for position in positions if start < position < start + len(item)), None)
        if isinstance(item, str) and cut is not None:
            parts += [(item[: cut - start], start), (item[cut - start :], cut)]
        else:
            parts.append((item, start))
    return parts


def strip_variants(content: str) -> tuple[str, ...]:
    """Return a content as a template may write it: unchanged, or stripped of line ends or of all white space."""
    newlines = content.rstrip("\n"), content.lstrip("\n"), content.strip("\n")
    return content, *newlines, content.rstrip(), content.lstrip(), content.strip()


def show_difference(first: Sequence[Any], second: Sequence[Any]) -> str:
    """Return two texts, or two lists of ids, around their first difference, for an error message."""
    pairs = enumerate(zip(first, second, strict=False))
    index = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    window = slice(max(0, index - 10), index + 40)
    return f"{first[window]!r} and {second[window]!r}"
