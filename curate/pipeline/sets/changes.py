"""What a new recipe changes for the records of a set: which filters, and whether the set holds what they read."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from curate.dataset import columns
from curate.dataset.curated_set import CONVERSATIONS, MANIFEST, REJECTED, CuratedSet
from curate.dataset.manifest import SetUse
from curate.errors import RecipeError, SetError
from curate.filters import registry, repairs, verdicts
from curate.ingest.damaged_records import DAMAGED_STREAM
from curate.ingest.unread import PART_OF_EXPORT
from curate.pipeline.recipe import Recipe, from_dict
from curate.pipeline.sets.sources import find_changed, find_digests
from curate.settings import flatten

FIXED = ("input", "repair", "tokens")  # sections whose settings act on the record before a filter does
HTML = "html_answers"  # the one column that filters read and no set has
KEPT_BY_USER = "kept_by_user"
DROPPED_BY_USER = "dropped_by_user"
WHERE = "where"
MIXED = "differs"  # in the manifest of a combined set: settings before the filters that its sets do not share
NO_REPAIR = ("flag", "drop")  # actions of a filter that change no message
Rules = Mapping[str, Mapping[str, Any]]


def unchanged_filters(old: Recipe, new: Recipe) -> frozenset[str]:
    """Return the filters whose verdict on each record is that of the set; a user's own may have other code."""
    return frozenset(
        name
        for name, settings in new.filters.items()
        if old.filters.get(name) == settings and registry.get(name).kind == "filter" and not registry.get(name).is_users
    )


def with_signals(recipe: Recipe, curated: CuratedSet) -> Recipe:
    """Return the recipe with the signals of a set, which are kept: they cost nothing, and a later set may need them."""
    old = recorded(curated)
    present = set(curated.conversations().collect_schema())
    needed = verdicts.needed_signals(recipe.filters, recipe.signals)
    held = {
        name: settings
        for name, settings in verdicts.needed_signals(old.filters, old.signals).items()
        if name not in needed and registry.get(name).columns.keys() <= present
    }
    return replace(recipe, signals={**held, **recipe.signals})


def recorded(curated: CuratedSet) -> Recipe:
    """Return the recipe that a set was made with; raises RecipeError if this version does not know one of its rules."""
    return from_dict(curated.manifest.recipe, where=f"the recipe of {str(curated.path)!r}")


def check_changes(curated: CuratedSet, new: Recipe) -> None:
    """Raise RecipeError, with the setting or signal, if the recipe needs what only the dump has."""
    old = recorded(curated)
    for name, (before, after) in differing_settings(old, new, FIXED).items():
        raise _needs_dump(curated, f"{name} is {after!r}, and the set has {before!r}")
    if new.output.originals and not old.output.originals:
        raise _needs_dump(curated, "output.originals is true, and the set was written without originals")
    _check_repairs(curated, old, new)
    _check_signals(curated, old, new)
    changed = find_changed(curated.manifest.sources, find_digests(new))
    if changed:
        raise _needs_dump(curated, f"{changed} has changed: its code, or a file that its settings name")


def differing_settings(first: Recipe, second: Recipe, sections: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of some sections in which two recipes differ, in order of their names, with both values.

    How many records are read does not count.
    """
    left, right = (dict(flatten({name: recipe.to_dict()[name] for name in sections})) for recipe in (first, second))
    values = {name: (left.get(name), right.get(name)) for name in sorted({*left, *right}) if name != "input.limit"}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def with_corpus_rules(recipe: Recipe, rules: Rules) -> Recipe:
    """Return a recipe with other rules on the whole corpus."""
    own = {name: value for name, value in recipe.filters.items() if name not in registry.rules("corpus")}
    return replace(recipe, filters={**own, **rules})


def _check_repairs(curated: CuratedSet, old: Recipe, new: Recipe) -> None:
    before, after = _active_repairs(old.filters), _active_repairs(new.filters)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            raise _needs_dump(curated, f"the repair {name!r} changes messages, and its settings differ")


def _active_repairs(filters: Rules) -> dict[str, dict[str, object]]:
    """Return the settings of each repair that changes messages, by the name in the recipe."""
    return {
        rule.of or rule.name: {name: {**rule.settings, **settings}[name] for name in rule.settings}
        for rule, settings in repairs.find_repairs(filters)
        if settings.get("action") not in NO_REPAIR
    }


def _check_signals(curated: CuratedSet, old: Recipe, new: Recipe) -> None:
    present = set(curated.conversations().collect_schema())
    same = unchanged_filters(old, new)
    measured = verdicts.needed_signals(old.filters, old.signals)
    for name, settings in verdicts.needed_signals(new.filters, new.signals).items():
        missing = sorted(registry.get(name).columns.keys() - present)
        if missing and (command := registry.get(name).measured_by):
            measure = command.replace("SET", shlex.quote(str(curated.path)))
            raise RecipeError(
                f"cannot refilter {str(curated.path)!r}: the signal {name!r} is not in the set; measure it: {measure}"
            )
        if missing:
            raise _needs_dump(curated, f"the signal {name!r} (column {missing[0]!r}) is not in the set")
        if measured.get(name) != settings:
            raise _needs_dump(curated, f"the signal {name!r} was measured with other settings")
    for name, settings in new.filters.items():
        if name not in same and HTML in verdicts.columns_read(registry.get(name), settings):
            raise _needs_dump(curated, f"the filter {name!r} reads {HTML!r}, which no set holds")


def _needs_dump(curated: CuratedSet, why: str) -> RecipeError:
    return RecipeError(f"cannot refilter {str(curated.path)!r}: {why}; clean the dump again with this recipe")


def check_sound(curated: CuratedSet) -> None:
    """Raise RecipeError for a set whose rejected records cannot be read again as `clean` read them."""
    counts, facts = curated.manifest.counts, curated.manifest
    for use in facts.sets:
        if use.asked.get(MIXED):
            raise _needs_dump(curated, f"it combines sets that differ in {', '.join(use.asked[MIXED])}")
    doubtful = any("may be altered" in text for text in facts.warnings)
    if doubtful or DAMAGED_STREAM in counts.rules or DAMAGED_STREAM in counts.edits:
        raise _needs_dump(curated, "a part of the input was damaged, and the set does not say which records it holds")
    if any(file.reason == PART_OF_EXPORT and "feedback" in file.name for file in facts.unread):
        raise _needs_dump(curated, "the ratings of its answers are in a file beside the chats")


def measured_columns(recipe: Recipe) -> list[str]:
    """Return the columns that a rejected row has of its conversation."""
    names = verdicts.needed_signals(recipe.filters, recipe.signals)
    own = [column for name in names for column in registry.get(name).columns]
    return [*columns.MEASURES, *own]


def score_columns(recipe: Recipe) -> list[str]:
    """Return the columns of those of a recipe's signals that a model has measured on a set."""
    rules = verdicts.scores(verdicts.needed_signals(recipe.filters, recipe.signals))
    return [column for rule in rules.values() for column in rule.columns]


def check_current(curated: CuratedSet) -> None:
    """Raise SetError for a set of an earlier version, whose messages lack fields."""
    schema = curated.conversations().collect_schema()
    if schema.get("messages") != columns.CONVERSATION["messages"] or "tools" not in schema:
        raise SetError(f"{str(curated.path)!r} was written by an earlier version; run curate clean again")


def describe_use(curated: CuratedSet, use: str, asked: Mapping[str, Any]) -> SetUse:
    """Return how a set is used, for the manifest of the new one."""
    digest = hashlib.sha256((curated.path / MANIFEST).read_bytes()).hexdigest()
    facts = curated.manifest
    return SetUse(str(curated.path), digest, use, facts.recipe_name, facts.counts.kept, dict(asked))


def source_files(curated: CuratedSet) -> set[str]:
    """Return the source files of a set's rows."""
    files = [
        pl.scan_parquet(curated.path / name).select(pl.col("source_file").unique())
        for name in (CONVERSATIONS, REJECTED)
    ]
    return {name for frame in pl.collect_all(files) for name in frame.to_series()}
