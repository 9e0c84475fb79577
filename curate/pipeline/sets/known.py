"""Read the conversations of an earlier set, so that a run keeps only what is new."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curate import files
from curate.dataset.curated_set import CuratedSet
from curate.engine.pool import open_pool
from curate.pipeline.frames import part_file
from curate.pipeline.sets.changes import check_current, recorded, source_files, with_corpus_rules
from curate.pipeline.sets.step import SetFactory, Source
from curate.pipeline.sets.stored import StoredSet, plan_slices

TABLES = ("kept", "originals", "rejected")  # of a part, which are not needed


def read_known(curated: CuratedSet, scratch: Path, workers: int) -> list[pl.LazyFrame]:
    """Return the summaries of a set's kept conversations, with their id and split, in files in a folder of the run.

    The set's files are renamed: an id that is a number names no conversation of another month's file.
    """
    check_current(curated)
    recipe = recorded(curated)
    renamed = {name: f"{curated.path}/{name}" for name in source_files(curated)}
    stored = StoredSet(curated.path, renamed)
    source = Source(stored, recipe, with_corpus_rules(recipe, {}), exact=False, keeps_split=True)
    folder = scratch / "known"
    folder.mkdir()
    summaries = []
    with open_pool(SetFactory([source], folder), workers) as pool:
        for part in pool.map(plan_slices(stored, 0, 0)):
            summaries.append(part.summary.lazy().filter(pl.col("earlier_id").is_not_null()))
            for name in TABLES:
                files.remove(part_file(folder, part.number, name), folder)
    return summaries
