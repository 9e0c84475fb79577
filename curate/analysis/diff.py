"""Show what cleaning changed in a conversation: pairs of messages before and after, and the parts that differ."""

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
WordDiff = tuple[tuple[Kind, str], ...]  # all but `new` join to the text before, all but `gone` to the text after

TOKEN = re.compile(r"</?[a-zA-Z][^<>]*>|\w+ ?|\s+|[^\w\s] ?")
TAG = re.compile(r"<[^<>]*>")
MAX_TOKENS = 6_000  # of both texts together; longer texts are compared by lines
KEY_LENGTH = 60  # leading letters and digits by which a message is matched before and after


@dataclass(frozen=True)
class Change:
    """A message before and after cleaning; `after` is None if it was removed, `before` if it was added.

    Consecutive messages of the same role are joined into one.
    """

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
    old, new = _join_roles(before), _join_roles(after)
    matcher = difflib.SequenceMatcher(None, [_key(m) for m in old], [_key(m) for m in new], autojunk=False)
    result: list[Change] = []
    for kind, i, i_end, j, j_end in matcher.get_opcodes():
        if kind == "equal":
            result += [Change(*pair) for pair in zip(old[i:i_end], new[j:j_end], strict=True)]
        else:
            result += _pair(old[i:i_end], new[j:j_end])
    return result


def diff_words(before: str, after: str) -> WordDiff:
    """Return both texts merged, with removed and added tokens marked; a token is a word, a symbol or an HTML tag."""
    if before == after:
        return (("same", before),) if before else ()
    old, new = TOKEN.findall(before), TOKEN.findall(after)
    if len(old) + len(new) > MAX_TOKENS:
        old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return tuple(_merge(_steps(old, new)))


def _steps(old: list[str], new: list[str]) -> Iterator[tuple[Kind, str]]:
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "same", "".join(old[i:i_end])
            continue
        yield "gone", "".join(old[i:i_end])
        yield "new", "".join(new[j:j_end])


def _merge(steps: Iterator[tuple[Kind, str]]) -> Iterator[tuple[Kind, str]]:
    for kind, group in groupby((step for step in steps if step[1]), key=lambda step: step[0]):
        yield kind, "".join(text for _, text in group)


def _join_roles(messages: Sequence[Message]) -> list[Message]:
    groups = [list(group) for _, group in groupby(messages, key=lambda message: message.role)]
    return [replace(group[0], content="\n\n".join(m.content for m in group)) for group in groups]


def _key(message: Message) -> tuple[str, str]:
    """Return a key by which a message is matched, independent of the markup of its text."""
    start = TAG.sub(" ", message.content[: 40 * KEY_LENGTH])
    return message.role, "".join(filter(str.isalnum, html.unescape(start)))[:KEY_LENGTH]


def _pair(old: list[Message], new: list[Message]) -> Iterator[Change]:
    """Pair messages whose texts do not match by role, in order."""
    while old or new:
        index = next((k for k, message in enumerate(old) if new and message.role == new[0].role), None)
        if index is None:
            removed = old if not new else []
            yield from (Change(message, None) for message in removed)
            if not new:
                return
            yield Change(None, new[0])
            new = new[1:]
            continue
        yield from (Change(message, None) for message in old[:index])
        yield Change(old[index], new[0])
        old, new = old[index + 1 :], new[1:]
