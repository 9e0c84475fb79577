"""The error of a run that keeps no record: why, with examples, and what the records lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from curate.display.figures import plural
from curate.errors import NothingKept
from curate.ingest.damage import Damage
from curate.pipeline.corpus import Decisions
from curate.pipeline.frames import part_file
from curate.pipeline.steps import Part

MAX_RULES = 3
MAX_WARNINGS = 3
MAX_EVIDENCE = 100  # characters
Row = dict[str, Any]


def check_kept(parts: Sequence[Part], decisions: Decisions, folder: Path, warnings: Sequence[Damage]) -> None:
    """Raise NothingKept if no record is kept; `folder` has the parts' rows."""
    if decisions.rest is not None and decisions.rest.states.any():
        return
    decided: Counter[str] = Counter()
    for rows in decisions.select(pl.col("rule").cast(pl.String)):
        if rows["rule"].has_nulls():
            return
        decided.update(rows["rule"].to_list())
    rules = sum((part.rejected for part in parts), decided)
    reasons = [
        f"{rule} {count:,} ({_describe(row)})" if (row := _first(parts, folder, rule)) else f"{rule} {count:,}"
        for rule, count in rules.most_common(MAX_RULES)
    ]
    more = f" and {len(rules) - MAX_RULES} more" if len(rules) > MAX_RULES else ""
    notes = [damage.text for damage in warnings[:MAX_WARNINGS]]
    total = f"none of {rules.total():,} {plural(rules.total(), 'record')} was kept; nothing was written or replaced"
    raise NothingKept("; ".join([f"{total}: {', '.join(reasons)}{more}", *notes]))


def _first(parts: Sequence[Part], folder: Path, rule: str) -> Row | None:
    """Return the first record that a rule rejected in a part, as a row of rejected.parquet."""
    for part in parts:
        if part.rejected[rule]:
            rejects = pl.read_ipc(part_file(folder, part.number, "rejected"))
            rejects = rejects.with_columns(pl.col("source_index") + part.first)
            return rejects.filter((pl.col("rule") == rule) & (pl.col("scope") == "record")).row(0, named=True)
    return None


def _describe(row: Row) -> str:
    evidence = f": {row['evidence'][:MAX_EVIDENCE]}" if row["evidence"] else ""
    return f"{row['source_file']}:{row['source_index']}: {row['reason']}{evidence}"
