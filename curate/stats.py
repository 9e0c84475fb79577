"""Measure a curated set: numbers as plain frozen dataclasses, taken by lazy scans of its small columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.errors import SetError

if TYPE_CHECKING:
    import polars as pl

    from curate.curated import CuratedSet

PERCENTILES = (5, 25, 50, 75, 95, 99)
BINS = 16  # at most, of a histogram; what lies past the 99th percentile shares the last one
NAMES_SHOWN = 1000  # languages, models and repairs beyond the commonest are not listed


@dataclass(frozen=True)
class Input:
    """One file that was read: `bytes` as they lay on disk."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Header:
    """What the set is and what made it. `tokens` is the sum over all pieces, as rendered in `template`."""

    path: str
    inputs: tuple[Input, ...]
    recipe: str
    version: str
    tokenizer: str
    template: str
    window: int
    read: int
    kept: int
    tokens: int


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
    """How one measure is spread; `percentiles` maps `p50` and the like to values, empty without rows."""

    name: str
    title: str
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
    """A repair and how often it was made."""

    name: str
    count: int


@dataclass(frozen=True)
class Stats:
    """All numbers of one set; terminal and JSON are faces of this object."""

    header: Header
    flow: Flow
    histograms: tuple[Histogram, ...]
    languages: tuple[Share, ...]
    models: tuple[Share, ...]
    splits: tuple[Share, ...]
    edits: tuple[Count, ...]


def stats(set_path: str | Path = "curated") -> Stats:
    """Measure a curated set; raises SetError with what to do where it is none or is damaged."""
    from curate.curated import open_set

    curated = open_set(set_path)
    with readable(curated):
        rows = curated.conversations()
        return Stats(
            header=_header(curated, _total_tokens(rows)),
            flow=flow(curated.manifest),
            histograms=_histograms(rows),
            languages=_shares(rows, "language"),
            models=_shares(rows, "model"),
            splits=_shares(rows, "split"),
            edits=edits(curated.manifest),
        )


def flow(manifest: Mapping[str, Any]) -> Flow:
    """Return the flow from a manifest, the rules that took most first."""
    counts = manifest["counts"]
    steps = [Step(name, taken["first"], taken["alone"]) for name, taken in counts["rules"].items()]
    return Flow(
        read=counts["read"],
        steps=tuple(sorted(steps, key=lambda step: (-step.first, -step.alone, step.rule))),
        rejected=counts["rejected"],
        kept=counts["kept"],
        rejected_exchanges=counts["rejected_exchanges"],
        pieces=counts["pieces"],
    )


def edits(manifest: Mapping[str, Any]) -> tuple[Count, ...]:
    """Return the repairs from a manifest, the commonest first."""
    counts = manifest["counts"]["edits"]
    return tuple(Count(name, counts[name]) for name in sorted(counts, key=lambda name: (-counts[name], name)))


@contextmanager
def readable(curated: CuratedSet) -> Iterator[None]:
    """Turn what reading a damaged set raises into a SetError that says what to do."""
    import polars as pl

    again = "run curate clean again"
    try:
        yield
    except pl.exceptions.ColumnNotFoundError as error:
        column = str(error).splitlines()[0]
        raise SetError(f"{str(curated.path)!r} lacks a column ({column}): another version wrote it; {again}") from error
    except (KeyError, TypeError) as error:
        raise SetError(f"the manifest of {str(curated.path)!r} is damaged or of another version; {again}") from error
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetError(f"{str(curated.path)!r} is damaged ({detail}); {again}") from error


def _header(curated: CuratedSet, tokens: int) -> Header:
    manifest = curated.manifest
    return Header(
        path=str(curated.path),
        inputs=tuple(Input(item["name"], item["bytes"]) for item in manifest["inputs"]),
        recipe=manifest["recipe"]["name"],
        version=str(manifest["version"]),
        tokenizer=manifest["tokenizer"]["name"],
        template=manifest["template"],
        window=manifest["window"],
        read=manifest["counts"]["read"],
        kept=manifest["counts"]["kept"],
        tokens=tokens,
    )


def _total_tokens(rows: pl.LazyFrame) -> int:
    import polars as pl

    return int(rows.select(pl.col("tokens").sum().cast(pl.Int64)).collect(engine="streaming").item() or 0)


def _histograms(rows: pl.LazyFrame) -> tuple[Histogram, ...]:
    import polars as pl

    answers = pl.max_horizontal(pl.col("turns") // 2, 1)  # an exchange has one answer; a system message adds a turn
    measures = {
        "tokens": ("tokens per piece", pl.col("tokens")),
        "turns": ("messages per piece", pl.col("turns")),
        "answer_tokens": ("tokens per answer, mean of a piece", pl.col("answer_tokens") // answers),
    }
    small = rows.select(**{name: measure.cast(pl.Int64) for name, (_, measure) in measures.items()})
    frame = small.collect(engine="streaming")  # 24 bytes a row
    return tuple(histogram(name, title, frame[name]) for name, (title, _) in measures.items())


def histogram(name: str, title: str, values: pl.Series) -> Histogram:
    """Measure whole numbers; bins are equally wide steps of 1, 2 or 5 times a power of ten."""
    values = values.drop_nulls()
    if values.is_empty():
        return Histogram(name, title, 0, 0.0, 0, 0, {}, ())
    percentiles = {f"p{p}": int(values.quantile(p / 100, "nearest") or 0) for p in PERCENTILES}
    low, high = int(values.min()), int(values.max())  # type: ignore[arg-type]
    return Histogram(
        name=name,
        title=title,
        count=values.len(),
        mean=round(float(values.mean()), 2),  # type: ignore[arg-type]
        minimum=low,
        maximum=high,
        percentiles=percentiles,
        bins=_bins(values, low, percentiles["p99"], high),
    )


def _bins(values: pl.Series, low: int, most: int, high: int) -> tuple[Bin, ...]:
    step = _step(max(most - low, 1))
    edges = list(range(low // step * step, most + 1, step))
    place = ((values - edges[0]) // step).clip(0, len(edges) - 1)
    counted = dict(place.value_counts().iter_rows())
    ends = [after - 1 for _, after in pairwise(edges)] + [max(high, edges[-1] + step - 1)]
    return tuple(Bin(edge, end, counted.get(i, 0)) for i, (edge, end) in enumerate(zip(edges, ends, strict=True)))


def _step(span: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50 … that covers the span in `BINS` steps at most."""
    step, factor = 1, 1
    while span / step >= BINS:
        factor, times = (factor * 10, 1) if step == 5 * factor else (factor, 2 if step == factor else 5)
        step = factor * times
    return step


def _shares(rows: pl.LazyFrame, column: str) -> tuple[Share, ...]:
    import polars as pl

    found = (
        rows.group_by(pl.col(column).fill_null("unknown").alias("name"))
        .agg(pl.len().alias("pieces"), pl.col("tokens").sum().cast(pl.Int64))
        .sort(["pieces", "name"], descending=[True, False])
        .head(NAMES_SHOWN)
        .collect(engine="streaming")
    )
    return tuple(Share(*row) for row in found.iter_rows())
