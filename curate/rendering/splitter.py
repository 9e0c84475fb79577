"""Split conversations into pieces that fit a model's window, by the token count of each rendered piece.

A piece is whole exchanges under the conversation's system message. Its tokens are exactly the sum of its exchanges'
tokens: each rendered exchange ends in a control token, and no token crosses one, so none crosses from one exchange to
the next (a property test checks every template). Only the first exchange of a piece is rendered differently, below the
system message, and it is counted in that form.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple

from curate.errors import RecipeError
from curate.rendering.compiled_template import ANSWERS, CompiledTemplate
from curate.rendering.encoding import count_tokens
from curate.rendering.text_batch import TextBatch
from curate.schemas.continuations import asks_to_continue
from curate.schemas.conversation import Message, Role
from curate.schemas.prompts import Template, exchanges, fold_system, system_positions
from curate.tokenization.tokenizer import Tokenizer

Overlong = Literal["reject", "cut"]
TOO_LONG = "too_long"
EVIDENCE = 200  # characters of a rejected exchange
MESSAGE_TOKENS, PROMPT_TOKENS = 64, 256  # at most, of a template around each message, and around a prompt

# Where an answer may be cut: after a sentence (Western or CJK, but not the "1." of a list), or before a line break.
_ENDS = re.compile(r"(?<!\d)[.!?…][\"'”’)\]*_]*(?=\s)|[。！？][」』”’）]*|(?<=\S)(?=\n)")
# A code fence of Markdown: at most three spaces, then three backticks or tildes (CommonMark, section 4.5).
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """Messages `start` to `stop`, under the system messages before them.

    `tokens` is the rendered length: the supervised `answer_tokens` and all others, `prompt_tokens`. `cut` is how many
    characters are kept of a last answer that does not fit (None: all of it).
    """

    start: int  # index in the conversation, system messages included
    stop: int  # one past the last message
    tokens: int
    prompt_tokens: int
    answer_tokens: int
    cut: int | None = None


@dataclass(frozen=True)
class RejectedExchange:
    """Messages `start` to `stop`: an exchange that does not fit the window even by itself."""

    start: int
    stop: int
    rule: str
    reason: str
    evidence: str  # the beginning of its first message


@dataclass(frozen=True)
class SplitResult:
    """One conversation after splitting: each exchange is in one piece or rejected."""

    pieces: list[Piece] = field(default_factory=list)
    rejected: list[RejectedExchange] = field(default_factory=list)


def begins_with_continuation(exchange: Sequence[Message]) -> bool:
    """Return whether an exchange's first prompt only asks to continue the answer before it."""
    prompt = next((message.content for message in exchange if message.role == "user"), "")
    return asks_to_continue(prompt)


# ---- counting


class Size(NamedTuple):
    """Tokens of a rendering, and how many of them are supervised."""

    tokens: int
    answer_tokens: int


Fragment = tuple[Sequence[Message], bool]  # messages, and whether they start a prompt


class TokenCounter(ABC):
    """Counts the tokens of renderings, many at a time.

    `additive`: a piece has the tokens of its first exchange, counted as the start of a prompt, plus those of each later
    exchange, counted as a fragment that follows. A counter that is not additive is only given whole pieces.
    """

    additive: bool
    mid_system = True  # whether the template can say a system message amid the turns

    @abstractmethod
    def sizes(self, fragments: Sequence[Fragment]) -> list[Size]:
        """Return the size of each rendered fragment, in the order of `fragments`."""

    def opening_size(self, head: Sequence[Message], exchange: Sequence[Message]) -> Size | None:
        """Return how many more tokens an exchange has at the start of a prompt, below the system messages `head`.

        None where that depends on what the messages say; the exchange is then counted in both forms.
        """
        return None


class TemplateCounter(TokenCounter):
    """Counts renderings in a built-in template."""

    additive = True

    def __init__(self, template: Template, tokenizer: Tokenizer, roles: Collection[Role] = ANSWERS) -> None:
        self._compiled = CompiledTemplate(template, tokenizer, roles)
        self.mid_system = template.mid_system
        self._openings: dict[object, Size | None] = {}  # by system messages and the roles of the exchange

    def sizes(self, fragments: Sequence[Fragment]) -> list[Size]:
        """Return the size of each rendered fragment."""
        batch = TextBatch()
        for messages, first in fragments:
            self._compiled.append(batch, messages, first)
        return list(map(Size._make, count_tokens(batch, self._compiled.tokenizer).tolist()))

    def opening_size(self, head: Sequence[Message], exchange: Sequence[Message]) -> Size | None:
        """Return how many more tokens an exchange has at the start of a prompt, if the opening ends at a word's end."""
        if self._compiled.tokenizer.word_counter is None or any(
            message.tool_calls or message.reasoning for message in (*head, *exchange)
        ):
            return None
        key = tuple((m.role, m.content) for m in head), tuple((m.role, not m.content) for m in exchange)
        if key not in self._openings:
            self._openings[key] = self._count_opening(head, exchange)
        return self._openings[key]

    def _count_opening(self, head: Sequence[Message], exchange: Sequence[Message]) -> Size | None:
        # A fixed opening has the same tokens for any content, so a short one is counted.
        short = [replace(message, content=message.content and "a") for message in exchange]
        opened = [*head, *short]
        if not self._compiled.opening_is_fixed(opened, short):
            return None
        first, following = self.sizes([(opened, True), (short, False)])
        return Size(first.tokens - following.tokens, 0)  # an opening has no answer


# ---- splitting


def piece_messages(messages: Sequence[Message], piece: Piece, system: Sequence[int] | None = None) -> list[Message]:
    """Return a piece's messages: the instructions in force and its exchanges, a last answer that was cut shortened.

    `system` has the positions of the conversation's system messages, if they are known.
    """
    system = system_positions(messages) if system is None else system
    chosen = [messages[index] for index in piece_positions(piece, system)]
    return chosen if piece.cut is None else _shorten(chosen, piece.cut)


def piece_positions(piece: Piece, system: Sequence[int]) -> list[int]:
    """Return the positions of a piece's messages: of those in `system` before it, and of its exchanges."""
    return [*system[: bisect_left(system, piece.start)], *range(piece.start, piece.stop)]


def _shorten(messages: Sequence[Message], characters: int) -> list[Message]:
    """Return messages with the last one cut to `characters` and its stop token not supervised.

    An answer that was cut must not teach the model to stop there.
    """
    last = messages[-1]
    return [*messages[:-1], replace(last, content=last.content[:characters], stop=False)]


def may_exceed(messages: Sequence[Message], max_tokens: int) -> bool:
    """Return whether each exchange may be too long, judged by its bytes, of which a token has at least one."""
    head, bounds = exchanges(messages)
    sizes = [MESSAGE_TOKENS + sum(map(_most_tokens, (m.content, m.reasoning, m.tool_calls, m.name))) for m in messages]
    system = PROMPT_TOKENS + sum(sizes[:head])
    return all(system + sum(sizes[start:stop]) > max_tokens for start, stop in pairwise(bounds))


def _most_tokens(text: str | None) -> int:
    return len(text.encode()) if text else 0


def split_batch(
    conversations: Sequence[Sequence[Message]],
    template: Template,
    tokenizer: Tokenizer,
    max_tokens: int,
    overlong: Overlong = "reject",
) -> list[SplitResult]:
    """Split each conversation into the longest pieces of at most `max_tokens`, in order.

    An exchange that alone is too long is rejected, or with `overlong="cut"` kept with its answer cut at the end of a
    sentence. Raises RecipeError for invalid settings.
    """
    return split_with(TemplateCounter(template, tokenizer), conversations, max_tokens, overlong)


def split_with(
    counter: TokenCounter, conversations: Sequence[Sequence[Message]], max_tokens: int, overlong: Overlong = "reject"
) -> list[SplitResult]:
    """Split each conversation as `split_batch` does, with any counter. Raises RecipeError for invalid settings."""
    if max_tokens < 1:
        raise RecipeError(f"max_tokens must be at least 1, not {max_tokens!r}")
    if overlong not in ("reject", "cut"):
        raise RecipeError(f"overlong must be 'reject' or 'cut', not {overlong!r}")
    splitters = [_Splitter(messages, counter, max_tokens, overlong == "cut") for messages in conversations]
    if counter.additive:
        _split_by_sums(counter, splitters)
    else:
        _split_by_search(counter, splitters)
    return [splitter.result for splitter in splitters]


def _split_by_sums(counter: TokenCounter, splitters: Sequence[_Splitter]) -> None:
    """Place exchanges by adding up their sizes; in most conversations each is counted once."""
    pairs = [(splitter, k) for splitter in splitters for k in range(splitter.count)]
    sizes = counter.sizes([splitter.fragment(k, first=k == 0) for splitter, k in pairs])
    for (splitter, k), size in zip(pairs, sizes, strict=True):
        (splitter.first_sizes if k == 0 else splitter.later_sizes)[k] = size
    waiting = [splitter for splitter in splitters if not splitter.advance()]
    # A new piece begins with an exchange that was only counted as a later one. Those of all conversations are counted
    # in one call, so there is one round for each further piece of the longest conversation.
    while waiting:
        sizes = counter.sizes([splitter.fragment(splitter.next, first=True) for splitter in waiting])
        for splitter, size in zip(waiting, sizes, strict=True):
            splitter.first_sizes[splitter.next] = size
        waiting = [splitter for splitter in waiting if not splitter.advance()]


def _split_by_search(counter: TokenCounter, splitters: Sequence[_Splitter]) -> None:
    """Place exchanges by counting whole pieces: first everything that is left, then by binary search.

    Each round counts one candidate of every conversation in one call.
    """
    searches = [_Search(splitter) for splitter in splitters if splitter.count]
    while searches:
        fragments = [search.splitter.fragment(search.start, search.tried, first=True) for search in searches]
        sizes = counter.sizes(fragments)
        searches = [search for search, size in zip(searches, sizes, strict=True) if not search.advance(size)]


class _Splitter:
    """One conversation while it is split: sizes counted so far, and the next exchange to place.

    Exchange k is messages `bounds[k]` to `bounds[k + 1]`.
    """

    def __init__(self, messages: Sequence[Message], counter: TokenCounter, max_tokens: int, cuts: bool) -> None:
        self.messages = messages
        self.counter = counter
        self.max_tokens = max_tokens
        self.cuts = cuts  # whether overlong answers are cut
        self.head, self.bounds = exchanges(messages)  # how many system messages; message indices
        self.system = system_positions(messages)
        self.folds = not counter.mid_system and len(self.system) > min(1, self.head)
        self.count = max(0, len(self.bounds) - 1)  # of exchanges
        self.next = 0  # exchanges before it are placed
        self.first_sizes: dict[int, Size] = {}  # by exchange, as the first of a piece
        self.later_sizes: dict[int, Size] = {}  # by exchange, after another one
        self.result = SplitResult()

    def fragment(self, exchange: int, stop: int = 0, *, first: bool) -> Fragment:
        """Return an exchange, or those up to `stop`, as the start of a piece (`first`) or as what follows others."""
        messages = self.messages[self.bounds[exchange] : self.bounds[stop or exchange + 1]]
        if first and self.system:
            messages = [*self.instructions(exchange), *messages]
        return (fold_system(messages, first) if self.folds else messages), first

    def instructions(self, exchange: int) -> list[Message]:
        """Return the system messages before an exchange."""
        return [self.messages[index] for index in self.system[: bisect_left(self.system, self.bounds[exchange])]]

    def advance(self) -> bool:
        """Place exchanges until a size is missing; return whether all are placed."""
        while self.next < self.count and (size := self._first_size()) is not None:
            if size.tokens > self.max_tokens:
                self.place_overlong(self.next, size)
                self.next += 1
                continue
            tokens, answer_tokens = size  # of the piece so far
            stop = self.next + 1
            # Greedy: as many exchanges as fit, so the pieces are the longest possible in order.
            while stop < self.count and tokens + self.later_sizes[stop].tokens <= self.max_tokens:
                tokens += self.later_sizes[stop].tokens
                answer_tokens += self.later_sizes[stop].answer_tokens
                stop += 1
            for moved in range(keep := self.before_continuation(self.next, stop), stop):
                tokens -= self.later_sizes[moved].tokens
                answer_tokens -= self.later_sizes[moved].answer_tokens
            stop = keep
            self.add_piece(self.next, stop, Size(tokens, answer_tokens))
            self.next = stop
        return self.next == self.count

    def before_continuation(self, start: int, stop: int) -> int:
        """Return where a piece of exchanges `start` to `stop` should stop, so that the next keeps what it continues.

        That is before the exchange that a prompt such as "continue", first in the next piece, goes on with.
        """
        before = stop
        while start < before < self.count and self._continues(before):
            before -= 1
        return before if before > start else stop

    def _continues(self, exchange: int) -> bool:
        own = self.messages[self.bounds[exchange] : self.bounds[exchange + 1]]
        return begins_with_continuation(own)

    def _first_size(self) -> Size | None:
        """Return the next exchange's size as the first of a piece: counted, or derived from its other size."""
        if self.next in self.first_sizes:
            return self.first_sizes[self.next]
        own = self.messages[self.bounds[self.next] : self.bounds[self.next + 1]]
        if own[0].role == "system":  # it may be written differently at the start
            return None
        head = self.instructions(self.next)
        opening = self.counter.opening_size(fold_system(head) if self.folds else head, own)
        size = self.later_sizes[self.next]
        return opening and Size(opening.tokens + size.tokens, size.answer_tokens)

    def add_piece(self, start: int, stop: int, size: Size, cut: int | None = None) -> None:
        """Add a piece of exchanges `start` to `stop`; `cut` in characters, as in `Piece`."""
        prompt_tokens = size.tokens - size.answer_tokens
        piece = Piece(self.bounds[start], self.bounds[stop], size.tokens, prompt_tokens, size.answer_tokens, cut)
        self.result.pieces.append(piece)

    def place_overlong(self, exchange: int, size: Size) -> None:
        """Reject an exchange that does not fit the window by itself, or keep it with its answer cut."""
        messages, _ = self.fragment(exchange, first=True)
        fitting = _fitting_cut(messages, self.counter, self.max_tokens) if self.cuts else None
        if fitting:
            characters, size = fitting
            self.add_piece(exchange, exchange + 1, size, characters)
            return
        start, stop = self.bounds[exchange], self.bounds[exchange + 1]
        reason = f"one exchange alone is {size.tokens} tokens as rendered, window {self.max_tokens}"
        evidence = self.messages[start].content[:EVIDENCE]
        self.result.rejected.append(RejectedExchange(start, stop, TOO_LONG, reason, evidence))


class _Search:
    """A binary search for the next piece of one conversation: exchanges `start` to at most `tried`."""

    def __init__(self, splitter: _Splitter) -> None:
        self.splitter = splitter
        self.start = 0  # the first exchange of the next piece
        self._begin()

    def _begin(self) -> None:
        self.best: tuple[int, Size] | None = None  # the largest stop known to fit
        self.high = self.splitter.count  # the largest stop that may fit
        self.tried = self.high  # try everything first: most conversations are one piece

    def _keep(self, stop: int) -> int:
        return self.splitter.before_continuation(self.start, stop)

    def advance(self, size: Size) -> bool:
        """Narrow the search by the size of what was tried; return whether all exchanges are placed."""
        if size.tokens <= self.splitter.max_tokens:
            self.best = (self.tried, size)
        else:
            self.high = self.tried - 1
        low = self.best[0] if self.best else self.start
        if self.best and low == self.high and (keep := self._keep(low)) < low:
            self.best, self.high, self.tried = None, keep, keep  # shorter, so it fits, and is counted
            return False
        if low < self.high:
            self.tried = (low + self.high + 1) // 2  # rounded up, so that `low` itself is not tried again
            return False
        if self.best:
            self.splitter.add_piece(self.start, *self.best)
            self.start = self.best[0]
        else:
            self.splitter.place_overlong(self.start, size)
            self.start += 1
        self._begin()
        return self.start == self.splitter.count


def _fitting_cut(messages: Sequence[Message], counter: TokenCounter, max_tokens: int) -> tuple[int, Size] | None:
    """Return how many characters of the last answer fit, up to the end of a sentence, and the size of the result.

    None if not even one sentence fits. An end outside of code blocks is preferred.
    """
    last = messages[-1]
    if last.role != "assistant" or last.tool_calls:
        return None
    # Positions in characters of the answer.
    fences = [match.start() for match in _FENCE.finditer(last.content)]
    ends = [match.end() for match in _ENDS.finditer(last.content)]
    outside = [end for end in ends if bisect_left(fences, end) % 2 == 0]  # after an even number of fences
    for candidates in (outside, ends):
        best: tuple[int, Size] | None = None
        # Token counts grow with the text, so a binary search finds the last end that fits.
        low, high = 0, len(candidates)
        while low < high:
            middle = (low + high) // 2
            size = counter.sizes([(_shorten(messages, candidates[middle]), True)])[0]
            if size.tokens <= max_tokens:
                best, low = (candidates[middle], size), middle + 1
            else:
                high = middle
        if best:
            return best
    return None
