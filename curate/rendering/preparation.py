"""Prepare a curated set for training: ids and loss masks of all conversations, proven, and what was left out.

The set is read in batches (`curate.dataset.arrow`), so memory holds little more than the ids; a large set is shared
among worker processes. Where set and model differ in template, tokenizer or window, the set is split again first
(`curate.rendering.resplit`). Nothing is truncated: a conversation or exchange that cannot be trained on is left out
with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from curate.dataset import arrow
from curate.dataset.arrow import Row
from curate.errors import RecordError
from curate.rendering import proof
from curate.rendering.renderer import Renderer
from curate.rendering.resplit import ResplitSummary, resplit
from curate.rendering.splitter import TOO_LONG
from curate.schemas.prompts import exchanges, fold_reasoning, fold_system, has_mid_system


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
class PreparedBatch:
    """The examples of a batch of conversations, and what was left out, both in the order of the set.

    Each entry of `left_out` is a row with the messages that are not trained on, and the reason. Of `rendered` rows,
    `failed` did not pass the proof. `resplit` is None if the set's own pieces are used.
    """

    resplit: ResplitSummary | None
    examples: list[PreparedExample] = field(default_factory=list)
    left_out: list[tuple[Row, RecordError]] = field(default_factory=list)
    rendered: int = 0
    failed: int = 0

    def extend(self, later: PreparedBatch) -> None:
        """Append a batch that comes later in the set."""
        self.examples += later.examples
        self.left_out += later.left_out
        self.rendered += later.rendered
        self.failed += later.failed
        if self.resplit is not None and later.resplit is not None:
            self.resplit += later.resplit


@dataclass(frozen=True)
class ExamplePreparer:
    """Renders and proves conversations, after splitting them again if there are `reasons` to; can be pickled.

    `reasons` come from `curate.rendering.resplit.differences`.
    """

    renderer: Renderer
    max_tokens: int  # the window, in tokens as rendered
    reasons: tuple[str, ...] = ()

    def __call__(self, batch: bytes) -> PreparedBatch:
        """Prepare a batch of `arrow.batches`."""
        return self.prepare(arrow.decode_batch(batch))

    def prepare(self, sources: Sequence[list[Row]]) -> PreparedBatch:
        """Prepare conversations, each given as its pieces in order."""
        sources = [[_fold_reasoning(row) for row in source] for source in sources]
        rows = [row for source in sources for row in source]
        prepared = PreparedBatch(None)
        if self.reasons:
            result = resplit(self.renderer.counter(), sources, self.max_tokens)
            counts = len(rows), len(result.pieces), result.changed, len(result.rejected)
            prepared = PreparedBatch(ResplitSummary(self.reasons, *counts), left_out=result.rejected)
            rows = result.pieces
        if not self.renderer.mid_system:
            rows = [_fold_system(row) for row in rows]
        self._render(prepared, rows)
        return prepared

    def _render(self, prepared: PreparedBatch, rows: Sequence[Row]) -> None:
        """Add each row to the examples, or to what is left out."""
        conversations = [row.messages for row in rows]
        rendered = self.renderer.render_batch(conversations)
        problems = proof.prove(self.renderer, conversations, rendered)  # by index in `rows`
        prepared.rendered += len(rows)
        prepared.failed += len(problems)
        encoded = rendered.encoded
        for index, (row, size) in enumerate(zip(rows, encoded.lengths.tolist(), strict=True)):
            if index not in problems and size > self.max_tokens:
                reason = f"{size} tokens as rendered, window {self.max_tokens}"
                problems[index] = RecordError(TOO_LONG, reason)
            if index in problems:
                prepared.left_out.append((row, problems[index]))
                continue
            tokens = encoded.tokens_of(index)
            # `exchanges` also returns the end of the last exchange, so there is one bound too many.
            count = max(0, len(exchanges(row.messages)[1]) - 1)
            ids, loss_mask = encoded.ids[tokens], encoded.loss_mask[tokens]  # views of the batch's arrays
            prepared.examples.append(PreparedExample(row.name, row.language, row.split, count, ids, loss_mask))


def _fold_reasoning(row: Row) -> Row:
    """Return a row whose answers have their reasoning within the content, where every template writes it."""
    if not any(message.reasoning for message in row.messages):
        return row
    return replace(row, messages=[fold_reasoning(message) for message in row.messages])


def _fold_system(row: Row) -> Row:
    """Return a row with its later system messages in prompts, for a template that cannot say them elsewhere."""
    return replace(row, messages=list(fold_system(row.messages))) if has_mid_system(row.messages) else row


def failure_of(row: Row, problem: RecordError) -> Failure:
    """Return the failure of a row that is left out."""
    return Failure(row.name, problem.rule, problem.reason, problem.evidence, *row.source)
