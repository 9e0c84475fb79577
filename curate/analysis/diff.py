"""Show what cleaning changed in a conversation: messages before and after, paired, and the words that differ."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from curate.schemas.conversation import Message

Kind = Literal["same", "gone", "new"]
Words = tuple[tuple[Kind, str], ...]  # without `new` they join to the text before, without `gone` to the text after

TOKEN = re.compile(r"</?[a-zA-Z][^<>]*>|\w+ ?|\s+|[^\w\s] ?")
TAG = re.compile(r"<[^<>]*>")
MANY = 6_000  # words and marks of both texts together; past that, lines are compared
KEY = 60  # leading letters and digits by which a message is matched before and after


@dataclass(frozen=True)
class Change:
    """A message before and after; None if it was removed, or added. Consecutive messages of one role count as one."""

    before: Message | None
    after: Message | None

    @property
    def role(self) -> str:
        """The role of the message."""
        message = self.after or self.before
        return message.role if message else ""

    @property
    def changed(self) -> bool:
        """Whether the text differs."""
        return self.before is None or self.after is None or self.before.content != self.after.content


def changes(before: Sequence[Message], after: Sequence[Message]) -> list[Change]:
    """Pair the messages of an original record with those that were kept, in order."""
    old, new = _joined(before), _joined(after)
    matcher = difflib.SequenceMatcher(None, [_key(m) for m in old], [_key(m) for m in new], autojunk=False)
    result: list[Change] = []
    for kind, i, i_end, j, j_end in matcher.get_opcodes():
        if kind == "equal":
            result += [Change(*pair) for pair in zip(old[i:i_end], new[j:j_end], strict=True)]
        else:
            result += _paired(old[i:i_end], new[j:j_end])
    return result


def words(before: str, after: str) -> Words:
    """Return both texts merged, with removed and added words marked; an HTML tag is one word."""
    if before == after:
        return (("same", before),) if before else ()
    old, new = TOKEN.findall(before), TOKEN.findall(after)
    if len(old) + len(new) > MANY:
        old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return tuple(_merged(_steps(old, new)))


def _steps(old: list[str], new: list[str]) -> Iterator[tuple[Kind, str]]:
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "same", "".join(old[i:i_end])
            continue
        yield "gone", "".join(old[i:i_end])
        yield "new", "".join(new[j:j_end])


def _merged(steps: Iterator[tuple[Kind, str]]) -> Iterator[tuple[Kind, str]]:
    for kind, same in groupby((step for step in steps if step[1]), key=lambda step: step[0]):
        yield kind, "".join(text for _, text in same)


def _joined(messages: Sequence[Message]) -> list[Message]:
    groups = [list(group) for _, group in groupby(messages, key=lambda message: message.role)]
    return [replace(group[0], content="\n\n".join(m.content for m in group)) for group in groups]


def _key(message: Message) -> tuple[str, str]:
    """Return a key by which a message is matched, independent of the markup of its text."""
    start = TAG.sub(" ", message.content[: 40 * KEY])
    return message.role, "".join(filter(str.isalnum, html.unescape(start)))[:KEY]


def _paired(old: list[Message], new: list[Message]) -> Iterator[Change]:
    """Pair messages of the same role in order, as their texts do not match."""
    while old or new:
        at = next((k for k, message in enumerate(old) if new and message.role == new[0].role), None)
        if at is None:
            gone = old if not new else []
            yield from (Change(message, None) for message in gone)
            if not new:
                return
            yield Change(None, new[0])
            new = new[1:]
            continue
        yield from (Change(message, None) for message in old[:at])
        yield Change(old[at], new[0])
        old, new = old[at + 1 :], new[1:]
