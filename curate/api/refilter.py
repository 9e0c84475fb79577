"""`curate.refilter` and `curate.combine`: make a set from sets, with its page, and convert it to a file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from curate.api.clean import Page, convert_set, find_target
from curate.dataset.curated_set import open_set
from curate.dataset.query import read_ids
from curate.errors import InputError, SetError
from curate.ingest.remote.address import is_remote
from curate.pipeline import recipe as recipes
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import CleanResult, Progress
from curate.pipeline.sets.combine import combine as run_combine
from curate.pipeline.sets.make import Output
from curate.pipeline.sets.refilter import refilter as run_refilter
from curate.pipeline.sets.step import Asked
from curate.remote.sets import fetch_set
from curate.remote.targets import set_target

Names = str | Path | Iterable[str]


def refilter(
    source: str | Path,
    output: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    where: str | None = None,
    drop: Names | None = None,
    keep: Names | None = None,
    force: bool = False,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> CleanResult:
    """Make a set from the kept and rejected rows of another one, and return its location and counts.

    Without `recipe`, that of the set. `where` is a condition in SQL on a conversation's columns; `drop` and `keep` name
    conversations: ids, or a file with one on each line. Raises SetError, InputError, and RecipeError for a setting or
    signal that only the dump can give.
    """
    started = time.perf_counter()
    resolved = None if recipe is None else recipes.load(recipe)
    options = {"recipe": recipe if isinstance(recipe, str | Path) else getattr(recipe, "name", None), "where": where}
    dropped, kept = (_read_names(names) for names in (drop, keep))
    if both := sorted(dropped & kept):
        raise InputError(f"{both[0]!r} is to be dropped and to be kept; name it in one of the two")
    options |= {"drop": sorted(dropped), "keep": sorted(kept)}
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items() if value}
    opened, asked = open_set(fetch_set(source)), Asked(dropped, kept, where)
    result = _make(
        output, force, lambda target: run_refilter(opened, resolved, asked, given, target, workers, progress)
    )
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


def combine(
    first: str | Path,
    second: str | Path,
    output: str | Path,
    *,
    force: bool = False,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> CleanResult:
    """Put two sets together, with duplicates decided across both, and return the new one's location and counts.

    The split of the first set holds. Raises SetError where the two differ in window, template or tokenizer.
    """
    started = time.perf_counter()
    sets = open_set(fetch_set(first)), open_set(fetch_set(second))
    result = _make(output, force, lambda target: run_combine(*sets, target, workers, progress))
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


def _make(output: str | Path, force: bool, make: Callable[[Output], CleanResult]) -> CleanResult:
    """Make a set at an output, or upload it there; a set that is elsewhere already is replaced with `force` only."""
    if not is_remote(output):
        folder, file = find_target(Path(output))
        result = make(Output(folder, file, Page(), force))
        if file is not None:
            convert_set(folder, file)
        return result
    with set_target(str(output), force=force) as target:
        if target.earlier is not None:
            raise SetError(f"there is a set at {target.address!r}; give another -o, or --force to replace it")
        return dataclasses.replace(make(Output(target.folder, None, Page(), True)), address=target.address)


def _read_names(names: Names | None) -> frozenset[str]:
    """Return ids, from a file or as they are."""
    if names is None:
        return frozenset()
    return read_ids(names) if isinstance(names, str | Path) else frozenset(names)
