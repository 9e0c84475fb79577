"""Measure a curated set from its small columns; texts are not read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import starmap

import polars as pl

from curate.analysis.contamination import benchmark_items
from curate.analysis.recorded import assemble, read_recorded
from curate.analysis.scores import describe_scores
from curate.analysis.stats import (
    Bin,
    Count,
    Duplicates,
    Histogram,
    Measures,
    Share,
    Stats,
    Training,
    WindowFit,
    sort_counts,
)
from curate.dataset.curated_set import CuratedSet, translate_errors

PERCENTILES = (5, 25, 50, 75, 95, 99)
BINS = 16  # maximum for a histogram; values past the 99th percentile share the last one
NAMES_SHOWN = 1000  # languages and models; less frequent ones are not listed
WINDOWS = (2048, 4096, 8192)
EPOCHS, GLOBAL_BATCH = 3, 128  # of the default fine-tune: Vicuna's published recipe

SIZES = ("tokens", "turns", "answer_tokens")  # integer columns; one row per piece


def measure_set(curated: CuratedSet) -> Stats:
    """Return what an open set's manifest records, or measure its tables; raises SetError if it is damaged."""
    return read_recorded(curated.path, curated.manifest) or measure_again(curated)


def measure_again(curated: CuratedSet) -> Stats:
    """Measure the tables of an open set, whatever its manifest records; raises SetError if it is damaged."""
    return assemble(curated.path, curated.manifest, measure_tables(curated))


def measure_tables(curated: CuratedSet) -> Measures:
    """Measure the tables of an open set; raises SetError if it is damaged."""
    with translate_errors(curated):
        rows = curated.conversations()
        sizes, by_conversation = lengths(rows)
        return Measures(
            tokens=int(sizes["tokens"].sum()),
            answer_tokens=int(sizes["answer_tokens"].sum()),
            histograms=histograms(sizes, by_conversation, "pieces"),
            languages=shares(rows, "language"),
            models=shares(rows, "model"),
            roles=_roles(curated),
            splits=shares(rows, "split"),
            duplicates=_duplicates(rows, curated.rejected()),
            windows=windows(sizes["tokens"], by_conversation),
            training=training(sizes.filter(pl.col("split") == "train")),
            scores=describe_scores(curated),
            contamination=benchmark_items(rows, curated.rejected()),
        )


def lengths(rows: pl.LazyFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Return the sizes of a set's pieces (`SIZES`, `piece`, `split`), and the tokens of its conversations."""
    sizes = rows.select("piece", "split", *(pl.col(name).cast(pl.Int64) for name in SIZES)).collect(engine="streaming")
    return sizes, conversation_tokens(sizes)


def conversation_tokens(sizes: pl.DataFrame) -> pl.Series:
    """Return the tokens of each conversation: its pieces are consecutive rows, the first has `piece` 0."""
    conversation = (pl.col("piece") == 0).cum_sum()
    return sizes.group_by(conversation.alias("conversation")).agg(pl.col("tokens").sum())["tokens"]


def _roles(curated: CuratedSet) -> tuple[Count, ...]:
    """Return messages by role, from the manifest or, if an earlier version wrote it, from the messages."""
    roles = curated.manifest.counts.roles
    if roles is None:
        role = pl.col("messages").list.eval(pl.element().struct.field("role")).list.explode()
        counts = curated.conversations().select(role.alias("role")).drop_nulls().group_by("role").len()
        roles = dict(counts.collect(engine="streaming").iter_rows())
    return sort_counts(roles)


def histograms(sizes: pl.DataFrame, by_conversation: pl.Series, unit: str) -> tuple[Histogram, ...]:
    """Measure lengths, with tokens per conversation, and also per piece if any conversation was split."""
    by_piece = len(by_conversation) != sizes.height
    return tuple(starmap(histogram, length_series(sizes, by_conversation, unit, by_piece)))


def length_series(
    sizes: pl.DataFrame, by_conversation: pl.Series, unit: str, by_piece: bool
) -> list[tuple[str, str, str, pl.Series]]:
    """Return name, title, unit and values of each length; with `by_piece`, tokens per piece too."""
    singular = unit.removesuffix("s")
    answers = sizes.select(pl.col("answer_tokens") // pl.max_horizontal(pl.col("turns") // 2, 1)).to_series()
    piece_tokens = [("tokens", f"tokens per {singular}", unit, sizes["tokens"])]
    return [
        ("conversation_tokens", "tokens per conversation", "conversations", by_conversation),
        *(piece_tokens if by_piece else []),
        ("turns", f"messages per {singular}", unit, sizes["turns"]),
        ("answer_tokens", f"tokens per answer, mean of a {singular}", unit, answers),
    ]


def histogram(name: str, title: str, unit: str, values: pl.Series) -> Histogram:
    """Measure integers; bins have an equal width of 1, 2 or 5 times a power of ten."""
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
    """Return spans from `low` on, of equal width except the last, which contains `most` and ends at `high`."""
    step = _step(max(most - low, 1))
    edges = list(range(low // step * step, most + 1, step))
    return list(zip(edges, [*(edge - 1 for edge in edges[1:]), max(high, edges[-1] + step - 1)], strict=True))


def counts(values: pl.Series, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of values in each span."""
    first, end = spans[0]
    bins = ((values - first) // (end - first + 1)).clip(0, len(spans) - 1)
    count_at = dict(bins.value_counts().iter_rows())
    return [count_at.get(index, 0) for index in range(len(spans))]


def _step(span: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50 … that covers the span in at most `BINS` steps."""
    step, factor = 1, 1
    while span / step >= BINS:
        factor, times = (factor * 10, 1) if step == 5 * factor else (factor, 2 if step == factor else 5)
        step = factor * times
    return step


def shares(rows: pl.LazyFrame, column: str) -> tuple[Share, ...]:
    """Return a column's values with their pieces and tokens, most frequent first."""
    by_name = (
        rows.group_by(pl.col(column).fill_null("unknown").alias("name"))
        .agg(pl.len().alias("pieces"), pl.col("tokens").sum().cast(pl.Int64))
        .sort(["pieces", "name"], descending=[True, False])
        .head(NAMES_SHOWN)
        .collect(engine="streaming")
    )
    return tuple(Share(*row) for row in by_name.iter_rows())


def _duplicates(rows: pl.LazyFrame, rejected: pl.LazyFrame) -> Duplicates:
    by_cluster = rows.filter(pl.col("piece") == 0).group_by("cluster").agg(size=pl.len(), example=pl.col("id").min())
    clusters = summarize_clusters(by_cluster)
    by_twin = rejected.select("twin").drop_nulls().group_by("twin").agg(copies=pl.len())
    copies = by_twin.sort(["copies", "twin"], descending=[True, False]).collect(engine="streaming")
    most = copies.row(0) if copies.height else (None, 0)
    return Duplicates(*clusters, int(copies["copies"].sum()), *most)


def summarize_clusters(by_cluster: pl.LazyFrame) -> tuple[int, int, int, int, str | None]:
    """Return the numbers of clusters, shared clusters and their members, and the largest one's size and example."""
    shared = pl.col("size") > 1
    numbers = by_cluster.select(
        clusters=pl.len(),
        shared=shared.sum(),
        members=pl.col("size").filter(shared).sum(),
        largest=pl.col("size").max(),
        example=pl.col("example").filter(pl.col("size") == pl.col("size").max()).min(),
    )
    clusters, shared_, members, largest, example = numbers.collect(engine="streaming").row(0)
    return clusters, shared_, members, largest or 0, example if (largest or 0) > 1 else None


def windows(pieces: pl.Series, conversations: pl.Series, sizes: Iterable[int] = WINDOWS) -> tuple[WindowFit, ...]:
    """Return how many pieces, and how many conversations before splitting, fit each window."""
    return tuple(WindowFit(size, int((pieces <= size).sum()), int((conversations <= size).sum())) for size in sizes)


def training(sizes: pl.DataFrame) -> Training:
    """Return the size of an epoch over these pieces, and the steps of the default fine-tune."""
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
