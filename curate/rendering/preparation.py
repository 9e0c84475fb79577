"""Prepare a curated set for training: ids and loss masks of all conversations, proven, and what was left out.

The set is read in batches (`curate.dataset.arrow`), so memory holds little more than the ids; a large set is shared
among worker processes. Where set and model differ in template, tokenizer or window, the set is split again first
(`curate.rendering.resplit`). Where a chat template writes a conversation's history differently for each answer, each
answer has a rendering of its own, with the history as a server sends it. Nothing is truncated: a conversation or
exchange that cannot be trained on is left out with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from curate.dataset import arrow
from curate.dataset.arrow import Row
from curate.display.figures import number, percent, plural
from curate.errors import RecordError
from curate.rendering import pairs, proof
from curate.rendering.encoding import EncodedBatch
from curate.rendering.renderer import Renderer
from curate.rendering.resplit import ResplitSummary, resplit
from curate.rendering.splitter import TOO_LONG
from curate.schemas.conversation import Message
from curate.schemas.prompts import exchanges, fold_system, has_mid_system
from curate.schemas.reading.tool_calls import order_results

HIDDEN_TOOLS = "hidden_tools"
HIDDEN_TOOLS_REASON = "it calls tools whose definitions the template does not write"
# Rules of problems that a rendering for each answer may solve.
REWRITTEN = ("template_rewrites", "prompt_no_prefix", "mask_differs", "not_closed")


@dataclass(frozen=True)
class Failure:
    """A conversation, or an exchange of one, that is left out: the rule, and why."""

    name: str  # of the row
    rule: str
    reason: str
    evidence: str
    source_file: str | None  # with `source_index`, the key of the record
    source_index: int | None

    def to_dict(self) -> dict[str, object]:
        """Return the failure as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class PreparedExample:
    """One conversation or piece, ready for training or evaluation: `ids` and `loss_mask` are [tokens]."""

    name: str
    language: str | None
    split: str  # train or eval
    exchanges: int  # user messages with their answers
    ids: NDArray[np.int32]  # [tokens], control tokens included
    loss_mask: NDArray[np.bool_]  # [tokens], true where the loss counts the token as a target


@dataclass
class ByAnswer:
    """Pieces that were rendered once for each answer: `pieces` became `rows` of `tokens`; `reasons` counts why.

    `once` is how many tokens they would have if one rendering could hold all answers of a piece: those of its last one.
    """

    pieces: int = 0
    rows: int = 0
    tokens: int = 0
    once: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def count(self, lengths: NDArray[np.int64], reason: str) -> None:
        """Count a piece whose rows have these lengths, in tokens [rows]."""
        self.pieces += 1
        self.rows += len(lengths)
        self.tokens += int(lengths.sum())
        self.once += int(lengths[-1])
        self.reasons[reason] += 1

    def __iadd__(self, other: ByAnswer) -> ByAnswer:
        self.pieces += other.pieces
        self.rows += other.rows
        self.tokens += other.tokens
        self.once += other.once
        self.reasons += other.reasons
        return self

    def __str__(self) -> str:
        [(reason, _)] = self.reasons.most_common(1)
        more = (self.tokens - self.once) / self.once if self.once else 0
        return (
            f"{number(self.pieces)} {plural(self.pieces, 'piece')} rendered as {number(self.rows)} rows, one for each "
            f"answer, because {reason}: {number(self.tokens)} tokens, {percent(more)} more"
        )


@dataclass
class PreparedBatch:
    """The examples of a batch of conversations, and what was left out, both in the order of the set.

    Each entry of `left_out` is a row with the messages that are not trained on, and the reason. Of `rendered` rows,
    `failed` did not pass the proof. `resplit` is None if the set's own pieces are used.
    """

    resplit: ResplitSummary | None
    by_answer: ByAnswer = field(default_factory=ByAnswer)
    hidden_tools: int = 0  # rows that train calls whose definitions are not in the prompt
    examples: list[PreparedExample] = field(default_factory=list)
    left_out: list[tuple[Row, RecordError]] = field(default_factory=list)
    rendered: int = 0
    failed: int = 0
    read: int = 0  # rows of the set
    sources: int = 0  # conversations that they are pieces of

    def extend(self, later: PreparedBatch) -> None:
        """Append a batch that comes later in the set."""
        self.examples += later.examples
        self.left_out += later.left_out
        self.rendered += later.rendered
        self.failed += later.failed
        self.read += later.read
        self.sources += later.sources
        self.by_answer += later.by_answer
        self.hidden_tools += later.hidden_tools
        if self.resplit is not None and later.resplit is not None:
            self.resplit += later.resplit


@dataclass(frozen=True)
class _Proven:
    """Rows as rendered, and the problem of each that fails, by its index."""

    rows: Sequence[Row]
    encoded: EncodedBatch
    problems: dict[int, RecordError]

    def rule(self, index: int) -> str | None:
        """Return the rule of a row's problem, None without one."""
        return self.problems[index].rule if index in self.problems else None

    def ids(self, index: int) -> NDArray[np.int32]:
        """Return the ids of a row [tokens], a view."""
        return self.encoded.ids[self.encoded.tokens_of(index)]

    def example(self, index: int) -> PreparedExample:
        """Return a row as an example; its arrays are views of the batch's."""
        row = self.rows[index]
        # `exchanges` also returns the end of the last exchange, so there is one bound too many.
        count = max(0, len(exchanges(row.messages)[1]) - 1)
        loss_mask = self.encoded.loss_mask[self.encoded.tokens_of(index)]
        return PreparedExample(row.name, row.language, row.split, count, self.ids(index), loss_mask)


@dataclass(frozen=True)
class ExamplePreparer:
    """Renders and proves conversations, after splitting them again if there are `reasons` to; can be pickled.

    `reasons` come from `curate.rendering.resplit.differences`. With `pairs`, each row with a rejected answer becomes
    two examples, its chosen and its rejected side, one after the other.
    """

    renderer: Renderer
    max_tokens: int  # the window, in tokens as rendered
    reasons: tuple[str, ...] = ()
    pairs: bool = False

    def __call__(self, batch: bytes) -> PreparedBatch:
        """Prepare a batch of `arrow.batches`."""
        return self.prepare(arrow.decode_batch(batch))

    def prepare(self, sources: Sequence[list[Row]]) -> PreparedBatch:
        """Prepare conversations, each given as its pieces in order."""
        unpaired: Sequence[list[Row]] = []
        if self.pairs:  # the others are not rendered, and of a large set not kept either
            unpaired = [source for source in sources if not source[-1].rejected]
            sources = [source for source in sources if source[-1].rejected]
        sources = [[self._with_choices(row) for row in source] for source in sources]
        rows = [row for source in sources for row in source]
        read, count = len(rows), len(sources)
        prepared = PreparedBatch(None, read=read, sources=count)
        if self.reasons:
            result = resplit(self.renderer.counter(), sources, self.max_tokens)
            counts = read, len(result.pieces), result.changed, len(result.rejected)
            summary = ResplitSummary(self.reasons, *counts)
            prepared = PreparedBatch(summary, left_out=result.rejected, read=read, sources=count)
            rows = result.pieces
        if not self.renderer.mid_system:
            folded = sum(has_mid_system(row.messages) for row in rows)
            rows = [_fold_system(row) for row in rows]
            if prepared.resplit is not None:
                prepared.resplit = replace(prepared.resplit, folded=folded)
        if self.pairs:
            prepared.left_out += [pairs.leave_out(row) for source in unpaired for row in source]
            self._render_pairs(prepared, rows)
        else:
            self._render(prepared, rows)
        return prepared

    def _with_choices(self, row: Row) -> Row:
        """Return a row with its reasoning as chosen, and its results in the order of their calls."""
        apply = self.renderer.choices.apply
        return replace(row, messages=order_results(apply(row.messages)), rejected=apply(row.rejected))

    def _render_pairs(self, prepared: PreparedBatch, rows: Sequence[Row]) -> None:
        """Add both sides of each row with a pair, or list it as left out; rows without a pair are left out."""
        prepared.left_out += [pairs.leave_out(row) for row in rows if not pairs.has_pair(row)]
        sides = [side for row in rows if pairs.has_pair(row) for side in pairs.split_sides(row)]
        proven = self._prove(sides)
        for chosen in range(0, len(sides), 2):
            self._add(prepared, proven, chosen, chosen + 1)

    def _render(self, prepared: PreparedBatch, rows: Sequence[Row]) -> None:
        """Add the examples of each row, or list it as left out; a row may need one rendering for each answer."""
        proven = self._prove(rows)
        rewritten = {
            index: answers
            for index, row in enumerate(rows)
            if proven.rule(index) in REWRITTEN and (answers := self.renderer.answer_rows(row.messages))
        }
        answer_rows = [
            replace(rows[index], name=f"{rows[index].name}#{position}", messages=messages)
            for index, answers in rewritten.items()
            for position, messages in enumerate(answers)
        ]
        by_answer = self._prove(answer_rows)
        done = 0  # answer rows that are added
        for index in range(len(rows)):
            count = len(rewritten.get(index, ()))
            if not count:
                self._add(prepared, proven, index)
                continue
            prepared.by_answer.count(by_answer.encoded.lengths[done : done + count], proven.problems[index].reason)
            for answer in range(done, done + count):
                self._add(prepared, by_answer, answer)
            done += count

    def _prove(self, rows: Sequence[Row]) -> _Proven:
        """Render rows and prove them."""
        conversations = [row.messages for row in rows]
        rendered = self.renderer.render_batch(conversations)
        return _Proven(rows, rendered.encoded, proof.prove(self.renderer, conversations, rendered))

    def _add(self, prepared: PreparedBatch, proven: _Proven, *sides: int) -> None:
        """Add a rendered row to the examples, or to what is left out; the two sides of a pair stay together."""
        prepared.rendered += 1
        prepared.failed += any(side in proven.problems for side in sides)
        problems = ((proven.rows[side], problem) for side in sides if (problem := self._problem(proven, side)))
        left_out = next(problems, None)
        hides_tools = left_out is None and any(self._hides_tools(proven.rows[side].messages) for side in sides)
        prepared.hidden_tools += hides_tools
        if hides_tools and self.renderer.choices.hidden_tools == "leave_out":
            left_out = proven.rows[sides[0]], RecordError(HIDDEN_TOOLS, HIDDEN_TOOLS_REASON)
        elif left_out is None and len(sides) == 2 and (same := pairs.find_same([proven.ids(side) for side in sides])):
            left_out = proven.rows[sides[0]], same
        if left_out is not None:
            prepared.left_out.append(left_out)
            return
        prepared.examples += [proven.example(side) for side in sides]

    def _problem(self, proven: _Proven, index: int) -> RecordError | None:
        """Return why a rendered row cannot be trained on: it failed the proof, or exceeds the window."""
        size = int(proven.encoded.lengths[index])
        if index not in proven.problems and size > self.max_tokens:
            return RecordError(TOO_LONG, f"{size} tokens as rendered, window {self.max_tokens}")
        return proven.problems.get(index)

    def _hides_tools(self, messages: Sequence[Message]) -> bool:
        """Return whether a row trains calls of tools whose definitions the template does not write."""
        if not messages or not messages[0].tools or self.renderer.shows_tools:
            return False
        loss = self.renderer.loss
        return any(message.tool_calls and loss.supervises(message) for message in loss.apply(messages))


def _fold_system(row: Row) -> Row:
    """Return a row with its later system messages in prompts, for a template that cannot say them elsewhere."""
    return replace(row, messages=list(fold_system(row.messages))) if has_mid_system(row.messages) else row


def describe_hidden(rows: int, setting: str) -> str:
    """Return how many rows train calls of tools whose definitions the template does not write, and what decides."""
    return f"{number(rows)} {plural(rows, 'row')} with tools that the template does not show: {setting}"


def failure_of(row: Row, problem: RecordError) -> Failure:
    """Return the failure of a row that is left out."""
    return Failure(row.name, problem.rule, problem.reason, problem.evidence, *row.source)
