"""What models have measured of a set, in a line for each signal."""

from __future__ import annotations

import polars as pl

from curate.dataset.curated_set import CuratedSet
from curate.display.figures import number, significant

FIGURES = {  # by signal: texts, and what they show of the conversations
    "likelihood": {
        "median perplexity {}": pl.col("perplexity").median(),
        "median IFD {}": pl.col("ifd").median(),
        "{} above 1": (pl.col("ifd") > 1).sum(),
    },
    "guard": {"{} unsafe (probability above 0.5)": (pl.col("unsafe_probability") > 0.5).sum()},
}


def describe_scores(curated: CuratedSet) -> tuple[str, ...]:
    """Return a line for each signal of a model: its figures, and the model."""
    rows = curated.conversations().filter(pl.col("piece") == 0)
    lines = []
    for model in curated.manifest.models:
        known = FIGURES.get(model.signal, {})
        values = rows.select(value.alias(text) for text, value in known.items()).collect().row(0) if known else ()
        shown = [text.format(_show(value)) for text, value in zip(known, values, strict=True)]
        lines.append("; ".join([model.describe(), *shown]))
    return tuple(lines)


def _show(value: float | None) -> str:
    return "unknown" if value is None else number(value) if isinstance(value, int) else significant(value)
