"""Put two sets together: duplicates are decided again across both, and the split of the first one holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from curate.dataset.curated_set import CuratedSet
from curate.errors import SetError
from curate.filters import registry, verdicts
from curate.pipeline.corpus import DUPLICATES
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import CleanResult
from curate.pipeline.sets.changes import (
    MIXED,
    check_current,
    describe_use,
    differing_settings,
    recorded,
    source_files,
    with_corpus_rules,
)
from curate.pipeline.sets.make import Making, Output, ProgressCallback, make
from curate.pipeline.sets.sources import check_same
from curate.pipeline.sets.step import Source
from curate.pipeline.sets.stored import StoredSet

BEFORE_FILTERS = ("input", "repair")
OPTIONS = {"max_tokens": "--max-tokens", "template": "--template", "tokenizer": "--tokenizer"}


def combine(
    first: CuratedSet,
    second: CuratedSet,
    output: Output,
    workers: int | None = None,
    progress: ProgressCallback = None,
) -> CleanResult:
    """Write a set of the rows of two; raises SetError, with what to type, where they count tokens differently."""
    for curated in (first, second):
        check_current(curated)
    ours, theirs = recorded(first), recorded(second)
    check_alike(first, second)
    check_same(first.manifest.sources, second.manifest.sources, second.path)
    recipe = _common_recipe(ours, theirs)
    models = [facts for facts in first.manifest.models if any(map(facts.is_alike, second.manifest.models))]
    incomparable = {facts.signal for facts in (*first.manifest.models, *second.manifest.models)}
    incomparable -= {facts.signal for facts in models}
    recipe = _without_signals(recipe, incomparable)
    corpus_rules = {name: value for name, value in recipe.filters.items() if name in registry.rules("corpus")}
    names = [source_files(first), source_files(second)]
    taken, renamed = {*names[0], *names[1]}, {}
    for name in names[0] & names[1]:
        renamed[name] = _free_name(f"{second.path.resolve().name}/{name}", taken)
        taken.add(renamed[name])
    sources = [
        Source(stored, own, with_corpus_rules(own, corpus_rules), exact=False, keeps_split=True)
        for stored, own in ((StoredSet(first.path), ours), (StoredSet(second.path, renamed), theirs))
    ]
    differs = list(differing_settings(ours, theirs, BEFORE_FILTERS))
    asked = {MIXED: differs} if differs else {}
    sets = [describe_use(first, "combine", asked), describe_use(second, "combine", asked)]
    facts, more = first.manifest, second.manifest
    counts = replace(
        facts.counts,
        read=facts.counts.read + more.counts.read,
        branches=facts.counts.branches + more.counts.branches,
    )
    facts = replace(
        facts,
        inputs=[*facts.inputs, *more.inputs],
        unread=[*facts.unread, *more.unread],
        warnings=list(dict.fromkeys([*facts.warnings, *more.warnings, *map(_left_out, sorted(incomparable))])),
        models=models,
        sets=[*sets, *facts.sets, *more.sets],
        sources={**more.sources, **facts.sources},
        counts=counts,
        run=None,
    )
    return make(Making(sources, recipe, facts, {}), output, workers, progress)


def check_alike(first: CuratedSet, second: CuratedSet, command: str = "combine") -> None:
    """Raise SetError if two sets have another window, template or tokenizer."""
    ours, theirs = first.manifest, second.manifest
    facts: Mapping[str, tuple[Any, Any, Any]] = {
        "max_tokens": (ours.window, theirs.window, ours.window),
        "template": (ours.template, theirs.template, ours.template),
        "tokenizer": (ours.tokenizer.hash, theirs.tokenizer.hash, ours.own_tokenizer()),
    }
    for name, (left, right, value) in facts.items():
        if left != right:
            shown = (ours.tokenizer.name, theirs.tokenizer.name) if name == "tokenizer" else (left, right)
            dump = " ".join(theirs.run.paths) if theirs.run and theirs.run.paths else "DUMP"
            raise SetError(
                f"cannot {command} {str(first.path)!r} and {str(second.path)!r}: {name} is {shown[0]} and {shown[1]}; "
                f"clean the second one's dump again: curate clean {dump} {OPTIONS[name]} {value} -o OTHER"
            )


def _common_recipe(first: Recipe, second: Recipe) -> Recipe:
    """Return the first recipe with the filters and signals that both have, and the rules on duplicates of either."""
    corpus_rules = registry.rules("corpus")
    either = {**second.filters, **first.filters}
    filters = {
        name: value
        for name, value in either.items()
        if name in corpus_rules or (first.filters.get(name) == second.filters.get(name))
    }
    filters.setdefault(DUPLICATES, registry.check(DUPLICATES))
    ours, theirs = (verdicts.needed_signals(recipe.filters, recipe.signals) for recipe in (first, second))
    needed = verdicts.needed_signals(filters, {})
    signals = {name: value for name, value in ours.items() if theirs.get(name) == value and name not in needed}
    return replace(first, filters=filters, signals=signals)


def _without_signals(recipe: Recipe, names: Collection[str]) -> Recipe:
    """Return the recipe without these signals, and the filters that read them."""
    columns = {column for name in names for column in registry.get(name, "signal").columns}
    filters = {
        name: value
        for name, value in recipe.filters.items()
        if not columns & {*verdicts.columns_read(registry.get(name), value)}
    }
    signals = {name: value for name, value in recipe.signals.items() if name not in names}
    return replace(recipe, filters=filters, signals=signals)


def _left_out(signal: str) -> str:
    command = registry.get(signal, "signal").measured_by
    return f"the signal {signal!r} is left out, since no single model has measured it on both sets; {command}"


def _free_name(name: str, taken: Iterable[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}~{number}", number + 1
    return free
