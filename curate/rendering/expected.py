"""What messages and template require of a rendering, derived without ids: what the proof compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from curate.schemas import prompts
from curate.schemas.conversation import Message
from curate.schemas.prompts import Segment, Template, content_of, default_system, is_masked
from curate.tokenization.tokenizer import Tokenizer

EndedText = tuple[str, int | None]  # a text, and the control token that ends it

_PLACEHOLDER = "\0"  # in place of a content; one byte in UTF-8
_MISSING: Any = object()


@dataclass(frozen=True)
class ExpectedSpans:
    """What the supervised spans of a rendering must say.

    `texts`: for each supervised message its text as the template writes it, and the control token after it if that is
    supervised too. `prompts`: for each supervised answer the text between the last control token and the answer.
    `bos_count`: how many begin tokens there are.
    """

    texts: list[EndedText]
    prompts: list[str]
    bos_count: int


class ExpectedText(NamedTuple):
    """What the ids of a rendering must decode to, control tokens written as `control_chars`, in UTF-8.

    `supervised`: the byte ranges of `text` that the loss counts. `prompts`: as in `ExpectedSpans`.
    """

    text: bytes
    supervised: list[tuple[int, int]]
    prompts: list[str]


class _Outline(NamedTuple):
    """An expected text without its contents, shared by conversations with the same roles and flags.

    `text` and the texts of `prompts` have a `%s` for each message index in `contents`. A position is two numbers:
    fixed bytes, and contents, that come before it.
    """

    text: str
    contents: tuple[int, ...]
    supervised: list[tuple[int, int, int, int]]  # start and stop, as positions
    prompts: list[tuple[str, tuple[int, ...]]]
    last: int  # index of the last supervised message


def control_chars(token: int) -> str:
    """Return two surrogates that stand for a control token; no text that can be encoded has them."""
    return chr(0xD800 + (token >> 10)) + chr(0xDC00 + (token & 0x3FF))


def utf8(text: str) -> bytes:
    """Return a text as UTF-8, including surrogates."""
    return text.encode("utf-8", "surrogatepass")


class TextExpectations:
    """Derives expected texts from a built-in template, for conversations of which only answers are supervised."""

    def __init__(self, template: Template, tokenizer: Tokenizer, stop_id: int) -> None:
        self._template = template
        self._controls = tokenizer.control_ids
        self._stop_id = stop_id
        self._outlines: dict[object, _Outline | None] = {}  # by roles, flags and system message

    def expect(self, messages: Sequence[Message]) -> ExpectedText | None:
        """Return what a rendering must decode to, or None where only the step-by-step proof can decide."""
        template = self._template
        plain = not template.strips  # most contents are then written unchanged
        contents = [
            m.content if plain and m.tool_calls is None and m.reasoning is None else content_of(template, m)
            for m in messages
        ]
        system = default_system(template, messages)
        if any(m.reasoning for m in messages) and any(map(is_masked, messages)):
            return None
        # What decides what is supervised and closed.
        flags = [(m.role, m.train and m.role == "assistant", m.stop) for m in messages]
        key = (system, *flags, *([] if all(contents) else map(bool, contents)))
        outline = self._outlines.get(key, _MISSING)
        if outline is _MISSING:
            outline = self._outlines[key] = self._outline(messages, contents, system)
        if outline is None or default_system(template, messages[: outline.last]) != system:
            return None
        texts = [contents[i] for i in outline.contents]
        try:
            sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
        except UnicodeEncodeError:  # a lone surrogate could be mistaken for a control token
            return None
        before = [0, *accumulate(sizes)]  # bytes of the first k contents
        return ExpectedText(
            utf8(outline.text % tuple(texts)),
            [(start + before[i], stop + before[j]) for start, i, stop, j in outline.supervised],
            [text % tuple([contents[i] for i in indices]) for text, indices in outline.prompts],
        )

    def _outline(self, messages: Sequence[Message], contents: Sequence[str], system: str) -> _Outline | None:
        """Build an outline; None where nothing is supervised, an answer has no end, or a prompt is not a prefix."""
        blank = [
            Message(m.role, _PLACEHOLDER if text else "", m.name, None, m.train and m.role == "assistant", m.stop)
            for m, text in zip(messages, contents, strict=True)
        ]
        segments = prompts.render(self._template, blank, system=system)
        supervised = [i for i, segment in enumerate(segments) if segment.supervised]
        if not supervised:
            return None
        last = segments[supervised[-1]].message or 0  # a supervised segment always has a message
        prompt = prompts.generation_prompt(self._template, blank[:last], system=system)
        first = next(i for i in supervised if segments[i].message == last)
        # Built-in templates are written so that both hold; the proof checks it all the same.
        if self._join(prompt) != self._join(segments[:first]) or not self._all_closed(segments):
            return None
        return self._fill_outline(segments, last)

    def _join(self, segments: Sequence[Segment]) -> str:
        return "".join(self._spell(segment) for segment in segments)

    def _spell(self, segment: Segment) -> str:
        return segment.text if segment.control is None else control_chars(self._controls[segment.control])

    def _all_closed(self, segments: Sequence[Segment]) -> bool:
        """Return whether the first control token after each supervised text is the stop token."""
        ends = [
            next((later.control for later in segments[i:] if later.control), None)
            for i, segment in enumerate(segments)
            if segment.supervised
        ]
        return all(end is not None and self._controls[end] == self._stop_id for end in ends)

    def _fill_outline(self, segments: Sequence[Segment], last: int) -> _Outline:
        """Build an outline from segments with placeholders."""
        texts, contents = list[str](), list[int]()
        block, block_contents = "", list[int]()  # since the last control token
        supervised: list[tuple[int, int, int, int]] = []
        before_answers: list[tuple[str, tuple[int, ...]]] = []
        started: set[int | None] = set()  # messages with a supervised segment so far
        position = 0, 0  # fixed bytes, contents
        for segment in segments:
            if segment.supervised and segment.message not in started:
                started.add(segment.message)
                before_answers.append((_to_format(block), tuple(block_contents)))
            text = self._spell(segment)
            # A segment has at most one placeholder, one byte long, that is not part of the fixed text.
            inside = [segment.message or 0] if _PLACEHOLDER in segment.text else []
            texts.append(text)
            contents += inside
            block, block_contents = (block + text, block_contents + inside) if segment.control is None else ("", [])
            start, position = position, (position[0] + len(utf8(text)) - len(inside), len(contents))
            if segment.supervised:
                adjacent = supervised and supervised[-1][2:] == start  # an answer and its stop token are one range
                supervised.append((*(supervised.pop()[:2] if adjacent else start), *position))
        return _Outline(_to_format("".join(texts)), tuple(contents), supervised, before_answers, last)


def _to_format(text: str) -> str:
    return text.replace("%", "%%").replace(_PLACEHOLDER, "%s")
