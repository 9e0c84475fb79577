"""A curated set as what a run trains on: ids and masks of all its conversations, proven, with what was left out.

Read in batches (`curate.dataset.arrow`), so that the memory it takes is that of the ids; of a large set each core takes
its share. Where set and model differ in template, tokenizer or window, the set is split again
(`curate.rendering.resplit`). Nothing is cropped; a conversation or exchange that is not trained on has a `Failure`
with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from curate.dataset import arrow
from curate.dataset.arrow import Row
from curate.errors import RecordError
from curate.rendering import proof, resplit
from curate.rendering.renderer import Renderer
from curate.rendering.resplit import Resplit
from curate.rendering.split import TOO_LONG
from curate.schemas.prompts import exchanges


@dataclass(frozen=True)
class Failure:
    """A conversation, or an exchange of one, that is not trained on: by which rule and why."""

    name: str
    rule: str
    reason: str
    evidence: str
    source_file: str | None
    source_index: int | None

    def to_dict(self) -> dict[str, object]:
        """Return the line that says it."""
        return asdict(self)


@dataclass(frozen=True)
class Kept:
    """One conversation that is trained on, or measured by: `ids` and `mask` are [tokens]; its messages are let go."""

    name: str
    language: str | None
    split: str
    exchanges: int
    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


@dataclass
class Taken:
    """What came of some sources: what is kept and what is lost, each in the order they came.

    A lost row holds the messages that are not trained on. `changed` counts what was split again.
    """

    changed: Resplit | None
    kept: list[Kept] = field(default_factory=list)
    lost: list[tuple[Row, RecordError]] = field(default_factory=list)
    proven: int = 0
    failed: int = 0

    def add(self, other: Taken) -> None:
        """Append what came of later sources."""
        self.kept += other.kept
        self.lost += other.lost
        self.proven += other.proven
        self.failed += other.failed
        if self.changed is not None and other.changed is not None:
            self.changed = self.changed.plus(other.changed)


@dataclass(frozen=True)
class Preparing:
    """Splits again if need be, renders and proves; with `reasons` each source is split again."""

    made: Renderer
    max_tokens: int
    reasons: tuple[str, ...] = ()

    def __call__(self, batch: bytes) -> Taken:
        """Return what comes of a batch of `reading.batches`."""
        return self.take(arrow.sources(batch))

    def take(self, sources: Sequence[list[Row]]) -> Taken:
        """Return what comes of some sources."""
        taken = Taken(Resplit(self.reasons) if self.reasons else None)
        rows = [row for source in sources for row in source]
        if taken.changed is not None:
            before = len(rows)
            rows, taken.lost, changed = resplit.split_again(self.made.counter(), sources, self.max_tokens)
            taken.changed = Resplit(self.reasons, before, len(rows), changed, len(taken.lost))
        self._render(taken, rows)
        return taken

    def _render(self, taken: Taken, rows: Sequence[Row]) -> None:
        conversations = [row.messages for row in rows]
        written = self.made.write(conversations)
        problems = proof.prove(self.made, conversations, written)
        taken.proven += len(rows)
        taken.failed += len(problems)
        found = written.rows
        for index, (row, size) in enumerate(zip(rows, found.lengths.tolist(), strict=True)):
            if index not in problems and size > self.max_tokens:
                reason = f"{size} tokens as rendered, window {self.max_tokens}"
                problems[index] = RecordError(TOO_LONG, reason)
            if index in problems:
                taken.lost.append((row, problems[index]))
                continue
            part = slice(*found.offsets[index : index + 2].tolist())
            count = max(0, len(exchanges(row.messages)[1]) - 1)
            taken.kept.append(Kept(row.name, row.language, row.split, count, found.ids[part], found.mask[part]))


def failure_of(row: Row, problem: RecordError) -> Failure:
    return Failure(row.name, problem.rule, problem.reason, problem.evidence, *row.source)
