"""The numbers of a curated set or a dump, as frozen dataclasses.

Terminal, page and JSON are three faces of `Stats`; `schemas/stats.schema.json` describes the third.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from curate.dataset.manifest import Manifest
from curate.display.displayed import Displayed
from curate.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import polars as pl


Kind = Literal["set", "dump"]


@dataclass(frozen=True)
class Input:
    """One file that was read: `bytes` as they lay on disk."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Header:
    """What was measured and what made it: a curated set, or a dump as it came.

    `recipe` and `window` are null for a dump. `tokens` is the sum over all pieces (a dump's
    conversations), as rendered in `template`; `answer_tokens` are those that will be trained.
    """

    path: str
    kind: Kind
    inputs: tuple[Input, ...]
    recipe: str | None
    version: str
    tokenizer: str
    template: str
    window: int | None
    read: int
    kept: int
    tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Step:
    """One rule of the flow: the records it took `first`, and those it would have taken `alone`."""

    rule: str
    first: int
    alone: int


@dataclass(frozen=True)
class Flow:
    """From records read to pieces: read = kept + rejected, and `steps.first` sums to rejected."""

    read: int
    steps: tuple[Step, ...]
    rejected: int
    kept: int
    rejected_exchanges: int
    pieces: int


@dataclass(frozen=True)
class Bin:
    """Values from `low` up to and including `high`."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class Histogram:
    """How one measure is spread over `unit`; `percentiles` maps `p50` and the like to values, empty without rows."""

    name: str
    title: str
    unit: str
    count: int
    mean: float
    minimum: int
    maximum: int
    percentiles: Mapping[str, int]
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Share:
    """A name with the pieces that carry it and their tokens; null is named `unknown`."""

    name: str
    pieces: int
    tokens: int


@dataclass(frozen=True)
class Count:
    """A name and how often it was met: repairs by places mended, roles by messages."""

    name: str
    count: int


@dataclass(frozen=True)
class Duplicates:
    """Conversations that are, or begin, alike.

    `clusters` counts groups of conversations with the same first exchange, `shared` those of two or more, with
    `members` in them; `largest` is the size of the greatest, and `example` the id of its first. `rejected` were
    taken out of a set as duplicates of a kept one (of a dump: equal an earlier one); `most_copied` is the id with the
    most such `copies`.
    """

    clusters: int
    shared: int
    members: int
    largest: int
    example: str | None
    rejected: int
    most_copied: str | None
    copies: int


@dataclass(frozen=True)
class WindowFit:
    """How much fits a window of so many tokens whole: pieces, and conversations with their pieces joined."""

    window: int
    pieces: int
    conversations: int


@dataclass(frozen=True)
class Training:
    """What the default fine-tune would go through: the `train` split, `epochs` times, `global_batch` a step.

    `tokens` and `answer_tokens` are of one epoch; `trained_share` is the share of tokens that the loss counts.
    """

    pieces: int
    epochs: int
    global_batch: int
    steps: int
    tokens: int
    answer_tokens: int
    total_tokens: int
    trained_share: float


@dataclass(frozen=True)
class Stats(Displayed):
    """All numbers of one set or dump; terminal, page and JSON are faces of this object."""

    header: Header
    flow: Flow
    histograms: tuple[Histogram, ...]
    languages: tuple[Share, ...]
    models: tuple[Share, ...]
    roles: tuple[Count, ...]
    splits: tuple[Share, ...]
    edits: tuple[Count, ...]
    duplicates: Duplicates
    windows: tuple[WindowFit, ...]
    training: Training

    def frame(self, name: str) -> pl.DataFrame:
        """Return a part as a Polars frame, for plotting; raises InputError for a name that there is not.

        Parts are `flow`, `histograms` (a row a bin), `percentiles`, `languages`, `models`, `roles`, `splits`, `edits`
        and `windows`.
        """
        import polars as pl

        rows = {
            "flow": [dataclasses.asdict(step) for step in self.flow.steps],
            "histograms": [{"name": h.name, **dataclasses.asdict(bin)} for h in self.histograms for bin in h.bins],
            "percentiles": [{"name": h.name, **h.percentiles} for h in self.histograms],
            **{
                part: [dataclasses.asdict(item) for item in getattr(self, part)]
                for part in ("languages", "models", "roles", "splits", "edits", "windows")
            },
        }
        if name not in rows:
            raise InputError(f"statistics have no part {name!r}{did_you_mean(name, rows)}")
        return pl.DataFrame(rows[name], infer_schema_length=None)


def flow(manifest: Manifest) -> Flow:
    """Return the flow from a manifest, sorted by the number of records each rule rejected."""
    counts = manifest.counts
    steps = [Step(name, rule.first, rule.alone) for name, rule in counts.rules.items()]
    return Flow(
        read=counts.read,
        steps=tuple(sorted(steps, key=lambda step: (-step.first, -step.alone, step.rule))),
        rejected=counts.rejected,
        kept=counts.kept,
        rejected_exchanges=counts.rejected_exchanges,
        pieces=counts.pieces,
    )


def edits(manifest: Manifest) -> tuple[Count, ...]:
    """Return the repairs from a manifest, most frequent first."""
    return counted(manifest.counts.edits)


def counted(counts: Mapping[str, int]) -> tuple[Count, ...]:
    """Return names with their counts, the commonest first."""
    return tuple(Count(name, counts[name]) for name in sorted(counts, key=lambda name: (-counts[name], name)))
