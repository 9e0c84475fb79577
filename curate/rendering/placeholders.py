"""A chat template's text, cut at control tokens and at the holes that stand for contents."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from curate.errors import RecordError
from curate.schemas.conversation import Message

Words = tuple[str, int | None]  # a text, and the control token that ends it

# A hole is white space, gone in the output where the template strips, around a number and a quotation mark, escaped
# where the template writes JSON.
_EDGE = "\u2003"
_HOLE = re.compile(f'({_EDGE}?)\ue0f0(\\d+)(\\\\?)"\ue0f1({_EDGE}?)')
_KEPT = re.compile("\ue0f2(\\d+)\ue0f3")  # where a name or a tool call says a control string, by its id
_MARKS = re.compile("[\ue0f0-\ue0f3]")


class Literal(str):
    """A control string that is text."""


@dataclass(frozen=True)
class Hole:
    """Where a content stands; `left`, `right`: white space at its ends is kept; `quoted`: as a string of JSON."""

    message: int
    left: bool
    right: bool
    quoted: bool


@dataclass(frozen=True)
class Part:
    """A stretch of a rendering: text, a control token's id, or a hole.

    `owner`: the message whose words it is, as a model would write them; `tail`: it stands after the content.
    """

    item: str | int | Hole
    owner: int | None = None
    tail: bool = False


class Cutter:
    """Cuts texts at the control tokens of a tokenizer; `ids` are theirs by name."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = ids
        self.names = {token: name for name, token in ids.items()}
        self._control = re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))) or "(?!)")

    def holed(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with holes for contents."""
        return [
            replace(m, content=f'{_EDGE}\ue0f0{i}"\ue0f1{_EDGE}' if m.content else "")
            for i, m in enumerate(self.guarded(messages))
        ]

    def guarded(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages in whose names and tool calls control strings are marked, so that they stay text."""

        def marked(text: str | None) -> str | None:
            if text and _MARKS.search(text):
                raise RecordError("template_refuses", "a name or a tool call holds characters that stand for contents")
            return text and self._control.sub(lambda found: f"\ue0f2{self.ids[found[0]]}\ue0f3", text)

        return [replace(m, name=marked(m.name), tool_calls=marked(m.tool_calls)) for m in messages]

    def items(self, text: str) -> list[tuple[str | int | Hole, int]]:
        """Cut a text with holes into text, control tokens and holes, each with its place."""
        out: list[tuple[str | int | Hole, int]] = []
        done = 0
        found = [*_HOLE.finditer(text), *_KEPT.finditer(text), *self._control.finditer(text)]
        for match in sorted(found, key=lambda one: one.start()):
            if match.start() > done:
                out.append((text[done : match.start()], done))
            out.append((self._item(match), match.start()))
            done = match.end()
        return [*out, (text[done:], done)] if done < len(text) else out

    def _item(self, match: re.Match[str]) -> str | int | Hole:
        if match.re is _HOLE:
            return Hole(int(match[2]), bool(match[1]), bool(match[4]), bool(match[3]))
        return Literal(self.names.get(int(match[1]), match[0])) if match.re is _KEPT else self.ids[match[0]]

    def words(self, text: str) -> list[Words]:
        """Cut the template's own text at control tokens."""
        out: list[Words] = [("", None)]
        for item, _ in self.items(text):
            said = out.pop()[0]
            out += [(said, item), ("", None)] if isinstance(item, int) else [(said + str(item), None)]
        return out

    def until(self, text: str, stops: Collection[int]) -> str:
        """Return a text up to the first of some control tokens, that token too."""
        ends = (found.end() for found in self._control.finditer(text) if self.ids[found[0]] in stops)
        return text[: next(ends, None)]

    def has_controls(self, text: str) -> bool:
        """Tell whether a text says a control token."""
        return self._control.search(text) is not None


def filled(item: str | int | Hole, messages: Sequence[Message], names: dict[int, str]) -> str:
    if isinstance(item, int):
        return names[item]
    if isinstance(item, str):
        return item
    content = messages[item.message].content
    content = content if item.left else content.lstrip()
    content = content if item.right else content.rstrip()
    return json.dumps(content, ensure_ascii=False)[1:-1] if item.quoted else content


def variants(content: str) -> tuple[str, ...]:
    return content, content.rstrip(), content.lstrip(), content.strip()


def parting(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    """Show where two texts, or two lists of ids, part."""
    at = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), len(ours))
    return f"{ours[max(0, at - 10) : at + 40]!r} and {theirs[max(0, at - 10) : at + 40]!r}"
