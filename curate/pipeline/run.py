"""Clean raw dumps into a curated set; `curate.pipeline.steps` has the steps of one batch."""

from __future__ import annotations

import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
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
from curate.display.figures import plural
from curate.engine import base
from curate.engine.pool import open_pool
from curate.errors import InputError, SetError
from curate.filters import registry, verdicts
from curate.ingest.decode import Chunk, batches
from curate.ingest.ratings import read_ratings
from curate.ingest.reader import Reader
from curate.ingest.sources import Source, open_inputs
from curate.ingest.text.encodings import check_encoding
from curate.ingest.unread import PART_OF_EXPORT
from curate.pipeline import assemble, corpus, holdout
from curate.pipeline.near.caps import PromptCap
from curate.pipeline.near.decision import Finder, NearDuplicates
from curate.pipeline.nothing_kept import check_kept
from curate.pipeline.recipe import Recipe
from curate.pipeline.replacement import check_replacement
from curate.pipeline.sets.changes import describe_use
from curate.pipeline.sets.known import read_known
from curate.pipeline.sets.sources import find_digests
from curate.pipeline.steps import CleanerFactory, MaskTask, Part, TrainTask
from curate.rendering.mask_view import MaskedText
from curate.schemas.conversation import Message

FINDERS: tuple[type[NearDuplicates | PromptCap], ...] = (NearDuplicates, PromptCap)  # of corpus rules, in their order
MAX_UNREAD = 5  # files that are not read, in an error

MaskSpans = Callable[[Sequence[Sequence[Message]]], Sequence[MaskedText]]


@dataclass(frozen=True)
class Progress:
    """The progress of a run; `bytes_total` (on disk, as `bytes_read`) is None if the input's size is unknown."""

    bytes_read: int
    bytes_total: int | None
    bytes_unpacked: int
    records: int
    kept: int
    rejected: int
    stage: str
    seconds: float


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


class Page(Protocol):
    """Writes the page of a new set. Passed in by the caller, since the pipeline may not import `report`."""

    def load(self) -> None:
        """Import the modules that the page needs; called while the tables are written."""

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
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> CleanResult:
    """Clean dumps into a set at `folder`; `file` names the file that the caller converts it to.

    `against`: a set whose conversations are known, and rejected. `force` replaces a set of other inputs or another
    recipe. Raises InputError if the input has no complete record,
    none is kept, or with `strict` if a file is not read; RecipeError for a filter that needs a model's scores;
    TokenizerError, and SetError if the target must not be overwritten.
    """
    started = time.perf_counter()
    verdicts.refuse_scores(recipe.filters, recipe.signals)
    reader = _reader(inputs, recipe)
    _check_target(folder, file, reader.sources)
    _check_unread(reader, strict)
    run = _Run(recipe, reader, progress, started, file, against)
    with transaction.writing(folder) as partial:
        if not force:
            check_replacement(folder, recipe, reader.sources)
        scratch = (partial / transaction.PARTS).absolute()
        scratch.mkdir()
        reader.scratch = scratch
        tasks = run.tasks(workers or base.default_workers())
        ratings = read_ratings(reader.parts_of_exports)
        with open_pool(CleanerFactory(recipe, scratch, ratings), run.workers) as pool:
            known = read_known(against, scratch, run.workers) if against is not None else None
            finders = make_finders(pool, scratch, recipe)
            parts = run.read(pool, tasks)
            _check_unread(reader, strict)
            run.report("finding duplicates")
            decisions = corpus.decide(parts, recipe, reader.damaged_records, finders, known)
            check_kept(parts, decisions, scratch, reader.warnings)
            run.report("writing")
            counts = write_tables(pool, partial, parts, decisions, recipe, page)
            manifest = run.manifest(parts, decisions, counts)
            manifests.write(partial, manifest)
            page.write(partial, folder.resolve().name, mask_spans(pool))
    seconds = time.perf_counter() - started
    return CleanResult(
        folder, manifest, list(manifest.warnings), seconds, reader.bytes_read, bool(reader.warnings), file
    )


def make_finders(pool: base.Pool, scratch: Path, recipe: Recipe) -> list[Finder]:
    """Return what finds near duplicates and the like among the parts, as the recipe asks for it."""
    used = [finder for finder in FINDERS if finder.name in recipe.filters]
    return [finder(pool, scratch, recipe.filters[finder.name]) for finder in used]


def write_tables(
    pool: base.Pool,
    partial: Path,
    parts: Sequence[Part],
    decisions: corpus.Decisions,
    recipe: Recipe,
    page: Page,
) -> assemble.Counts:
    """Write the tables of a set from its parts, in the workers, and return their counts."""
    gains = decisions.gains.partition_by("part", as_dict=True).items()
    for _ in pool.map(TrainTask(number, messages) for (number,), messages in gains):
        pass
    numbers = [part.number for part in parts]
    target = assemble.SetTables(partial, numbers, further_signals(recipe), recipe.output.originals)
    return assemble.write_tables(pool, target, decisions, page.load)


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


def _reader(arguments: Sequence[str | Path], recipe: Recipe) -> Reader:
    settings = recipe.input
    return Reader(
        open_inputs(arguments),
        limit=settings.limit or None,
        max_record_bytes=settings.max_record_bytes,
        max_expanded_bytes=settings.max_expanded_bytes,
        max_expansion=settings.max_expansion,
        encoding=check_encoding(settings.encoding),
        columns=settings.read_options().columns,
    )


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
    progress: Callable[[Progress], None] | None
    started: float
    file: Path | None = None  # that the caller converts the set to
    against: CuratedSet | None = None
    records: int = 0
    kept: int = 0
    rejected: int = 0
    workers: int = 1
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def tasks(self, workers: int) -> Iterator[tuple[int, Sequence[Chunk]]]:
        """Start reading. A single task is done in this process, several by `workers` processes."""
        tasks = enumerate(batches(self.reader))
        first = list(islice(tasks, 2))
        self.workers = workers if len(first) == 2 else 1
        return chain(first, tasks)

    def read(self, pool: base.Pool, tasks: Iterable[tuple[int, Sequence[Chunk]]]) -> list[Part]:
        """Clean all chunks in the workers; raises InputError if there was no record."""
        parts = []
        for part in pool.map(tasks):
            parts.append(part)
            for stage, seconds in part.seconds.items():
                self.seconds[stage] += seconds
            self.records += part.read
            self.rejected += part.rejected.total()
            self.kept = self.records - self.rejected
            self.report("cleaning")
        if not self.records:
            raise InputError("the input has no record; nothing was written")
        return parts

    def report(self, stage: str) -> None:
        if self.progress is not None:
            elapsed = time.perf_counter() - self.started
            reader = self.reader
            sizes = reader.bytes_read, reader.bytes_total, reader.bytes_unpacked
            self.progress(Progress(*sizes, self.records, self.kept, self.rejected, stage, elapsed))

    def manifest(self, parts: Sequence[Part], decisions: corpus.Decisions, counts: assemble.Counts) -> Manifest:
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
            paths=[str(source.path or source.place) for source in self.reader.sources],
            file=self.file.name if self.file else None,
        )


def _rule_counts(
    parts: Sequence[Part], decisions: corpus.Decisions, counts: assemble.Counts
) -> dict[str, manifests.RuleCount]:
    alone: Counter[str] = sum((part.alone for part in parts), Counter())
    alone.update(decisions.alone)
    names = sorted({*counts.rejected, *alone})
    return {name: manifests.RuleCount(counts.rejected[name], alone[name]) for name in names}
