"""`curate clean --plan`: write the plan of a run, clean shares of it anywhere, and gather their parts into the set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from curate.api.clean import DEFAULT_RECIPE, Page, convert_set, find_target, refuse_sets
from curate.dataset import curated_set
from curate.errors import InputError
from curate.ingest.ranges.text_range import RANGE_BYTES
from curate.ingest.remote.address import is_remote, show
from curate.pipeline import recipe as recipes
from curate.pipeline import run
from curate.pipeline.overrides import Overrides
from curate.pipeline.parts import plan as plans
from curate.pipeline.parts import sharing
from curate.pipeline.parts.execution import Execution, Progress
from curate.pipeline.parts.plan import Plan
from curate.pipeline.parts.sharing import ShareResult
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import CleanResult
from curate.remote.sets import fetch_set

Report = Callable[[Progress], None] | None
Note = Callable[[str], None] | None


def write_plan(
    inputs: Sequence[str | Path],
    output: str | Path,
    path: str | Path,
    *,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    force: bool = False,
    strict: bool = False,
    against: str | Path | None = None,
    range_bytes: int = RANGE_BYTES,
    **overrides: Unpack[Overrides],
) -> Plan:
    """Write a plan of `clean` with these arguments; raises as that does, if it cannot begin."""
    resolved = recipes.override(recipes.load(recipe), **overrides)
    if is_remote(output):
        raise InputError(
            f"cannot plan {show(str(output))!r}: the parts of a plan are in a folder that all machines see; give one, "
            "and copy the set afterwards"
        )
    refuse_sets(inputs, Path(output), recipe, overrides)
    known = None if against is None else str(Path(fetch_set(against)).absolute())
    plan = plans.make_plan(inputs, Path(output), resolved, range_bytes)
    plan = dataclasses.replace(plan, against=known, force=force, strict=strict)
    plans.write_plan(Path(path), plan)
    return plan


def clean_share(
    path: str | Path,
    share: int,
    count: int,
    *,
    workers: int | None = None,
    fresh: bool = False,
    progress: Report = None,
) -> ShareResult:
    """Make the parts of one share of a plan; those that are there and verify are kept, unless `fresh`."""
    plan = plans.read_plan(Path(path))
    folder, _ = find_target(Path(plan.output))
    execution = Execution(workers, progress, fresh=fresh)
    return sharing.make_share(plan, folder, _recipe(plan), share, count, execution)


def gather(path: str | Path, *, workers: int | None = None, progress: Report = None, note: Note = None) -> CleanResult:
    """Make the set from the parts of a plan; raises InputError that names the shares of which parts are missing."""
    plan = plans.read_plan(Path(path))
    folder, file = find_target(Path(plan.output))
    plans.open_sources(plan)

    def check_missing(units: Sequence[int]) -> None:
        sharing.name_missing(plan, Path(path), folder, units)

    result = run.clean(
        plan.inputs,
        folder,
        _recipe(plan),
        page=Page(),
        file=file,
        force=plan.force,
        strict=plan.strict,
        against=None if plan.against is None else curated_set.open_set(plan.against),
        execution=Execution(workers, progress, note or (lambda text: None), check_missing=check_missing),
        plan=plan,
    )
    if file is not None:
        convert_set(folder, file)
    return dataclasses.replace(result)


def _recipe(plan: Plan) -> Recipe:
    return recipes.from_dict(plan.recipe, "the plan's recipe")
