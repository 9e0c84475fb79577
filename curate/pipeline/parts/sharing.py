"""Clean shares of a plan, by any scheduler, and name what is missing when the parts are gathered."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curate import files
from curate.display.figures import plural
from curate.engine import base
from curate.engine.pool import open_pool, open_ray
from curate.errors import InputError, SetError, UnsafePathError
from curate.ingest.ratings import read_ratings
from curate.ingest.unread import PART_OF_EXPORT
from curate.pipeline.parts import plan as plans
from curate.pipeline.parts import record as records
from curate.pipeline.parts.execution import Execution, Progress
from curate.pipeline.parts.making import Making
from curate.pipeline.parts.plan import Plan
from curate.pipeline.parts.record import PartRecord
from curate.pipeline.parts.step import PartFactory
from curate.pipeline.recipe import Recipe

SHARES = "shares"  # a file in the folder of parts: how many shares there are
MAX_COMMANDS = 5
MAX_DIGITS = 20  # of the number of shares


@dataclass(frozen=True)
class ShareResult:
    """What became of a share: its units, its parts, how many of these were there already, and records."""

    units: int
    parts: int
    reused: int
    records: int
    seconds: float


def make_share(plan: Plan, folder: Path, recipe: Recipe, share: int, count: int, execution: Execution) -> ShareResult:
    """Make the parts of a share; those that are there and verify are kept.

    Raises InputError if the inputs have changed, or the share is none of the plan.
    """
    if not 1 <= share <= count:
        raise InputError(f"there is no part {share} of {count}; give --part K/N with K from 1 to N")
    started = time.perf_counter()
    opened = plans.open_sources(plan)
    sources = [source for source in opened if not source.problem]
    store = records.folder_of(folder)
    records.open_folder(store)
    files.write_text(store / SHARES, f"{count}\n")
    done: list[PartRecord] = []
    size = sum(_bytes(plan, unit) for unit in plans.share_units(plan, share, count))

    def update(record: PartRecord) -> None:
        done.append(record)
        if execution.progress is not None:
            read, rejected = sum(each.read for each in done), sum(sum(each.rejected.values()) for each in done)
            sizes = making.bytes_read, size, making.bytes_unpacked
            seconds = time.perf_counter() - started
            execution.progress(Progress(*sizes, read, read - rejected, rejected, f"part {share}/{count}", seconds))

    chosen = plans.share_units(plan, share, count)
    making = Making(sources, plan.units, store, recipe, update, remote=execution.engine == "ray", chosen=chosen)
    tasks, several = making.tasks()
    workers = (execution.workers or base.default_workers()) if several else 1
    ratings = read_ratings([source for source in opened if source.problem == PART_OF_EXPORT])
    factory = PartFactory(recipe, store, ratings, reuse=not execution.fresh, durable=True)
    is_remote = execution.engine == "ray"
    opened_pool = open_ray(factory, execution.workers, execution.address) if is_remote else open_pool(factory, workers)
    try:
        with opened_pool as pool:
            making.run(pool, tasks)
    except (OSError, pl.exceptions.ComputeError) as error:
        why = f"part {share}/{count} cannot be cleaned into {str(store)!r}: {' '.join(str(error).split())}"
        raise SetError(f"{why}; the same command goes on from what is there") from error
    reused = sum(record.reused for record in done)
    read = sum(record.read for record in done)
    return ShareResult(len(chosen), len(done), reused, read, time.perf_counter() - started)


def _bytes(plan: Plan, unit: int) -> int:
    own = plan.units[unit]
    if own.stop is not None:
        return own.stop - own.start
    return sum(plan.sources[place].bytes or 0 for place in own.sources)


def name_missing(plan: Plan, path: Path, folder: Path, units: Sequence[int]) -> None:
    """Raise InputError, with the commands that make them, if parts of some units are missing."""
    if not units:
        return
    try:
        with files.open_own(records.folder_of(folder) / SHARES) as file:
            count = max(1, int(file.read(MAX_DIGITS)))
    except (OSError, ValueError, UnsafePathError):
        count = 1
    shares = sorted({unit % count + 1 for unit in units})
    commands = [f"curate clean --plan {shlex.quote(str(path))} --part {share}/{count}" for share in shares]
    more = f"; and {len(shares) - MAX_COMMANDS:,} more shares" if len(shares) > MAX_COMMANDS else ""
    have = plural(len(units), "has", "have")
    what = f"{len(units):,} of {len(plan.units):,} units {have} parts that are missing or damaged"
    raise InputError(f"{what}; make them: {'; '.join(commands[:MAX_COMMANDS])}{more}")
