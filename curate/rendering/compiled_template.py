"""A prompt template as a tokenizer has it: what every rendering with the same roles has in common, found once.

Only the contents differ between two renderings with the same roles, so the runs of one are a few formatted texts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from curate.rendering.encode import Sheet
from curate.schemas.conversation import Message, Role
from curate.schemas.prompts import EOS, Segment, Template, content_of, default_system, fit, generation_prompt, render
from curate.tokenization.tokenizer import Tokenizer

ANSWERS: frozenset[Role] = frozenset({"assistant"})


class _Place(NamedTuple):
    """A place in a run: fixed characters before it, and contents (indices of messages)."""

    fixed: int
    contents: int  # how many of the run's contents come before


class _Frame(NamedTuple):
    """A run with its contents left out: `text` has %s for each of `contents` (indices of messages).

    `stretches`: whose words, and between which places.
    """

    text: str
    contents: tuple[int, ...]
    stretches: tuple[tuple[int, _Place, _Place], ...]


class _Mark(NamedTuple):
    token: int
    ends: int | None  # the message whose end it is


Shape = tuple[_Frame | _Mark, ...]  # what is the same in every rendering with these roles

_HOLE = "\0"  # stands for a content while a shape is found; not white space, so that it is not stripped


class Layout:
    """Writes renderings in a template as a tokenizer has it; `roles` are those whose words may be trained on."""

    def __init__(self, template: Template, tokenizer: Tokenizer, roles: Collection[Role] = ANSWERS) -> None:
        self.template = fit(template, tokenizer.control_ids)
        self.tokenizer = tokenizer
        self.roles = frozenset(roles)
        self._shapes: dict[object, Shape] = {}

    @cached_property
    def stop_id(self) -> int:
        """The token that ends an answer."""
        after = self.template.by_role["assistant"].segment_parts[1]
        return self.tokenizer.control_ids[next((control for _, control in after if control), EOS)]

    def write(self, sheet: Sheet, messages: Sequence[Message], first: bool = True) -> None:
        """Append a rendering; `first` says whether the messages begin a prompt."""
        contents, shape = self._found(messages, first)
        for part in shape:
            if isinstance(part, _Mark):
                message = None if part.ends is None else messages[part.ends]
                sheet.mark(part.token, message is not None and message.stop and self._trains(message))
                continue
            inside = [contents[i] for i in part.contents]
            sheet.run(part.text % tuple(inside))
            if part.stretches:
                ends = [0, *accumulate(map(len, inside))]
                for index, start, stop in part.stretches:
                    places = start.fixed + ends[start.contents], stop.fixed + ends[stop.contents]
                    sheet.stretch(*places, self._trains(messages[index]))
        sheet.end()

    def opens_apart(self, whole: Sequence[Message], own: Sequence[Message]) -> bool:
        """Tell whether `whole`, which begins a prompt, is written as `own` that follows, but for what stands before.

        That ends in a word without contents, so that its tokens are the same whatever is in the messages.
        """
        first, follows = self._found(whole, True)[1], self._found(own, False)[1]
        if len(first) < len(follows):
            return False
        pairs = list(zip(first[len(first) - len(follows) :], follows, strict=True))
        texts = [
            (one.text, other.text) for one, other in pairs if isinstance(one, _Frame) and isinstance(other, _Frame)
        ]
        marks = sum(
            isinstance(one, _Mark) and isinstance(other, _Mark) and one.token == other.token for one, other in pairs
        )
        if not isinstance(follows[0], _Frame) or len(texts) + marks < len(pairs):
            return False
        word, border, _ = texts[0][1].partition(" ")
        return (
            bool(border)
            and "%" not in word
            and texts[0][0].endswith(texts[0][1])
            and texts[1:] == [(text, text) for _, text in texts[1:]]
        )

    def _found(self, messages: Sequence[Message], first: bool) -> tuple[list[str], Shape]:
        """Return the contents of messages as they are written, and the shape that they are written in."""
        template = self.template
        plain = not template.strips  # then most contents are taken as they are
        contents = [m.content if plain and m.tool_calls is None else content_of(template, m) for m in messages]
        default = default_system(template, messages) if first else ""
        key = (first, default, *[m.role for m in messages], *([] if all(contents) else map(bool, contents)))
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = self._shape(messages, contents, first)
        return contents, shape

    def write_prompt(self, sheet: Sheet, messages: Sequence[Message]) -> None:
        """Append what asks a model for its next answer; earlier answers have the borders that training has."""
        told = [replace(message, train=True) for message in messages]
        for part in self._parts(generation_prompt(self.template, told, roles=self.roles | ANSWERS)):
            if isinstance(part, Segment):
                sheet.mark(self.tokenizer.control_ids[str(part.control)], False)
                continue
            sheet.run("".join(segment.text for segment in part))
            place = 0
            for segment in part:
                if segment.supervised:
                    sheet.stretch(place, place + len(segment.text), False)
                place += len(segment.text)
        sheet.end()

    def _trains(self, message: Message) -> bool:
        return message.train and message.role in self.roles

    def _shape(self, messages: Sequence[Message], contents: Sequence[str], first: bool) -> Shape:
        """Find a shape by rendering holes in place of the contents."""
        holes = [
            replace(message, content=_HOLE if content else "", tool_calls=None, train=True, stop=True)
            for message, content in zip(messages, contents, strict=True)
        ]
        system = default_system(self.template, messages)
        segments = render(self.template, holes, first=first, system=system, roles=self.roles | ANSWERS)
        shape: list[_Frame | _Mark] = []
        for part in self._parts(segments):
            if isinstance(part, Segment):
                token = self.tokenizer.control_ids[str(part.control)]
                shape.append(_Mark(token, part.message if part.supervised else None))
            else:
                shape.append(_frame(part))
        return tuple(shape)

    def _parts(self, segments: Sequence[Segment]) -> list[list[Segment] | Segment]:
        """Return control tokens as they are, and the text segments between two of them together."""
        parts: list[list[Segment] | Segment] = []
        for segment in segments:
            if segment.control is not None:
                parts.append(segment)
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(segment)
            else:
                parts.append([segment])
        return parts


def _frame(parts: Sequence[Segment]) -> _Frame:
    """Make a run's frame of its segments, of which each content is a hole."""
    text, contents, fixed = "", list[int](), 0
    stretches: list[tuple[int, _Place, _Place]] = []
    for part in parts:
        start = _Place(fixed, len(contents))
        before, hole, after = part.text.partition(_HOLE)
        text += before.replace("%", "%%") + ("%s" if hole else "") + after.replace("%", "%%")
        fixed += len(before) + len(after)
        if hole and part.message is not None:
            contents.append(part.message)
        if part.supervised and part.message is not None:
            stretches.append((part.message, start, _Place(fixed, len(contents))))
    return _Frame(text, tuple(contents), tuple(stretches))
