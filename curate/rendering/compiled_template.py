"""A built-in template compiled for a tokenizer: conversations with the same roles share a skeleton, built once.

Only the contents differ between two such renderings, so writing one means filling a few format strings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from curate.rendering.text_batch import TextBatch
from curate.schemas.conversation import Message, Role
from curate.schemas.prompts import (
    EOS,
    Segment,
    Template,
    content_of,
    default_system,
    fit,
    generation_prompt,
    is_masked,
    render,
)
from curate.tokenization.tokenizer import Tokenizer

ANSWERS: frozenset[Role] = frozenset({"assistant"})

_PLACEHOLDER = "\0"  # in place of a content; no white space, as a template may strip contents
_REASONING = "\1"  # in place of a masked reasoning


class _Position(NamedTuple):
    """A position in a block whose contents are unknown: `fixed` characters and `contents` contents come before it."""

    fixed: int
    contents: int


class _BlockFormat(NamedTuple):
    """A block without its contents: `text` has a `%s` for each index in `contents`: of a message, or of a masked
    reasoning, which come after all messages.

    `spans`: message index, start and stop.
    """

    text: str
    contents: tuple[int, ...]
    spans: tuple[tuple[int, _Position, _Position], ...]


class _ControlSlot(NamedTuple):
    """A control token of a skeleton."""

    token: int  # id
    message: int | None  # the message that the token ends, if it may be supervised


Skeleton = tuple[_BlockFormat | _ControlSlot, ...]


class CompiledTemplate:
    """Writes renderings in a template, fitted to a tokenizer; only messages of `roles` can be supervised."""

    def __init__(self, template: Template, tokenizer: Tokenizer, roles: Collection[Role] = ANSWERS) -> None:
        self.template = fit(template, tokenizer.control_ids)
        self.tokenizer = tokenizer
        self.roles = frozenset(roles)  # may be supervised; a message's own `train` decides
        self._skeletons: dict[object, Skeleton] = {}  # by roles, system message and which contents are empty

    @cached_property
    def stop_id(self) -> int:
        """The token that ends an answer."""
        after = self.template.by_role["assistant"].segment_parts[1]
        return self.tokenizer.control_ids[next((control for _, control in after if control), EOS)]

    def append(self, batch: TextBatch, messages: Sequence[Message], first: bool = True) -> None:
        """Append the rendering of `messages`; with `first` false, as exchanges that follow others."""
        contents, skeleton = self._prepare(messages, first)
        for part in skeleton:
            if isinstance(part, _ControlSlot):
                message = None if part.message is None else messages[part.message]
                batch.add_control(part.token, message is not None and message.stop and self._supervises(message))
                continue
            texts = tuple([contents[i] for i in part.contents])
            batch.add_block(part.text % texts)
            if part.spans:
                sizes = (0, *accumulate(map(len, texts)))  # characters of the first k contents
                for index, start, stop in part.spans:
                    bounds = start.fixed + sizes[start.contents], stop.fixed + sizes[stop.contents]
                    batch.add_span(*bounds, self._supervises(messages[index]))
        batch.end_rendering()

    def append_prompt(self, batch: TextBatch, messages: Sequence[Message]) -> None:
        """Append the generation prompt after `messages`; spans are placed as in training, none is supervised."""
        # Only supervised segments become spans, and earlier answers need theirs: no token may cross their start.
        marked = [
            replace(message, train=True, train_reasoning=message.train_reasoning or not message.train)
            for message in messages
        ]
        for part in _group(generation_prompt(self.template, marked, roles=self.roles | ANSWERS)):
            if isinstance(part, Segment):
                batch.add_control(self._token(part), False)
                continue
            batch.add_block("".join(segment.text for segment in part))
            position = 0  # in characters of the block
            for segment in part:
                if segment.supervised:
                    batch.add_span(position, position + len(segment.text), False)
                position += len(segment.text)
        batch.end_rendering()

    def opening_is_fixed(self, opened: Sequence[Message], exchange: Sequence[Message]) -> bool:
        """Return whether `opened` is a fixed opening followed by `exchange` as written later in a conversation.

        The first word after the opening must hold no content. Then the opening adds the same number of tokens,
        whatever the messages say.
        """
        opened_skeleton, following = self._prepare(opened, True)[1], self._prepare(exchange, False)[1]
        if len(opened_skeleton) < len(following) or not isinstance(following[0], _BlockFormat):
            return False
        # Aligned at the end: the opening is what comes before.
        pairs = list(zip(opened_skeleton[len(opened_skeleton) - len(following) :], following, strict=True))
        formats = [
            (ours.text, theirs.text)
            for ours, theirs in pairs
            if isinstance(ours, _BlockFormat) and isinstance(theirs, _BlockFormat)
        ]
        controls = sum(
            isinstance(ours, _ControlSlot) and isinstance(theirs, _ControlSlot) and ours.token == theirs.token
            for ours, theirs in pairs
        )
        if len(formats) + controls < len(pairs):
            return False
        # `%` in the first word is a content, which could change the word's tokens.
        (opening, first), *rest = formats
        word, space, _ = first.partition(" ")
        return bool(space) and "%" not in word and opening.endswith(first) and all(a == b for a, b in rest)

    # ---- skeletons

    def _prepare(self, messages: Sequence[Message], first: bool) -> tuple[list[str], Skeleton]:
        """Return the contents as the template writes them, and the skeleton to put them in."""
        template = self.template
        contents = [m.content for m in messages]
        parted = any([m.tool_calls is not None or m.reasoning is not None for m in messages])  # noqa: C419  # faster
        if parted or template.strips:  # else contents are written unchanged
            contents = [content_of(template, m) for m in messages]
        system = default_system(template, messages) if first else ""
        # An empty content has no segment, so it changes the skeleton; hardly any conversation has one.
        key = (first, system, *[m.role for m in messages], *([] if all(contents) else map(bool, contents)))
        if parted and any(map(is_masked, messages)):  # a text of its own for each
            key += ("masked", *map(is_masked, messages))
            contents += [m.reasoning or "" for m in messages]
        skeleton = self._skeletons.get(key)
        if skeleton is None:
            skeleton = self._skeletons[key] = self._compile(messages, contents, first)
        return contents, skeleton

    def _compile(self, messages: Sequence[Message], contents: Sequence[str], first: bool) -> Skeleton:
        """Build a skeleton by rendering placeholders instead of contents."""
        blank = [
            Message(message.role, _PLACEHOLDER if content else "", message.name)
            for message, content in zip(messages, contents, strict=False)
        ]
        for marked, message in zip(blank, messages, strict=True):
            if is_masked(message):
                marked.reasoning, marked.train_reasoning = _REASONING, False
        system = default_system(self.template, messages)
        segments = render(self.template, blank, first=first, system=system, roles=self.roles | ANSWERS)
        return tuple(
            _ControlSlot(self._token(part), part.message if part.supervised else None)
            if isinstance(part, Segment)
            else _block_format(part, len(messages))
            for part in _group(segments)
        )

    def _token(self, segment: Segment) -> int:
        return self.tokenizer.control_ids[str(segment.control)]

    def _supervises(self, message: Message) -> bool:
        return message.train and message.role in self.roles


def _group(segments: Sequence[Segment]) -> list[list[Segment] | Segment]:
    """Return control tokens unchanged, and the text segments of each block as a list."""
    parts: list[list[Segment] | Segment] = []
    for segment in segments:
        if segment.control is not None:
            parts.append(segment)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(segment)
        else:
            parts.append([segment])
    return parts


def _block_format(segments: Sequence[Segment], count: int) -> _BlockFormat:
    """Return the format of a block from its segments, each with at most one placeholder; `count` is of messages."""
    text, contents, fixed = "", list[int](), 0  # `fixed`: characters so far without contents
    spans: list[tuple[int, _Position, _Position]] = []  # message, start, stop
    for segment in segments:
        start = _Position(fixed, len(contents))
        mark = _REASONING if _REASONING in segment.text else _PLACEHOLDER
        before, placeholder, after = segment.text.partition(mark)
        text += before.replace("%", "%%") + ("%s" if placeholder else "") + after.replace("%", "%%")
        fixed += len(before) + len(after)
        if placeholder and segment.message is not None:
            contents.append(segment.message + (count if mark == _REASONING else 0))
        if segment.supervised and segment.message is not None:
            spans.append((segment.message, start, _Position(fixed, len(contents))))
    return _BlockFormat(text, tuple(contents), tuple(spans))
