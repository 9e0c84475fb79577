"""Write the set's tables from the parts, in record order, after the decisions over the whole corpus.

The workers write sections of whole row groups, whose borders depend on the rows alone, and join them: the bytes are the
same for any number of workers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from curate.dataset import columns, curated_set, transaction
from curate.engine import base
from curate.errors import BalanceError
from curate.pipeline.corpus import Decisions
from curate.pipeline.steps import MaskTask
from curate.pipeline.tables import row_groups
from curate.pipeline.tables.rows import TABLES, Counts
from curate.pipeline.whole import rest
from curate.pipeline.whole.rest import Rest

DECISIONS = "decisions.arrow"  # ends the names of files in the folder of parts
T = TypeVar("T")
SECTION_ROWS = 20_000  # a multiple of the rows of a row group, in every table
COUNTED_PARTS = 64  # by one job


@dataclass(frozen=True)
class SetTables:
    """What to write: the folder of the unfinished set, a user's signals, originals or not.

    `parts`: the number of each part in order, and what is added to the index of its records. They are in `source`.
    """

    folder: Path
    source: Path
    parts: Mapping[int, int]
    signals: columns.Schema
    originals: bool
    decisions: tuple[tuple[int, str], ...] = ()  # files in `source`, by the first part that they have decisions on
    firsts: Mapping[int, int] | None = None  # the place of each part's first conversation in `rest.STATES`


def write_tables(pool: base.Pool, target: SetTables, meanwhile: Callable[[], object]) -> Counts:
    """Write the set's tables, from decisions that are in files, and return their counts.

    Each worker writes sections of `SECTION_ROWS` rows, with the row groups that the table would have as a whole; then
    the sections of each table are joined. `meanwhile` runs in this process once all sections are being written. Raises
    OSError with a one-line message if a file cannot be written, and BalanceError if rows are missing.
    """
    schemas = {curated_set.CONVERSATIONS: columns.conversations_schema(target.signals)}
    schemas[curated_set.REJECTED] = columns.rejected_schema(target.signals)
    if target.originals:
        schemas[curated_set.ORIGINALS] = columns.ORIGINAL
    numbers = list(target.parts)
    runs = [numbers[start : start + COUNTED_PARTS] for start in range(0, len(numbers), COUNTED_PARTS)]
    counted = pool.map(base.Call(_count_rows, (target, tuple(schemas), run)) for run in runs)
    heights = np.concatenate([np.zeros((0, len(schemas)), np.int64), *counted])  # [parts, tables]
    sections = {name: list(cut(name, numbers, heights[:, place])) for place, name in enumerate(schemas)}
    jobs = [
        base.Call(_write_section, (target, name, dict(schemas[name]), section))
        for name, each in sections.items()
        for section in each
    ]
    load = MaskTask(())  # a worker loads the tokenizer for the page, if none of its tasks has needed one
    results = list(pool.map(_call_after([load, *jobs], meanwhile)))
    files = {name: tuple(target.source / section.file for section in each) for name, each in sections.items()}
    list(pool.map(base.Call(row_groups.join, (paths, target.folder / name)) for name, paths in files.items()))
    return sum((each for each in results if isinstance(each, Counts)), Counts())


def _call_after(jobs: Iterable[T], callback: Callable[[], object]) -> Iterator[T]:
    yield from jobs
    callback()


def _count_rows(target: SetTables, names: Sequence[str], numbers: Sequence[int]) -> NDArray[np.int64]:
    """Return the rows of parts in each of these tables, [parts, tables]."""
    read_decisions = decisions_reader(target)
    counts = []
    for number in numbers:
        decided = read_decisions(number)
        counts.append([TABLES[name].count_rows(target.source, number, decided) for name in names])
    return np.array(counts, np.int64).reshape(len(numbers), len(names))


@dataclass(frozen=True)
class Section:
    """Consecutive rows of a table, in a file of the folder of parts: `rows` of them after the first `skip`.

    `parts` are those that have them: number and rows in the table.
    """

    file: str
    parts: tuple[tuple[int, int], ...]
    skip: int
    rows: int


def cut(name: str, numbers: Sequence[int], heights: NDArray[np.int64]) -> Iterator[Section]:
    """Yield the sections of a table with `heights` rows of each part; one without rows if it has none."""
    ends = np.cumsum(heights)
    total = int(heights.sum())
    parts = list(zip(numbers, heights.tolist(), strict=True))
    for start in range(0, max(total, 1), SECTION_ROWS):
        stop = min(start + SECTION_ROWS, total)
        first, last = np.searchsorted(ends, [start, stop], side="right")
        own = parts[first : last + 1] if total else []
        yield Section(f"{start:012d}.{name}", tuple(own), start - int(ends[first - 1] if first else 0), stop - start)


def _write_section(target: SetTables, name: str, schema: columns.Schema, section: Section) -> Counts:
    """Write a section with one part in memory at a time."""
    counts = Counts()
    read_decisions = decisions_reader(target)
    table = TABLES[name]
    wrong: list[str] = []

    def batches(*_: object) -> Iterator[pl.DataFrame]:
        skip, left = section.skip, section.rows
        for number, height in section.parts:
            rows = table.read(target.source, number, read_decisions(number))
            if rows.height != height:
                wrong.append(f"part {number} has {rows.height} rows of {name}, but {height} were counted")
            rows = rows.slice(skip, left).with_columns(pl.col("source_index") + target.parts[number])
            skip, left = 0, left - rows.height
            table.tally(counts, rows)
            yield rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items())

    frame = register_io_source(batches, schema=dict(schema))
    transaction.sink(target.source / section.file, frame, transaction.row_group_size(name))
    if wrong:
        raise BalanceError(f"{wrong[0]}; this is a bug in curate, please report it; nothing was written")
    return counts


def write_decisions(target: SetTables, decisions: Decisions) -> SetTables:
    """Write the decisions to files; return what to write, with where these are."""
    files: list[tuple[int, str]] = []
    for rows in decisions.blocks:
        for part, own in _blocks(rows):
            files.append((part, f"{len(files):06d}.{DECISIONS}"))
            own.cast(pl.Schema(columns.DECISION)).write_ipc(target.source / files[-1][1], compression="uncompressed")
    target = replace(target, decisions=tuple(files))
    if decisions.rest is None:
        return target
    np.save(target.source / rest.STATES, decisions.rest.states)
    return replace(target, firsts=decisions.rest.firsts)


def _blocks(rows: pl.DataFrame | pl.LazyFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield about `SECTION_ROWS` rows at a time, those of one part together, with the number of the first part."""
    rows = rows.lazy().collect()
    rows = rows[np.argsort(rows["part"].to_numpy(), kind="stable")]
    parts = rows["part"].to_numpy()
    starts = np.unique(np.searchsorted(parts, parts[::SECTION_ROWS])).tolist()
    for start, stop in itertools.pairwise([*starts, len(parts)]):
        yield int(parts[start]), rows[start:stop]


def decisions_reader(target: SetTables) -> Callable[[int], pl.DataFrame]:
    """Return a function that reads the decisions on a part's conversations, which are in files."""
    firsts = np.array([part for part, _ in target.decisions], np.int64)
    others = None
    if target.firsts is not None:
        others = Rest(np.load(target.source / rest.STATES, mmap_mode="r"), target.firsts)

    @functools.lru_cache(maxsize=1)
    def load(place: int) -> pl.DataFrame:
        return pl.read_ipc(target.source / target.decisions[place][1])

    def read(number: int) -> pl.DataFrame:
        place = int(np.searchsorted(firsts, number, side="right")) - 1
        own = pl.DataFrame(schema=columns.DECISION)
        if place >= 0:
            rows = load(place)
            first, stop = np.searchsorted(rows["part"].to_numpy(), [number, number + 1]).tolist()
            own = rows[first:stop]
        return own if others is None else pl.concat([own, others.read(target.source, number)], how="diagonal")

    return read
