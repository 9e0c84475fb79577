"""Make a set again with another recipe, without its dump."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from curate.dataset.condition import is_row_by_row, parse_condition
from curate.dataset.curated_set import CuratedSet
from curate.errors import InputError
from curate.filters import registry
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import CleanResult
from curate.pipeline.sets.changes import check_changes, check_current, check_sound, describe_use, recorded, with_signals
from curate.pipeline.sets.make import Alone, Making, Output, ProgressCallback, make
from curate.pipeline.sets.step import Asked, Source
from curate.pipeline.sets.stored import StoredSet


def refilter(
    curated: CuratedSet,
    recipe: Recipe | None,
    asked: Asked,
    options: Mapping[str, Any],
    output: Output,
    workers: int | None = None,
    progress: ProgressCallback = None,
) -> CleanResult:
    """Write a set of a set's kept and rejected rows; `options` is what the manifest says was asked.

    Raises RecipeError, with the setting or signal, where only the dump has what the recipe needs; InputError for a
    condition that cannot be used.
    """
    check_current(curated)
    check_sound(curated)
    old = recorded(curated)
    new = old if recipe is None else recipe
    check_changes(curated, new)
    new = replace(with_signals(new, curated), input=old.input)
    if asked.where is not None:
        _check_condition(curated, asked.where)
    facts = replace(curated.manifest, sets=[describe_use(curated, "refilter", options), *curated.manifest.sets])
    source = Source(StoredSet(curated.path), old, new, asked)
    return make(Making([source], new, facts, _known_alone(curated, old, new)), output, workers, progress)


def _check_condition(curated: CuratedSet, where: str) -> None:
    if not is_row_by_row(parse_condition(where, curated.conversations())):
        raise InputError(
            f"cannot use the condition {where!r}: it compares conversations with each other; give a condition on each"
        )


def _known_alone(curated: CuratedSet, old: Recipe, new: Recipe) -> Alone:
    """Return the counts that hold in the new set too: of rules whose verdict on each record is the same."""
    return {
        name: count.alone
        for name, count in curated.manifest.counts.rules.items()
        if name not in {*old.filters, *new.filters}
        or (old.filters.get(name) == new.filters.get(name) and not registry.get(name).is_users)
    }
