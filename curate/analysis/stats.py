"""The numbers of a curated set or a dump, as frozen dataclasses.

`Stats` is shown in the terminal, as a page and as JSON, which `schemas/stats.schema.json` describes.
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
    """One input file; `bytes` on disk."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Header:
    """What was measured: a curated set, or a dump before cleaning.

    `recipe` and `window` are None for a dump. `tokens` is the sum over all pieces (a dump's
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
    warnings: tuple[str, ...] = ()  # what could not be read of a dump
    sets: tuple[str, ...] = ()  # that the set was made from, and what was asked
    scores: tuple[str, ...] = ()  # what models have measured, and by which


@dataclass(frozen=True)
class Step:
    """A rule: the records that it was the `first` to reject, and, if known, those that it would reject `alone`."""

    rule: str
    first: int
    alone: int | None


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
    """The distribution of one measure over `unit`; `percentiles` maps names such as `p50` to values."""

    name: str
    title: str
    unit: str
    count: int
    mean: float
    minimum: int
    maximum: int
    percentiles: dict[str, int]
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Share:
    """A name with its pieces and their tokens; a missing value is named `unknown`."""

    name: str
    pieces: int
    tokens: int


@dataclass(frozen=True)
class Count:
    """A name and its count: of repairs, or of messages with a role."""

    name: str
    count: int


@dataclass(frozen=True)
class Duplicates:
    """Conversations that are equal, or begin alike.

    `clusters` is the number of clusters (in a dump: of first prompts), `shared` of those with two or more
    conversations, which have `members` in all; `largest` is the size of the largest, `example` an id in it. `rejected`
    records were duplicates of a kept one (in a dump: equal to an earlier one); `most_copied` is the id with the most
    `copies`.
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
    """What fits a window of this many tokens: pieces, and whole conversations."""

    window: int
    pieces: int
    conversations: int


@dataclass(frozen=True)
class Training:
    """What the default fine-tune trains on: the `train` split, `epochs` times, `global_batch` pieces a step.

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
class BenchmarkItem:
    """An item of a benchmark that conversations hold: how many that are kept, and how many that are rejected.

    `coverage` is the largest; `passage` is what one of them shares with the item, `text` the benchmark's own if its
    fingerprint has it.
    """

    name: str
    kept: int
    rejected: int
    coverage: float
    passage: str | None
    text: str | None


@dataclass(frozen=True)
class Measures:
    """What is measured of a set's tables; the other numbers are the manifest's. The fields are those of `Stats`."""

    tokens: int
    answer_tokens: int
    histograms: tuple[Histogram, ...]
    languages: tuple[Share, ...]
    models: tuple[Share, ...]
    roles: tuple[Count, ...]
    splits: tuple[Share, ...]
    duplicates: Duplicates
    windows: tuple[WindowFit, ...]
    training: Training
    scores: tuple[str, ...]
    contamination: tuple[BenchmarkItem, ...]


@dataclass(frozen=True)
class Stats(Displayed):
    """All numbers of one set or dump."""

    header: Header
    flow: Flow
    histograms: tuple[Histogram, ...]
    languages: tuple[Share, ...]
    models: tuple[Share, ...]
    roles: tuple[Count, ...]
    turn_keys: tuple[Count, ...]
    splits: tuple[Share, ...]
    edits: tuple[Count, ...]
    duplicates: Duplicates
    windows: tuple[WindowFit, ...]
    training: Training
    contamination: tuple[BenchmarkItem, ...] = ()

    def frame(self, name: str) -> pl.DataFrame:
        """Return a part as a Polars frame, for plotting; raises InputError for an unknown part.

        Parts are `flow`, `histograms` (a row per bin), `percentiles`, `languages`, `models`, `roles`, `turn_keys`,
        `splits`, `edits`, `windows` and `contamination`.
        """
        import polars as pl

        rows = {
            "flow": [dataclasses.asdict(step) for step in self.flow.steps],
            "histograms": [{"name": h.name, **dataclasses.asdict(bin)} for h in self.histograms for bin in h.bins],
            "percentiles": [{"name": h.name, **h.percentiles} for h in self.histograms],
            **{
                part: [dataclasses.asdict(item) for item in getattr(self, part)]
                for part in ("languages", "models", "roles", "turn_keys", "splits", "edits", "windows", "contamination")
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
        steps=tuple(sorted(steps, key=lambda step: (-step.first, -(step.alone or 0), step.rule))),
        rejected=counts.rejected,
        kept=counts.kept,
        rejected_exchanges=counts.rejected_exchanges,
        pieces=counts.pieces,
    )


def edits(manifest: Manifest) -> tuple[Count, ...]:
    """Return the repairs from a manifest, most frequent first."""
    return sort_counts(manifest.counts.edits)


def sort_counts(counts: Mapping[str, int]) -> tuple[Count, ...]:
    """Return names with their counts, most frequent first."""
    return tuple(Count(name, counts[name]) for name in sorted(counts, key=lambda name: (-counts[name], name)))
