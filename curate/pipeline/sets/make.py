"""Make a set from the rows of one or more sets: the run, from their slices to the manifest."""

from __future__ import annotations

import platform
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from curate._version import __version__
from curate.dataset import curated_set, transaction
from curate.dataset import manifest as manifests
from curate.dataset.manifest import Manifest
from curate.display.figures import plural
from curate.engine import base
from curate.engine.pool import open_pool
from curate.errors import SetError
from curate.filters import duplicates, registry, verdicts
from curate.pipeline import corpus, holdout
from curate.pipeline.nothing_kept import check_kept
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import CleanResult, Page, Progress, make_finders, mask_spans, write_decisions, write_tables
from curate.pipeline.sets.step import RecordTask, SetFactory, SetPart, Source
from curate.pipeline.sets.stored import TABLES, Slice, plan_slices
from curate.pipeline.tables.rows import Counts
from curate.tokenization.files import find_tokenizer_files

NOT_FOUND, NOT_KEPT = "not found: ", "cannot be kept, since no filter rejects it: "
NAMED = re.compile(rf"[\d,]+ (?:ids? {NOT_FOUND}|records? {NOT_KEPT})")  # how warnings on what the user named begin
DECIDED_AGAIN = (holdout.NONE_HELD_OUT, duplicates.NEAR)  # what warnings begin with
MAX_NAMES = 5  # in a warning
Alone = Mapping[str, int | None]
ProgressCallback = Callable[[Progress], None] | None


@dataclass(frozen=True)
class Making:
    """What to make: the sets to read, the recipe of the new one, and the facts that its manifest begins with."""

    sources: Sequence[Source]
    recipe: Recipe
    facts: Manifest  # of the new set, except its counts, warnings and run
    alone: Alone  # by rule, where it is known


@dataclass(frozen=True)
class Output:
    """Where a set is written, its page, and whether an earlier set may be replaced."""

    folder: Path
    file: Path | None
    page: Page
    force: bool = False


def make(making: Making, output: Output, workers: int | None, progress: ProgressCallback) -> CleanResult:
    """Write the set.

    Raises SetError if the target must not be overwritten, TokenizerError if there is no tokenizer, NothingKept if no
    record is kept.
    """
    started = time.perf_counter()
    check_output(output, making)
    find_tokenizer_files(making.recipe.tokens.tokenizer)  # workers load it later, or never
    slices = _plan(making.sources)
    size = sum(file.stat().st_size for file in _files(making.sources))
    count = min(workers or base.default_workers(), len(slices)) or 1
    with transaction.writing(output.folder) as partial:
        scratch = (partial / transaction.PARTS).absolute()
        scratch.mkdir()
        with open_pool(SetFactory(making.sources, scratch), count) as pool:
            finders = make_finders(pool, scratch, making.recipe)
            parts: list[SetPart] = []
            for part in pool.map(slices):
                parts.append(part)
                _report(progress, parts, size, len(slices), started)
            decisions = corpus.decide(parts, making.recipe, finders=finders, folder=scratch)
            check_kept(parts, decisions, scratch, ())
            _write_records(pool, decisions)
            target = write_decisions(partial, scratch, parts, decisions, making.recipe)
            decisions = decisions.without_rows()
            counts = write_tables(pool, target, decisions, output.page)
            facts = _finish(making, decisions, counts, parts, count, size, started, output, partial)
            facts = output.page.measure(partial, facts)
            manifests.write(partial, facts)
            output.page.write(partial, output.folder.resolve().name, mask_spans(pool))
    seconds = time.perf_counter() - started
    return CleanResult(output.folder, facts, list(facts.warnings), seconds, size, False, output.file)


def _plan(sources: Sequence[Source]) -> list[Slice]:
    slices: list[Slice] = []
    for number, source in enumerate(sources):
        slices += plan_slices(source.stored, number, len(slices))
    return slices


def _files(sources: Sequence[Source]) -> list[Path]:
    paths = [source.stored.folder / name for source in sources for name in TABLES]
    return [path for path in paths if path.exists()]


def _report(progress: ProgressCallback, parts: Sequence[SetPart], size: int, total: int, started: float) -> None:
    if progress is not None:
        done = size * len(parts) // total
        records = sum(part.read for part in parts)
        rejected = sum(part.rejected.total() for part in parts)
        elapsed = time.perf_counter() - started
        progress(Progress(done, size, done, records, records - rejected, rejected, "reading", elapsed))


def _write_records(pool: base.Pool, decisions: corpus.Decisions) -> None:
    """Put the records of those that are rejected or changed only now into the originals of their parts."""
    rules = list(registry.rules("corpus"))
    rejected = [
        rows.filter(pl.col("rule").is_in(rules)).select(corpus.PART_KEY)
        for rows in decisions.select(*corpus.PART_KEY, pl.col("rule").cast(pl.String))
    ]
    rows = pl.concat([*rejected, decisions.gains.select(corpus.PART_KEY)]).unique()
    tasks = [
        RecordTask(number, tuple(part["row"].sort().to_list()))
        for (number,), part in rows.sort("part").partition_by("part", as_dict=True, maintain_order=True).items()
    ]
    for _ in pool.map(tasks):
        pass


def check_output(output: Output, making: Making) -> None:
    """Raise SetError if the target is one of the sets that are read, or holds a set that would not be made again."""
    folder = output.folder
    if any(source.stored.folder.resolve() == folder.resolve() for source in making.sources):
        raise SetError(f"{str(folder)!r} is read, and would be overwritten; give another -o")
    if output.force or not manifests.is_set(folder):
        return
    earlier = curated_set.open_set(folder).manifest
    if [use.path for use in earlier.sets] != [use.path for use in making.facts.sets]:
        raise SetError(
            f"{str(folder)!r} is a set that was not made from {', '.join(use.path for use in making.facts.sets)}; "
            "nothing was written; give another -o, or --force to replace it"
        )


def _finish(
    making: Making,
    decisions: corpus.Decisions,
    counts: Counts,
    parts: Sequence[SetPart],
    workers: int,
    size: int,
    started: float,
    output: Output,
    partial: Path,
) -> Manifest:
    """Return the manifest; raises BalanceError if a record is neither kept nor rejected."""
    facts = making.facts
    counts.check_balance(facts.counts.read, "records in the sets")
    warnings = [text for text in facts.warnings if not _is_of_one_set(text)]
    warnings += [*decisions.warnings, *_name_warnings(making.sources, parts)]
    warnings += holdout.explain_none(making.recipe.eval, counts.kept) if not counts.eval else []
    warnings += _score_warnings(making, partial, output)
    seconds = time.perf_counter() - started
    names = sorted({*counts.rejected, *making.alone})
    rules = {name: manifests.RuleCount(counts.rejected[name], making.alone.get(name)) for name in names}
    return replace(
        facts,
        version=__version__,
        versions={"polars": pl.__version__, "python": platform.python_version()},
        recipe=making.recipe.to_dict(),
        counts=counts.facts(facts.counts.read, facts.counts.branches, rules),
        warnings=warnings,
        run=manifests.RunFacts(
            seconds=round(seconds, 3),
            mb_per_s=round(size / 1e6 / seconds, 2),
            workers=workers,
            host=platform.node(),
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - seconds)),
            paths=facts.run.paths if facts.run else [],
            file=output.file.name if output.file else None,
        ),
    )


def _score_warnings(making: Making, partial: Path, output: Output) -> list[str]:
    """Return a warning for each signal of a model that conversations lack which no earlier set had kept."""
    warnings = []
    needed = verdicts.needed_signals(making.recipe.filters, making.recipe.signals)
    for name, rule in verdicts.scores(needed).items():
        column = next(iter(rule.columns))
        before = sum(_count_without(source.stored.folder, column) for source in making.sources)
        if (missing := _count_without(partial, column)) > before:
            command = rule.measured_by.replace("SET", shlex.quote(str(output.folder)))
            warnings.append(
                f"{missing:,} {plural(missing, 'conversation')} of {str(output.folder)!r} lack the signal {name!r}; "
                f"measure it: {command}"
            )
    return warnings


def _count_without(folder: Path, column: str) -> int:
    rows = pl.scan_parquet(folder / curated_set.CONVERSATIONS).filter(pl.col("piece") == 0)
    return int(rows.select(pl.col(column).is_null().sum()).collect().item())


def _name_warnings(sources: Sequence[Source], parts: Sequence[SetPart]) -> list[str]:
    """Return warnings about names that were not found, and about records that cannot be kept."""
    named = frozenset[str]().union(*(source.asked.drop | source.asked.keep for source in sources))
    missing = sorted(named.difference(*(part.found for part in parts)))
    refused = {name: rule for part in parts for name, rule in sorted(part.refused.items())}
    warnings = []
    if missing:
        warnings.append(f"{len(missing):,} {plural(len(missing), 'id')} {NOT_FOUND}{_some(missing)}")
    if refused:
        texts = [f"{name} ({rule})" for name, rule in refused.items()]
        count = len(texts)
        warnings.append(f"{count:,} {plural(count, 'record')} {NOT_KEPT}{_some(texts)}")
    return warnings


def _is_of_one_set(warning: str) -> bool:
    """Tell whether a warning is about one set only, and so is not repeated by those made from it."""
    return warning.startswith(DECIDED_AGAIN) or NAMED.match(warning) is not None


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:MAX_NAMES]) + (", …" if len(texts) > MAX_NAMES else "")
