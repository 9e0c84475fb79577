"""Write a signal's columns into a set: its own folder, or a new one. The set is written whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from curate._version import __version__
from curate.analysis.recorded import record
from curate.analysis.set_stats import measure_tables
from curate.dataset import columns as dataset_columns
from curate.dataset import manifest as manifests
from curate.dataset import transaction
from curate.dataset.curated_set import CONVERSATIONS, ORIGINALS, REJECTED, REPORT, CuratedSet, translate_errors
from curate.dataset.manifest import Manifest, ModelFacts
from curate.errors import SetError
from curate.filters import registry
from curate.pipeline.run import further_signals
from curate.pipeline.sets.changes import describe_use, recorded

USE = "score"


@dataclass(frozen=True)
class Measured:
    """A signal of a set: its columns, one row for each row of the set's conversations, and the model."""

    columns: pl.DataFrame
    model: ModelFacts


def check_target(curated: CuratedSet, folder: Path, force: bool) -> None:
    """Raise SetError if the target holds another set, unless `force` is set."""
    if force or folder.resolve() == curated.path.resolve() or not manifests.is_set(folder):
        return
    earlier = manifests.read(folder)[1]
    if not (earlier.sets and earlier.sets[0].use == USE and earlier.sets[0].path == str(curated.path)):
        raise SetError(
            f"{str(folder)!r} is a set that was not made from {str(curated.path)!r}; nothing was written; "
            "give another -o, or --force to replace it"
        )


def write(curated: CuratedSet, folder: Path, measured: Measured, asked: Mapping[str, Any]) -> Manifest:
    """Write the set with a signal's columns to `folder`, which may be its own, and return its manifest."""
    facts = _describe(curated, folder, measured.model, asked)
    schemas = _schemas(facts)
    known = any(map(measured.model.is_alike, curated.manifest.models))
    with translate_errors(curated), transaction.writing(folder) as partial:
        for name, schema in schemas.items():
            rows = pl.scan_parquet(curated.path / name)
            own = measured.columns if name == CONVERSATIONS else _nulls(measured.columns, rows, keep=known)
            transaction.sink(partial / name, _with_columns(rows, own, schema), transaction.row_group_size(name))
        for name in (ORIGINALS, REPORT):
            if (curated.path / name).exists():
                _link(curated.path / name, partial / name)
        measured_facts = record(partial, facts, lambda: measure_tables(CuratedSet(partial, facts)))
        # Without times, so that a resumed run writes the same bytes.
        facts = replace(measured_facts, run=facts.run and replace(facts.run, tables={}))
        manifests.write(partial, facts)
    return facts


def _describe(curated: CuratedSet, folder: Path, model: ModelFacts, asked: Mapping[str, Any]) -> Manifest:
    """Return the manifest of the new set: the signal is named in its recipe, so that `refilter` keeps it."""
    facts, recipe = curated.manifest, recorded(curated)
    recipe = replace(recipe, signals=dict(sorted({**recipe.signals, model.signal: {}}.items())))
    others = [each for each in facts.models if each.signal != model.signal]
    models = sorted([*others, model], key=lambda each: each.signal)
    facts = replace(facts, recipe={**recipe.to_dict()}, models=models, version=__version__)
    if folder.resolve() == curated.path.resolve():
        return facts
    return replace(facts, sets=[describe_use(curated, USE, asked), *facts.sets])


def _schemas(facts: Manifest) -> dict[str, dataset_columns.Types]:
    from curate.pipeline.recipe import from_dict

    signals = further_signals(from_dict(facts.recipe))
    return {
        CONVERSATIONS: dataset_columns.conversations_schema(signals),
        REJECTED: dataset_columns.rejected_schema(signals),
    }


def _nulls(columns: pl.DataFrame, rows: pl.LazyFrame, *, keep: bool) -> pl.DataFrame | None:
    """Return null columns for rejected rows; None if they have those of the same model, which are kept."""
    if keep and columns.columns[0] in rows.collect_schema():
        return None
    count = rows.select(pl.len()).collect().item()
    return columns.clear(count)


def _with_columns(rows: pl.LazyFrame, own: pl.DataFrame | None, schema: Mapping[str, Any]) -> pl.LazyFrame:
    present = rows.collect_schema()
    if own is not None:
        rows = pl.concat([rows.drop(own.columns, strict=False), own.lazy()], how="horizontal")
    missing = [
        pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in (*present, *_names(own))
    ]
    return rows.with_columns(missing).select(list(schema))


def _names(frame: pl.DataFrame | None) -> Sequence[str]:
    return () if frame is None else frame.columns


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system cannot, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def signal_columns(signal: str) -> list[str]:
    """Return the columns of a signal."""
    return list(registry.get(signal, "signal").columns)
