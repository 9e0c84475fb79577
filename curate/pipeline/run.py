"""Clean raw dumps into a curated set; `curate.pipeline.steps` has the steps of one batch."""

from __future__ import annotations

import platform
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import polars as pl

from curate import files
from curate._version import __version__
from curate.dataset import columns as dataset_columns
from curate.dataset import curated_set, transaction
from curate.dataset import manifest as manifests
from curate.dataset.curated_set import CuratedSet
from curate.dataset.manifest import Manifest
from curate.display.displayed import Displayed
from curate.display.figures import plural, size
from curate.engine import base
from curate.engine.pool import open_pool
from curate.errors import InputError, SetError, WorkerError
from curate.filters import registry, verdicts
from curate.ingest.ratings import read_ratings
from curate.ingest.reader import Reader
from curate.ingest.sources import Source, open_inputs
from curate.ingest.unread import PART_OF_EXPORT
from curate.pipeline import corpus, holdout
from curate.pipeline.near.caps import PromptCap
from curate.pipeline.near.decision import Finder, NearDuplicates
from curate.pipeline.nothing_kept import check_kept
from curate.pipeline.parts import record as records
from curate.pipeline.parts.execution import AT_ONCE, Execution
from curate.pipeline.parts.execution import Progress as Progress
from curate.pipeline.parts.making import Making
from curate.pipeline.parts.plan import Plan, make_units
from curate.pipeline.parts.record import PartRecord
from curate.pipeline.parts.step import PartFactory
from curate.pipeline.parts.streams import make_reader
from curate.pipeline.recipe import Recipe
from curate.pipeline.replacement import check_earlier, check_replacement
from curate.pipeline.sets.changes import describe_use
from curate.pipeline.sets.known import read_known
from curate.pipeline.sets.sources import find_digests
from curate.pipeline.steps import MaskTask, Part, TrainTask
from curate.pipeline.tables import assemble
from curate.pipeline.tables.rows import Counts
from curate.rendering.mask_view import MaskedText
from curate.schemas.conversation import Message

FINDERS: tuple[type[NearDuplicates | PromptCap], ...] = (NearDuplicates, PromptCap)  # of corpus rules, in their order
LONG_BYTES = 1 << 30  # of input: minutes of work
SHORT_BYTES = 16 << 20  # of input: seconds of work, whose parts are not worth keeping
DISK_RATIO = 2.6  # bytes of parts and set for each byte of a dump that is not compressed
MAX_UNREAD = 5  # files that are not read, in an error

MaskSpans = Callable[[Sequence[Sequence[Message]]], Sequence[MaskedText]]


@dataclass(frozen=True)
class CleanResult(Displayed):
    """The result of a run: the set's folder, its manifest, and warnings for the user."""

    output: Path
    manifest: Manifest
    warnings: list[str]
    seconds: float
    bytes: int
    damaged: bool = False  # part of the input could not be read
    file: Path | None = None  # the converted file, if `output` names one
    address: str | None = None  # that the set was uploaded to; `output`, where it was made, is removed then


class Page(Protocol):
    """Measures a new set and writes its page. Passed in by the caller, since the pipeline may not import `report`."""

    def load(self) -> None:
        """Import the modules that the page needs; called while the tables are written."""

    def measure(self, folder: Path, manifest: Manifest) -> Manifest:
        """Return the manifest of the set in the folder with what is measured of its tables."""

    def write(self, folder: Path, name: str, mask_spans: MaskSpans) -> None:
        """Write the page into the set's folder; `mask_spans` returns spans, each supervised or not."""


def clean(
    inputs: Sequence[str | Path],
    folder: Path,
    recipe: Recipe,
    *,
    page: Page,
    file: Path | None = None,
    force: bool = False,
    strict: bool = False,
    against: CuratedSet | None = None,
    execution: Execution = AT_ONCE,
    plan: Plan | None = None,
    elsewhere: tuple[str, Manifest] | None = None,
) -> CleanResult:
    """Clean dumps into a set at `folder`, or gather the parts of a plan.

    `elsewhere`: the address that the caller uploads the set to, and the manifest of the set that is there.

    `file` names the file that the caller converts it to.
    `against`: a set whose conversations are known, and rejected. `force` replaces a set of other inputs or another
    recipe. A run that was killed is taken up again by the next one. Raises InputError if the input has no complete
    record, none is kept, or with `strict` if a file is not read; RecipeError for a filter that needs a model's scores;
    TokenizerError, and SetError if the target must not be overwritten.
    """
    started = time.perf_counter()
    verdicts.refuse_scores(recipe.filters, recipe.signals)
    reader = make_reader(open_inputs(inputs), recipe)
    _check_target(folder, file, reader.sources)
    _check_unread(reader, strict)
    run = _Run(recipe, reader, execution, started, file, against)
    store = records.folder_of(folder)
    with transaction.writing(folder) as partial:
        if not force:
            check_replacement(folder, recipe, reader.sources)
            if elsewhere is not None:
                check_earlier(elsewhere[1], elsewhere[0], recipe, reader.sources)
        with run.keeping(store, is_planned=plan is not None) as reuse:
            run.tell_disk(partial)
            scratch = (partial / transaction.PARTS).absolute()
            scratch.mkdir()
            making = run.plan(store, scratch, plan)
            tasks = run.start(making)
            ratings = read_ratings(reader.parts_of_exports)
            factory = PartFactory(recipe, store, ratings, reuse, durable=run.is_long)
            with open_pool(factory, run.workers) as pool:
                known = read_known(against, scratch, run.workers) if against is not None else None
                finders = make_finders(pool, store, recipe)
                parts = run.read(pool, making, tasks)
                _check_unread(reader, strict)
                run.report("finding duplicates")
                decisions = corpus.decide(parts, recipe, reader.damaged_records, finders, known, folder=scratch)
                check_kept(parts, decisions, store, reader.warnings)
                run.report("writing")
                target = write_decisions(partial, store, parts, decisions, recipe)
                decisions = decisions.without_rows()
                counts = write_tables(pool, target, decisions, page)
                run.report("measuring")
                manifest = page.measure(partial, run.manifest(parts, decisions, counts))
                manifests.write(partial, manifest)
                run.report("writing the page")
                page.write(partial, folder.resolve().name, mask_spans(pool))
    seconds = time.perf_counter() - started
    read = reader.bytes_read or making.bytes_read
    return CleanResult(folder, manifest, list(manifest.warnings), seconds, read, bool(reader.warnings), file)


def make_finders(pool: base.Pool, scratch: Path, recipe: Recipe) -> list[Finder]:
    """Return what finds near duplicates and the like among the parts, as the recipe asks for it."""
    used = [finder for finder in FINDERS if finder.name in recipe.filters]
    return [finder(pool, scratch, recipe.filters[finder.name]) for finder in used]


def write_decisions(
    partial: Path, store: Path, parts: Sequence[Part], decisions: corpus.Decisions, recipe: Recipe
) -> assemble.SetTables:
    """Write the decisions on the parts in `store` to files there; return what is to be written from them."""
    firsts = {part.number: part.first for part in parts}
    target = assemble.SetTables(partial, store, firsts, further_signals(recipe), recipe.output.originals)
    return assemble.write_decisions(target, decisions)


def write_tables(pool: base.Pool, target: assemble.SetTables, decisions: corpus.Decisions, page: Page) -> Counts:
    """Write the tables of a set from its parts and decisions, in the workers, and return their counts."""
    gains = decisions.gains.partition_by("part", as_dict=True).items()
    for _ in pool.map(TrainTask(number, messages) for (number,), messages in gains):
        pass
    return assemble.write_tables(pool, target, page.load)


def _check_target(folder: Path, file: Path | None, sources: Sequence[Source]) -> None:
    """Raise SetError if the run would overwrite its input, or a file that curate did not write."""
    outputs = [folder / name for name in curated_set.FILES] + ([file] if file else [])
    written = {path.resolve() for path in outputs}
    for source in sources:
        if source.path is not None and source.path.resolve() in written:
            raise SetError(
                f"{str(source.path)!r} is an input and would be overwritten; nothing was written; give another -o"
            )
    if file is None:
        return
    files.check_replaceable(file)
    if not file.exists():
        return
    earlier = curated_set.open_set(folder).manifest.run if manifests.is_set(folder) else None
    if earlier is None or earlier.file != file.name:
        raise SetError(f"{str(file)!r} exists and curate did not write it; nothing was written; give another -o")


def _check_unread(reader: Reader, strict: bool) -> None:
    """Raise InputError, with the reasons, if something was not read and that is an error."""
    unread = [file for file in reader.unread if file.reason != PART_OF_EXPORT]
    if not (strict and unread):
        return
    count = len(unread)
    reasons = [f"{file.name!r} {file.reason}" for file in unread[:MAX_UNREAD]]
    more = f"; and {count - MAX_UNREAD:,} more" if count > MAX_UNREAD else ""
    what = f"{count:,} {plural(count, 'file')} cannot be read, and strict is set"
    raise InputError(f"{what}: {'; '.join(reasons)}{more}; nothing was written")


def mask_spans(pool: base.Pool) -> MaskSpans:
    """Return a function that computes mask spans in a worker, which has template and tokenizer loaded."""

    def spans(conversations: Sequence[Sequence[Message]]) -> Sequence[MaskedText]:
        [rendered] = pool.map([MaskTask(tuple(map(tuple, conversations)))])
        return tuple(rendered)

    return spans


def further_signals(recipe: Recipe) -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns of the signals that this run measures and other sets may not have."""
    names = verdicts.needed_signals(recipe.filters, recipe.signals)
    columns = {name: dtype for signal in names for name, dtype in registry.get(signal).columns.items()}
    return {name: dtype for name, dtype in columns.items() if name not in dataset_columns.SIGNALS}


@dataclass
class _Run:
    """The state of a run: counts so far and times."""

    recipe: Recipe
    reader: Reader
    execution: Execution
    started: float
    file: Path | None = None  # that the caller converts the set to
    against: CuratedSet | None = None
    records: int = 0
    kept: int = 0
    rejected: int = 0
    reused: int = 0  # parts
    workers: int = 1
    making: Making | None = None
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def is_long(self) -> bool:
        """Whether the run takes so long that its parts should outlive a loss of power."""
        return (self.reader.bytes_total or 0) > LONG_BYTES

    def tell_disk(self, folder: Path) -> None:
        """Say how much of the disk a long run needs, and whether that is free."""
        if self.is_long:
            needed = DISK_RATIO * (self.reader.bytes_total or 0)
            free = shutil.disk_usage(folder).free
            fits = "" if needed < free else "; that may not be enough: give an -o on a larger disk"
            self.execution.note(f"needs about {size(needed)} of disk beside the set, {size(free)} are free{fits}")

    def keeping(self, store: Path, *, is_planned: bool) -> AbstractContextManager[bool]:
        """Keep the folder of parts as long as it is of use; see `records.keeping`."""
        total, execution = self.reader.bytes_total, self.execution
        keep: tuple[type[BaseException], ...] = (OSError, WorkerError)  # lack of space, or of memory
        if total is not None and total < SHORT_BYTES:
            keep = ()
        elif self.is_long:
            keep = (*keep, KeyboardInterrupt)
        return records.keeping(store, execution.note, fresh=execution.fresh, keep=keep, is_planned=is_planned)

    def plan(self, store: Path, scratch: Path, plan: Plan | None) -> Making:
        """Return what is to be read, in units; of a `plan`, what is to be verified."""
        sources = self.reader.sources
        units = plan.units if plan else make_units(sources, self.recipe, self.execution.range_bytes)
        self.making = Making(sources, units, store, self.recipe, self._add, scratch, make=plan is None)
        return self.making

    def start(self, making: Making) -> Iterable[object]:
        """Return the tasks. A single one is done in this process, several by worker processes."""
        tasks, several = making.tasks()
        self.workers = (self.execution.workers or base.default_workers()) if several else 1
        return tasks

    def read(self, pool: base.Pool, making: Making, tasks: Iterable[object]) -> list[Part]:
        """Make all parts; raises InputError if there was no record."""
        self.reader.warn_of_unread()
        making.run(pool, tasks)
        self.execution.check_missing(sorted(making.missing))
        making.collect(self.reader)
        self.reader.warn_of_more()
        if not self.recipe.input.limit or self.records < self.recipe.input.limit:
            self.reader.check_any_record()
        parts = making.parts()
        self.records = sum(part.read for part in parts)
        if self.reused and making.make:
            self.execution.note(f"{self.reused:,} of {len(parts):,} parts of an earlier run were taken up")
        if not self.records:
            raise InputError("the input has no record; nothing was written")
        return parts

    def _add(self, record: PartRecord) -> None:
        for stage, seconds in record.seconds.items():
            self.seconds[stage] += seconds
        self.reused += record.reused
        self.records += record.read
        self.rejected += sum(record.rejected.values())
        self.kept = self.records - self.rejected
        self.report("cleaning")

    def report(self, stage: str) -> None:
        if self.execution.progress is not None and self.making is not None:
            elapsed = time.perf_counter() - self.started
            sizes = self.making.bytes_read, self.reader.bytes_total, self.making.bytes_unpacked
            self.execution.progress(Progress(*sizes, self.records, self.kept, self.rejected, stage, elapsed))

    def manifest(self, parts: Sequence[Part], decisions: corpus.Decisions, counts: Counts) -> Manifest:
        """Return the manifest; raises BalanceError if a record is neither kept nor rejected."""
        counts.check_balance(self.records, "records read")
        info = parts[0].tokenizer
        assert info is not None  # of a part that was cleaned
        warnings = [damage.text for damage in self.reader.warnings] + list(info.warnings)
        warnings += decisions.warnings
        warnings += holdout.explain_none(self.recipe.eval, counts.kept) if not counts.eval else []
        settings = self.recipe.tokens
        return Manifest(
            version=__version__,
            versions={"polars": pl.__version__, "python": platform.python_version()},
            inputs=[manifests.InputFile(file.name, file.bytes, file.sha256) for file in self.reader.inputs],
            unread=[manifests.UnreadFile(file.name, file.reason) for file in self.reader.unread],
            recipe=self.recipe.to_dict(),
            tokenizer=manifests.TokenizerFacts(**info.to_dict()),
            template=settings.template,
            window=settings.max_tokens,
            counts=counts.facts(
                self.records, sum(part.branches for part in parts), _rule_counts(parts, decisions, counts)
            ),
            warnings=warnings,
            sources=find_digests(self.recipe),
            sets=[describe_use(self.against, "against", {}), *self.against.manifest.sets] if self.against else [],
            run=self._run_facts(),
        )

    def _run_facts(self) -> manifests.RunFacts:
        seconds = time.perf_counter() - self.started
        return manifests.RunFacts(
            seconds=round(seconds, 3),
            mb_per_s=round(self.reader.bytes_unpacked / 1e6 / seconds, 2),
            workers=self.workers,
            stages={stage: round(elapsed, 3) for stage, elapsed in sorted(self.seconds.items())},
            host=platform.node(),
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - seconds)),
            paths=[source.address or str(source.path or source.place) for source in self.reader.sources],
            file=self.file.name if self.file else None,
        )


def _rule_counts(parts: Sequence[Part], decisions: corpus.Decisions, counts: Counts) -> dict[str, manifests.RuleCount]:
    alone: Counter[str] = sum((part.alone for part in parts), Counter())
    alone.update(decisions.alone)
    names = sorted({*counts.rejected, *alone})
    return {name: manifests.RuleCount(counts.rejected[name], alone[name]) for name in names}
