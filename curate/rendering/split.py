"""Conversations cut into pieces that fit a model's window, counted on the rendered prompt of each piece.

A piece is whole exchanges under the conversation's system message. Its tokens are the sum of its
exchanges' tokens, exactly: each rendered exchange ends in a control token, and no token reaches across
one (see `curate.rendering.encode`), so none reaches from one exchange into the next (a property test holds this for
every template). Only an exchange that begins a piece is rendered differently, below the system
message, and it is counted in that form.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

from curate.errors import RecipeError
from curate.rendering import encode
from curate.rendering.compiled_template import ANSWERS, Layout
from curate.schemas.conversation import Message, Role
from curate.schemas.prompts import Template, exchanges
from curate.tokenization.tokenizer import Tokenizer

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


Rendering = tuple[Sequence[Message], bool]  # the flag says whether the messages begin a prompt


class Counting(Protocol):
    """Counts renderings, many at a time.

    `additive`: a piece's tokens are those of its first exchange and of each later one counted with the flag false.
    Otherwise only renderings that begin a prompt are asked for.
    """

    additive: bool

    def opening(self, head: Sequence[Message], own: Sequence[Message]) -> Size | None:
        """Return what `own` has more behind the system messages `head` that begin a prompt than where it follows.

        Null where that is not one size whatever is in the messages.
        """

    def sizes(self, renderings: Sequence[Rendering]) -> list[Size]:
        """Return the size of each rendering."""


class Counter:
    """Counts renderings in one template and tokenizer."""

    additive = True

    def __init__(self, template: Template, tokenizer: Tokenizer, roles: Collection[Role] = ANSWERS) -> None:
        self.layout = Layout(template, tokenizer, roles)
        self._openings: dict[object, Size | None] = {}

    def opening(self, head: Sequence[Message], own: Sequence[Message]) -> Size | None:
        """Return the size of what begins a prompt, if no word of the tokenizer's holds any of it and of a message."""
        if self.layout.tokenizer.word_counter is None or any(message.tool_calls for message in (*head, *own)):
            return None
        key = tuple((m.role, m.content) for m in head), tuple((m.role, not m.content) for m in own)
        if key not in self._openings:
            short = [replace(message, content=message.content and "a") for message in own]
            apart = self.layout.opens_apart([*head, *short], short)
            first, follows = self.sizes([([*head, *short], True), (short, False)]) if apart else (None, None)
            self._openings[key] = first and follows and Size(first.tokens - follows.tokens, 0)
        return self._openings[key]

    def sizes(self, renderings: Sequence[Rendering]) -> list[Size]:
        """Return the size of each rendering."""
        sheet = encode.Sheet()
        for messages, first in renderings:
            self.layout.write(sheet, messages, first)
        return list(map(Size._make, encode.sizes(sheet, self.layout.tokenizer).tolist()))


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
    return split_with(Counter(template, tokenizer), conversations, max_tokens, overlong)


def split_with(
    counter: Counting, conversations: Sequence[Sequence[Message]], max_tokens: int, overlong: Overlong = "reject"
) -> list[Split]:
    """Cut each conversation as `split_batch` does, with what counts its renderings."""
    if max_tokens < 1:
        raise RecipeError(f"max_tokens must be at least 1, not {max_tokens!r}")
    if overlong not in ("reject", "cut"):
        raise RecipeError(f"overlong must be 'reject' or 'cut', not {overlong!r}")
    plans = [_Plan(messages, counter, max_tokens, overlong == "cut") for messages in conversations]
    if counter.additive:
        _place_added(counter, plans)
    else:
        _place_searched(counter, plans)
    return [plan.split for plan in plans]


def _place_added(counter: Counting, plans: Sequence[_Plan]) -> None:
    """Place exchanges by sums of their sizes."""
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


def _place_searched(counter: Counting, plans: Sequence[_Plan]) -> None:
    """Place exchanges by counting whole pieces: all that is left first, then by halves, every plan in each round."""
    searches = [_Search(plan) for plan in plans if plan.count]
    while searches:
        sizes = counter.sizes([search.plan.rendering(search.start, search.tried, first=True) for search in searches])
        searches = [search for search, size in zip(searches, sizes, strict=True) if not search.advance(size)]


class _Plan:
    """One conversation on its way into pieces: what is counted already, and which exchange comes next."""

    def __init__(self, messages: Sequence[Message], counter: Counting, max_tokens: int, cuts: bool) -> None:
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

    def rendering(self, exchange: int, stop: int = 0, *, first: bool) -> Rendering:
        """Return what to render for an exchange, or all up to `stop`, that begins a piece, or follows another in it."""
        own = self.messages[self.bounds[exchange] : self.bounds[stop or exchange + 1]]
        return ([*self.messages[: self.head], *own] if first else own), first

    def advance(self) -> bool:
        """Place exchanges as far as the counts go; return whether all are placed."""
        while self.next < self.count and (size := self.beginning()) is not None:
            if size.tokens > self.max_tokens:
                self.place_overlong(self.next, size)
                self.next += 1
                continue
            tokens, answers = size
            stop = self.next + 1
            while stop < self.count and tokens + self.follows[stop].tokens <= self.max_tokens:
                tokens += self.follows[stop].tokens
                answers += self.follows[stop].answers
                stop += 1
            self.keep(self.next, stop, Size(tokens, answers))
            self.next = stop
        return self.next == self.count

    def beginning(self) -> Size | None:
        """Return the size of the next exchange at the beginning of a piece, counted or told by its size elsewhere."""
        if self.next in self.begins:
            return self.begins[self.next]
        own = self.messages[self.bounds[self.next] : self.bounds[self.next + 1]]
        opening = self.counter.opening(self.messages[: self.head], own)
        size = self.follows[self.next]
        return opening and Size(opening.tokens + size.tokens, size.answers)

    def keep(self, start: int, stop: int, size: Size, cut: int | None = None) -> None:
        """Make a piece of exchanges."""
        prompt = size.tokens - size.answers
        piece = Piece(self.bounds[start], self.bounds[stop], size.tokens, prompt, size.answers, cut)
        self.split.pieces.append(piece)

    def place_overlong(self, exchange: int, size: Size) -> None:
        """Reject an exchange that is over the window by itself, or keep it with its answer cut."""
        messages, _ = self.rendering(exchange, first=True)
        found = _fitting_cut(messages, self.counter, self.max_tokens) if self.cuts else None
        if found:
            self.keep(exchange, exchange + 1, found[1], found[0])
            return
        start, stop = self.bounds[exchange], self.bounds[exchange + 1]
        reason = f"one exchange alone is {size.tokens} tokens as rendered, window {self.max_tokens}"
        evidence = self.messages[start].content[:EVIDENCE]
        self.split.rejected.append(Rejected(start, stop, TOO_LONG, reason, evidence))


class _Search:
    """The search for one plan's next piece: it holds the exchanges from `start`, at most up to `tried`."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.start = 0
        self._begin()

    def _begin(self) -> None:
        self.fits: tuple[int, Size] | None = None  # the longest stop that is known to fit
        self.high = self.plan.count  # the longest that may
        self.tried = self.high

    def advance(self, size: Size) -> bool:
        """Take the size of what was tried; return whether all exchanges are placed."""
        if size.tokens <= self.plan.max_tokens:
            self.fits = (self.tried, size)
        else:
            self.high = self.tried - 1
        low = self.fits[0] if self.fits else self.start
        if low < self.high:
            self.tried = (low + self.high + 1) // 2
            return False
        if self.fits:
            self.plan.keep(self.start, *self.fits)
            self.start = self.fits[0]
        else:
            self.plan.place_overlong(self.start, size)
            self.start += 1
        self._begin()
        return self.start == self.plan.count


def _fitting_cut(messages: Sequence[Message], counter: Counting, max_tokens: int) -> tuple[int, Size] | None:
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
