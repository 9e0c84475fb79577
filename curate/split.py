"""Conversations cut into pieces that fit a model's window, counted on the rendered prompt of each piece.

A piece is whole exchanges under the conversation's system message. Its tokens are the sum of its
exchanges' tokens, exactly: each rendered exchange ends in a control token, and the text between two
control tokens is one tokenisation, so no token reaches from one exchange into the next (a property
test holds this for every template). Only an exchange that begins a piece is rendered differently, below
the system message, and it is counted in that form.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.errors import RecipeError
from curate.schemas.conversation import Message
from curate.schemas.prompts import Segment, Template, content_of, default_system, exchanges, fit, render
from curate.tokens import Flat, Tokenizer

Overlong = Literal["reject", "cut"]
TOO_LONG = "too_long"
EVIDENCE = 200  # characters of a rejected exchange that are shown

# Where an answer may end: after a sentence (Western or CJK), but not after the "1." of a list, or before a line break.
_ENDS = re.compile(r"(?<!\d)[.!?…][\"'”’)\]*_]*(?=\s)|[。！？][」』”’）]*|(?<=\S)(?=\n)")
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """Messages `start` to `stop` under the leading system messages; `tokens` is their rendered length.

    `answer_tokens` are those supervised, `prompt_tokens` the others. `cut`: how many characters of the
    last answer are kept, where it did not fit (null: all of it).
    """

    start: int
    stop: int
    tokens: int
    prompt_tokens: int
    answer_tokens: int
    cut: int | None = None


@dataclass(frozen=True)
class Rejected:
    """An exchange that cannot fit the window even alone."""

    start: int
    stop: int
    rule: str
    reason: str
    evidence: str


@dataclass(frozen=True)
class Split:
    """What became of one conversation: every exchange is in one piece or one reject."""

    pieces: list[Piece] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


class Size(NamedTuple):
    """Tokens of a rendering, and how many of them are supervised."""

    tokens: int
    answers: int


@dataclass(frozen=True)
class _Runs:
    """Texts between two control tokens; `prompts`: how many characters come before the answer (-1: it holds none)."""

    texts: list[str] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)


def messages_of(messages: Sequence[Message], piece: Piece) -> list[Message]:
    """Return a piece's messages: the system messages, its exchanges, and the last answer cut where it was."""
    head = exchanges(messages)[0]
    chosen = [*messages[:head], *messages[piece.start : piece.stop]]
    return chosen if piece.cut is None else _shortened(chosen, piece.cut)


def _shortened(messages: Sequence[Message], characters: int) -> list[Message]:
    """Return messages whose last one keeps so many characters, its end being no real end."""
    last = messages[-1]
    return [*messages[:-1], replace(last, content=last.content[:characters], stop=False)]


def split_batch(
    conversations: Sequence[Sequence[Message]],
    template: Template,
    tokenizer: Tokenizer,
    max_tokens: int,
    overlong: Overlong = "reject",
) -> list[Split]:
    """Cut each conversation into the longest pieces that `max_tokens` holds, in order.

    An exchange too long for the window by itself is rejected, or with `overlong="cut"` kept with its
    answer cut at a sentence end. Raises RecipeError for settings that are not allowed.
    """
    if max_tokens < 1:
        raise RecipeError(f"max_tokens must be at least 1, not {max_tokens!r}")
    if overlong not in ("reject", "cut"):
        raise RecipeError(f"overlong must be 'reject' or 'cut', not {overlong!r}")
    counter = Counter(template, tokenizer)
    plans = [_Plan(messages, counter, max_tokens, overlong == "cut") for messages in conversations]
    wanted = [(plan, k) for plan in plans for k in range(plan.count)]
    sizes = counter.sizes([plan.rendering(k, first=k == 0) for plan, k in wanted])
    for (plan, k), size in zip(wanted, sizes, strict=True):
        (plan.begins if k == 0 else plan.follows)[k] = size
    waiting = [plan for plan in plans if not plan.advance()]
    while waiting:  # one round for each further piece of the longest conversation
        sizes = counter.sizes([plan.rendering(plan.next, first=True) for plan in waiting])
        for plan, size in zip(waiting, sizes, strict=True):
            plan.begins[plan.next] = size
        waiting = [plan for plan in waiting if not plan.advance()]
    return [plan.split for plan in plans]


class _Frame(NamedTuple):
    """A run with its contents left out: `text` has %s for each of `contents` (indices of messages).

    `prompt`, `prompt_contents`: fixed characters and contents before the answer (null: it holds none).
    """

    text: str
    contents: tuple[int, ...]
    prompt: int | None
    prompt_contents: tuple[int, ...]


class _Shape(NamedTuple):
    """What is the same in every rendering with these roles and flags: the runs, and the counts of control tokens."""

    frames: tuple[_Frame, ...]
    controls: tuple[int, int]  # all, supervised


_HOLE = "\0"  # stands for a content while a shape is found; not white space, so that it is not stripped


class Counter:
    """Counts renderings in one template and tokenizer, many at a time."""

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self.template = fit(template, tokenizer.control_ids)
        self.tokenizer = tokenizer
        self._shapes: dict[object, _Shape] = {}

    def sizes(self, renderings: Sequence[tuple[Sequence[Message], bool]]) -> list[Size]:
        """Return the size of each rendering; the flag says whether the messages begin a prompt."""
        runs = _Runs()
        owners: list[int] = []  # which rendering each run is of
        controls: list[tuple[int, int]] = []
        for index, (messages, first) in enumerate(renderings):
            controls.append(self._add_runs(messages, first, runs))
            owners.extend([index] * (len(runs.texts) - len(owners)))
        totals = np.array(controls, dtype=np.int64).reshape(-1, 2)
        if owners:
            np.add.at(totals, owners, np.stack(self._counts(runs), axis=1))
        return [Size(tokens, answers) for tokens, answers in totals.tolist()]

    def _add_runs(self, messages: Sequence[Message], first: bool, runs: _Runs) -> tuple[int, int]:
        """Append a rendering's runs of text; return how many control tokens it has, and supervised ones."""
        contents = [content_of(self.template, message) for message in messages]
        default = default_system(self.template, messages) if first else ""
        flags = [(message.role, message.train, message.stop) for message in messages]
        key = (first, default, *flags, *([] if all(contents) else map(bool, contents)))
        shape = self._shapes.get(key) or self._shape(messages, contents, first, key)
        for text, inside, prompt, before in shape.frames:
            runs.texts.append(text % tuple([contents[i] for i in inside]))
            runs.prompts.append(-1 if prompt is None else prompt + sum([len(contents[i]) for i in before]))
        return shape.controls

    def _shape(self, messages: Sequence[Message], contents: Sequence[str], first: bool, key: object) -> _Shape:
        """Find a shape by rendering holes in place of the contents."""
        holes = [
            replace(message, content=_HOLE if content else "", tool_calls=None)
            for message, content in zip(messages, contents, strict=True)
        ]
        segments = render(self.template, holes, first=first, system=default_system(self.template, messages))
        found = [segment for segment in segments if segment.control is not None]
        parts: list[Segment] = []
        frames: list[_Frame] = []
        for segment in [*segments, Segment("", None, False, "end")]:
            if segment.control is None:
                parts.append(segment)
            elif parts:
                frames.append(_frame(parts))
                parts = []
        shape = _Shape(tuple(frames), (len(found), sum(segment.supervised for segment in found)))
        self._shapes[key] = shape
        return shape

    def _counts(self, runs: _Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each run's tokens, and the supervised ones of them: from where its answer begins."""
        if self.tokenizer.words is None:
            return self._counts_by_ids(runs)
        prompts = np.array(runs.prompts, dtype=np.int64)
        total, before = self.tokenizer.words.totals(runs.texts, np.maximum(prompts, 0).tolist())
        answers = np.where(prompts >= 0, total - before, 0)
        untold = np.flatnonzero((total < 0) | ((prompts >= 0) & (before < 0))).tolist()
        if untold:
            few = _Runs([runs.texts[i] for i in untold], [runs.prompts[i] for i in untold])
            total[untold], answers[untold] = self._counts_by_ids(few)
        return total, answers

    def _counts_by_ids(self, runs: _Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        flat = self.tokenizer.encode(runs.texts)
        total = np.diff(flat[1])
        prompts = np.array(runs.prompts, dtype=np.int64)
        trained = prompts >= 0
        found, known = self._tokens_before(runs, prompts, flat)
        unknown = np.flatnonzero(trained & ~known)
        if len(unknown):
            found[unknown] = self.tokenizer.counts([runs.texts[i][: runs.prompts[i]] for i in unknown])
        return total, np.where(trained, total - found, 0)

    def _tokens_before(
        self, runs: _Runs, prompts: NDArray[np.int64], flat: Flat
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return how many tokens begin before each run's answer, and for which runs the ids tell it.

        The bytes that a run's ids stand for, summed up, say where in the text each token begins. They do
        not where the sum is not the text's length (a literal `▁` in it, or an unknown token).
        """
        table = self.tokenizer.byte_lengths
        if table is None:
            return np.zeros_like(prompts), np.zeros(len(prompts), dtype=np.bool_)
        ids, offsets = flat
        ends = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum(table[0][ids], out=ends[1:])
        before = prompts.copy()
        whole = np.array([len(text) for text in runs.texts], dtype=np.int64)
        wide = np.flatnonzero((prompts >= 0) & np.array([not text.isascii() for text in runs.texts]))
        for i in wide.tolist():
            text, prompt = runs.texts[i], runs.prompts[i]
            before[i] = len(text[:prompt].encode("utf-8", "replace"))
            whole[i] = before[i] + len(text[prompt:].encode("utf-8", "replace"))
        begin = ends[offsets[:-1]]
        targets = begin + np.where(before > 0, before + table[1], 0)
        return np.searchsorted(ends, targets) - offsets[:-1], ends[offsets[1:]] - begin == whole + table[1]


def _frame(parts: Sequence[Segment]) -> _Frame:
    """Make a run's frame of its segments, of which each content is a hole."""
    text, contents, fixed = "", list[int](), 0
    prompt: int | None = None
    prompt_contents: tuple[int, ...] = ()
    for part in parts:
        if part.supervised and prompt is None:
            prompt, prompt_contents = fixed, tuple(contents)
        before, hole, after = part.text.partition(_HOLE)
        text += before.replace("%", "%%") + ("%s" if hole else "") + after.replace("%", "%%")
        fixed += len(before) + len(after)
        if hole and part.message is not None:
            contents.append(part.message)
    return _Frame(text, tuple(contents), prompt, prompt_contents)


class _Plan:
    """One conversation on its way into pieces: what is counted already, and which exchange comes next."""

    def __init__(self, messages: Sequence[Message], counter: Counter, max_tokens: int, cuts: bool) -> None:
        self.messages = messages
        self.counter = counter
        self.max_tokens = max_tokens
        self.cuts = cuts
        self.head, self.bounds = exchanges(messages)
        self.count = max(0, len(self.bounds) - 1)
        self.next = 0
        self.begins: dict[int, Size] = {}  # exchange -> size at the beginning of a piece
        self.follows: dict[int, Size] = {}  # exchange -> size after another one
        self.split = Split()

    def rendering(self, exchange: int, *, first: bool) -> tuple[Sequence[Message], bool]:
        """Return what to render for an exchange that begins a piece, or follows another in it."""
        own = self.messages[self.bounds[exchange] : self.bounds[exchange + 1]]
        return ([*self.messages[: self.head], *own] if first else own), first

    def advance(self) -> bool:
        """Place exchanges as far as the counts go; return whether all are placed."""
        while self.next < self.count and self.next in self.begins:
            total = self.begins[self.next]
            if total.tokens > self.max_tokens:
                self._place_overlong(self.next, total)
                self.next += 1
                continue
            stop = self.next + 1
            while stop < self.count and total.tokens + self.follows[stop].tokens <= self.max_tokens:
                more = self.follows[stop]
                total = Size(total.tokens + more.tokens, total.answers + more.answers)
                stop += 1
            self._keep(self.next, stop, total)
            self.next = stop
        return self.next == self.count

    def _keep(self, start: int, stop: int, size: Size, cut: int | None = None) -> None:
        prompt = size.tokens - size.answers
        piece = Piece(self.bounds[start], self.bounds[stop], size.tokens, prompt, size.answers, cut)
        self.split.pieces.append(piece)

    def _place_overlong(self, exchange: int, size: Size) -> None:
        messages, _ = self.rendering(exchange, first=True)
        found = _fitting_cut(messages, self.counter, self.max_tokens) if self.cuts else None
        if found:
            self._keep(exchange, exchange + 1, found[1], found[0])
            return
        start, stop = self.bounds[exchange], self.bounds[exchange + 1]
        reason = f"one exchange alone is {size.tokens} tokens as rendered, window {self.max_tokens}"
        evidence = self.messages[start].content[:EVIDENCE]
        self.split.rejected.append(Rejected(start, stop, TOO_LONG, reason, evidence))


def _fitting_cut(messages: Sequence[Message], counter: Counter, max_tokens: int) -> tuple[int, Size] | None:
    """Return how many characters of the last answer fit, to a sentence's end, and the size then; null if none do.

    An end outside code is taken before any within it.
    """
    last = messages[-1]
    if last.role != "assistant" or last.tool_calls:
        return None
    fences = [match.start() for match in _FENCE.finditer(last.content)]
    ends = [match.end() for match in _ENDS.finditer(last.content)]
    outside = [end for end in ends if bisect_left(fences, end) % 2 == 0]
    for candidates in (outside, ends):
        best: tuple[int, Size] | None = None
        low, high = 0, len(candidates)
        while low < high:
            middle = (low + high) // 2
            size = counter.sizes([(_shortened(messages, candidates[middle]), True)])[0]
            if size.tokens <= max_tokens:
                best, low = (candidates[middle], size), middle + 1
            else:
                high = middle
        if best:
            return best
    return None
