"""Measure a curated set: lazy scans of its small columns, never of its texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import starmap

import polars as pl

from curate.analysis.stats import (
    Bin,
    Count,
    Duplicates,
    Header,
    Histogram,
    Input,
    Share,
    Stats,
    Training,
    WindowFit,
    counted,
    edits,
    flow,
)
from curate.dataset.curated_set import CuratedSet, readable

PERCENTILES = (5, 25, 50, 75, 95, 99)
BINS = 16  # at most, of a histogram; what lies past the 99th percentile shares the last one
NAMES_SHOWN = 1000  # languages, models and repairs beyond the commonest are not listed
WINDOWS = (2048, 4096, 8192)
EPOCHS, GLOBAL_BATCH = 3, 128  # of the default fine-tune: Vicuna's published recipe

SIZES = ("tokens", "turns", "answer_tokens")  # a row a piece, whole numbers


def measure_set(curated: CuratedSet) -> Stats:
    """Measure an open set; raises SetError where it is damaged."""
    with readable(curated):
        return _measured(curated)


def _measured(curated: CuratedSet) -> Stats:
    rows = curated.conversations()
    sizes, whole = lengths(rows)
    manifest = curated.manifest
    return Stats(
        header=_header(curated, sizes),
        flow=flow(manifest),
        histograms=histograms(sizes, whole, "pieces"),
        languages=shares(rows, "language"),
        models=shares(rows, "model"),
        roles=_roles(curated),
        splits=shares(rows, "split"),
        edits=edits(manifest),
        duplicates=_duplicates(rows, curated.rejected()),
        windows=windows(sizes["tokens"], whole),
        training=training(sizes.filter(pl.col("split") == "train")),
    )


def lengths(rows: pl.LazyFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Return the sizes of a set's pieces (`SIZES`, `piece`, `split`), and the tokens of its conversations."""
    sizes = rows.select("piece", "split", *(pl.col(name).cast(pl.Int64) for name in SIZES)).collect(engine="streaming")
    return sizes, joined(sizes)


def joined(sizes: pl.DataFrame) -> pl.Series:
    """Return the tokens of each conversation: pieces of one stand together, the first numbered 0."""
    conversation = (pl.col("piece") == 0).cum_sum()
    return sizes.group_by(conversation.alias("conversation")).agg(pl.col("tokens").sum())["tokens"]


def _header(curated: CuratedSet, sizes: pl.DataFrame) -> Header:
    manifest = curated.manifest
    return Header(
        path=str(curated.path),
        kind="set",
        inputs=tuple(Input(item.name, item.bytes) for item in manifest.inputs),
        recipe=manifest.recipe_name,
        version=manifest.version,
        tokenizer=manifest.tokenizer.name,
        template=manifest.template,
        window=manifest.window,
        read=manifest.counts.read,
        kept=manifest.counts.kept,
        tokens=int(sizes["tokens"].sum()),
        answer_tokens=int(sizes["answer_tokens"].sum()),
    )


def _roles(curated: CuratedSet) -> tuple[Count, ...]:
    """Return messages by role, from the manifest or, where an earlier version wrote that, from the texts' table."""
    roles = curated.manifest.counts.roles
    if roles is None:
        role = pl.col("messages").list.eval(pl.element().struct.field("role")).list.explode()
        found = curated.conversations().select(role.alias("role")).drop_nulls().group_by("role").len()
        roles = dict(found.collect(engine="streaming").iter_rows())
    return counted(roles)


def histograms(sizes: pl.DataFrame, whole: pl.Series, unit: str) -> tuple[Histogram, ...]:
    """Measure lengths; `whole` are tokens by conversation, told apart from those by piece where any was split."""
    return tuple(starmap(histogram, measured(sizes, whole, unit, len(whole) != sizes.height)))


def measured(sizes: pl.DataFrame, whole: pl.Series, unit: str, apart: bool) -> list[tuple[str, str, str, pl.Series]]:
    """Return name, title, unit and values of each length; tokens by piece if those are told `apart`."""
    one = unit.removesuffix("s")
    answers = sizes.select(pl.col("answer_tokens") // pl.max_horizontal(pl.col("turns") // 2, 1)).to_series()
    by_piece = [("tokens", f"tokens per {one}", unit, sizes["tokens"])]
    return [
        ("conversation_tokens", "tokens per conversation", "conversations", whole),
        *(by_piece if apart else []),
        ("turns", f"messages per {one}", unit, sizes["turns"]),
        ("answer_tokens", f"tokens per answer, mean of a {one}", unit, answers),
    ]


def histogram(name: str, title: str, unit: str, values: pl.Series) -> Histogram:
    """Measure whole numbers; bins are equally wide steps of 1, 2 or 5 times a power of ten."""
    values = values.drop_nulls().sort()
    if values.is_empty():
        return Histogram(name, title, unit, 0, 0.0, 0, 0, {}, ())
    percentiles = {f"p{p}": int(values.quantile(p / 100, "nearest") or 0) for p in PERCENTILES}
    low, high = int(values[0]), int(values[-1])
    return Histogram(
        name=name,
        title=title,
        unit=unit,
        count=values.len(),
        mean=round(float(values.mean()), 2),  # type: ignore[arg-type]
        minimum=low,
        maximum=high,
        percentiles=percentiles,
        bins=_bins(values, low, percentiles["p99"], high),
    )


def _bins(values: pl.Series, low: int, most: int, high: int) -> tuple[Bin, ...]:
    spans = equal_spans(low, most, high)
    return tuple(Bin(*span, count) for span, count in zip(spans, counts(values, spans), strict=True))


def equal_spans(low: int, most: int, high: int) -> list[tuple[int, int]]:
    """Return spans from `low` on, equally wide but for the last, in which `most` lies and which ends at `high`."""
    step = _step(max(most - low, 1))
    edges = list(range(low // step * step, most + 1, step))
    return list(zip(edges, [*(edge - 1 for edge in edges[1:]), max(high, edges[-1] + step - 1)], strict=True))


def counts(values: pl.Series, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return how many of the values lie in each span."""
    first, end = spans[0]
    place = ((values - first) // (end - first + 1)).clip(0, len(spans) - 1)
    found = dict(place.value_counts().iter_rows())
    return [found.get(at, 0) for at in range(len(spans))]


def _step(span: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50 … that covers the span in `BINS` steps at most."""
    step, factor = 1, 1
    while span / step >= BINS:
        factor, times = (factor * 10, 1) if step == 5 * factor else (factor, 2 if step == factor else 5)
        step = factor * times
    return step


def shares(rows: pl.LazyFrame, column: str) -> tuple[Share, ...]:
    """Return a column's names with pieces and tokens, the commonest first."""
    found = (
        rows.group_by(pl.col(column).fill_null("unknown").alias("name"))
        .agg(pl.len().alias("pieces"), pl.col("tokens").sum().cast(pl.Int64))
        .sort(["pieces", "name"], descending=[True, False])
        .head(NAMES_SHOWN)
        .collect(engine="streaming")
    )
    return tuple(Share(*row) for row in found.iter_rows())


def _duplicates(rows: pl.LazyFrame, rejected: pl.LazyFrame) -> Duplicates:
    by_cluster = rows.filter(pl.col("piece") == 0).group_by("cluster").agg(size=pl.len(), example=pl.col("id").min())
    clusters = summarised(by_cluster)
    taken = rejected.select("twin").drop_nulls().group_by("twin").agg(copies=pl.len())
    copies = taken.sort(["copies", "twin"], descending=[True, False]).collect(engine="streaming")
    most = copies.row(0) if copies.height else (None, 0)
    return Duplicates(*clusters, int(copies["copies"].sum()), *most)


def summarised(by_cluster: pl.LazyFrame) -> tuple[int, int, int, int, str | None]:
    """Return clusters, those shared, their members, the largest one's size and its example."""
    shared = pl.col("size") > 1
    found = by_cluster.select(
        clusters=pl.len(),
        shared=shared.sum(),
        members=pl.col("size").filter(shared).sum(),
        largest=pl.col("size").max(),
        example=pl.col("example").filter(pl.col("size") == pl.col("size").max()).min(),
    )
    clusters, shared_, members, largest, example = found.collect(engine="streaming").row(0)
    return clusters, shared_, members, largest or 0, example if (largest or 0) > 1 else None


def windows(pieces: pl.Series, whole: pl.Series, sizes: Iterable[int] = WINDOWS) -> tuple[WindowFit, ...]:
    """Return how many pieces, and how many whole conversations, each window holds."""
    return tuple(WindowFit(size, int((pieces <= size).sum()), int((whole <= size).sum())) for size in sizes)


def training(sizes: pl.DataFrame) -> Training:
    """Return what an epoch of these pieces holds, and how many steps the default fine-tune takes over them."""
    tokens, answers = int(sizes["tokens"].sum()), int(sizes["answer_tokens"].sum())
    return Training(
        pieces=sizes.height,
        epochs=EPOCHS,
        global_batch=GLOBAL_BATCH,
        steps=math.ceil(sizes.height * EPOCHS / GLOBAL_BATCH),
        tokens=tokens,
        answer_tokens=answers,
        total_tokens=tokens * EPOCHS,
        trained_share=round(answers / tokens, 4) if tokens else 0.0,
    )
