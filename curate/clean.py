"""The main job: raw dumps in, a curated set out. The order of the steps stands in `curate.batch`; here is the run."""

from __future__ import annotations

import platform
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import polars as pl

import curate
from curate import assemble, corpus, curated, engine, ingest
from curate import recipe as recipes
from curate.batch import Part, Plan, Shown
from curate.errors import BalanceError, InputError, SetError
from curate.filters import registry
from curate.marks import Spans
from curate.recipe import Recipe
from curate.schemas.conversation import Message

FILE_FORMATS = {".json": "vicuna", ".jsonl": "jsonl", ".parquet": "parquet"}  # of `-o FILE`
OTHER_FILES = (".csv", ".tsv", ".txt", ".md", ".html", ".xlsx", ".arrow", ".ndjson", ".gz", ".zst", ".zip")  # refused


@dataclass(frozen=True)
class Progress:
    """How far a run is; `bytes_total` (as `bytes_read`, on disk) is None where the input's size is unknown."""

    bytes_read: int
    bytes_total: int | None
    bytes_unpacked: int
    records: int
    kept: int
    rejected: int
    stage: str
    seconds: float


@dataclass(frozen=True)
class CleanResult:
    """What a run gave: the set's folder, its manifest, and warnings that a user should see."""

    output: Path
    manifest: dict[str, Any]
    warnings: list[str]
    seconds: float
    bytes: int
    damaged: bool = False  # some of the input could not be read as it stood
    file: Path | None = None  # the one file that `output` named, if it did

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        from curate.page import notebook

        return notebook.of_result(self)


def clean(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path = "curated",
    *,
    recipe: str | Path | Recipe = "vicuna",
    language: Sequence[str] = (),
    max_tokens: int | None = None,
    template: str | None = None,
    tokenizer: str | None = None,
    eval_fraction: float | None = None,
    workers: int | None = None,
    limit: int | None = None,
    filters: Sequence[str | Path] = (),
    originals: bool | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> CleanResult:
    """Clean chat dumps into a curated set, and return what became of every record.

    `output` is a folder, or a file (.json, .jsonl, .parquet) with the set's folder of the same name
    beside it. Settings given here override the recipe's. Raises InputError where there is nothing
    whole to read, RecipeError, TokenizerError, and SetError where the target must not be written.
    """
    started = time.perf_counter()
    resolved = recipes.override(
        recipes.load(recipe),
        language=language,
        max_tokens=max_tokens,
        template=template,
        tokenizer=tokenizer,
        eval_fraction=eval_fraction,
        limit=limit,
        filters=filters,
        originals=originals,
    )
    arguments = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    folder, file = _target(Path(output))
    reader = _reader(arguments, resolved)
    _refuse_loss(folder, file, reader.sources)
    run = _Run(resolved, reader, progress, started, file)
    with curated.writing(folder) as partial:
        (partial / curated.PARTS).mkdir()
        chunks = run.chunks(workers or engine.default_workers())
        with engine.Pool(Plan(resolved, (partial / curated.PARTS).absolute()), run.workers) as pool:
            parts = run.read(pool, chunks)
            run.report("finding duplicates")
            decisions = corpus.decide(parts, resolved)
            run.report("writing")
            numbers = [part.number for part in parts]
            signals, originals = _own_signals(), resolved.output.originals
            counts = assemble.write(pool, partial, numbers, decisions, signals, originals, _load_page)
            manifest = run.manifest(parts, decisions, counts)
            curated.write_manifest(partial, manifest)
            _write_page(partial, folder.resolve().name, pool)
    if file is not None:
        _convert(folder, file)
    seconds = time.perf_counter() - started
    warnings = list(manifest["warnings"])
    if not manifest["counts"]["kept"]:
        warnings[-1] += f"; to see why: curate stats {shlex.quote(str(folder))}"
    return CleanResult(folder, manifest, warnings, seconds, reader.bytes_read, bool(reader.warnings), file)


def _target(output: Path) -> tuple[Path, Path | None]:
    """Return the set's folder, and the one file to write beside it, if `output` names a file."""
    if output.is_dir() or output.suffix.lower() not in {*FILE_FORMATS, *OTHER_FILES}:
        return output, None
    if output.suffix not in FILE_FORMATS:
        raise SetError(f"cannot write {str(output)!r}: give a folder, or a file ending in {', '.join(FILE_FORMATS)}")
    return output.with_suffix(""), output


def _refuse_loss(folder: Path, file: Path | None, sources: Sequence[ingest.Source]) -> None:
    """Raise SetError where the run would write over what it reads, or over a file that curate did not write."""
    outputs = [folder / name for name in curated.FILES] + ([file] if file else [])
    written = {path.resolve() for path in outputs}
    for source in sources:
        if source.path is not None and source.path.resolve() in written:
            raise SetError(
                f"{str(source.path)!r} would be written over what is read; nothing was written; give another -o"
            )
    if file is None or not (file.exists() or file.is_symlink()):
        return
    earlier = curated.open_set(folder).manifest.get("run") if curated.is_set(folder) else None
    if not isinstance(earlier, dict) or earlier.get("file") != file.name:
        raise SetError(f"{str(file)!r} exists and curate did not write it; nothing was written; give another -o")


def _load_page() -> None:
    """Import what the page needs, which takes a third of a second, while a worker writes."""
    import curate.page.document
    import curate.page.samples  # noqa: F401


def _write_page(partial: Path, name: str, pool: engine.Pool) -> None:
    """Write the page of a set that is about to be given its name; a worker tells what is trained on."""
    from curate import measures, page

    def told(conversations: Sequence[Sequence[Message]]) -> Sequence[Spans]:
        [found] = pool.map([Shown(tuple(map(tuple, conversations)))])
        return tuple(found)

    found = curated.open_set(partial)
    page.write(partial / curated.REPORT, measures.of_set(found), found, name=name, told=told)


def _convert(folder: Path, file: Path) -> None:
    from curate.convert import convert

    try:
        convert(folder, file, to=FILE_FORMATS[file.suffix])
    except KeyboardInterrupt as stop:
        stop.args = (f"the set {str(folder)!r} is new and whole, but {str(file)!r} was not written",)
        raise


def _reader(arguments: Sequence[str | Path], recipe: Recipe) -> ingest.Reader:
    settings = recipe.input
    return ingest.Reader(
        ingest.open_inputs(arguments),
        limit=settings.limit or None,
        max_record_bytes=settings.max_record_bytes,
        max_expanded_bytes=settings.max_expanded_bytes,
        max_expansion=settings.max_expansion,
    )


def _own_signals() -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns of signals that are not every set's (a user's own)."""
    columns = {name: dtype for signal in registry.rules("signal").values() for name, dtype in signal.columns.items()}
    return {name: dtype for name, dtype in columns.items() if name not in curated.SIGNALS}


@dataclass
class _Run:
    """The state of one run: what has been read so far, and the clock."""

    recipe: Recipe
    reader: ingest.Reader
    progress: Callable[[Progress], None] | None
    started: float
    file: Path | None = None  # to be written beside the set
    records: int = 0
    kept: int = 0
    rejected: int = 0
    workers: int = 1
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def chunks(self, workers: int) -> Iterator[tuple[int, ingest.Chunk]]:
        """Begin to read; one chunk is done in this process, more than one by `workers`."""
        chunks = enumerate(self.reader)
        first = list(islice(chunks, 2))
        self.workers = workers if len(first) == 2 else 1
        return chain(first, chunks)

    def read(self, pool: engine.Pool, chunks: Iterable[tuple[int, ingest.Chunk]]) -> list[Part]:
        """Send every chunk through the workers; raises InputError if there was nothing whole."""
        parts = []
        for part in pool.map(chunks):
            parts.append(part)
            for stage, spent in part.seconds.items():
                self.seconds[stage] += spent
            self.records += part.read
            self.rejected += part.rejected.total()
            self.kept = self.records - self.rejected
            self.report("cleaning")
        if not self.records:
            raise InputError("the input holds no record; nothing was written")
        return parts

    def report(self, stage: str) -> None:
        if self.progress is not None:
            elapsed = time.perf_counter() - self.started
            reader = self.reader
            sizes = reader.bytes_read, reader.bytes_total, reader.bytes_unpacked
            self.progress(Progress(*sizes, self.records, self.kept, self.rejected, stage, elapsed))

    def manifest(self, parts: Sequence[Part], decisions: corpus.Decisions, counts: assemble.Counts) -> dict[str, Any]:
        """Return the manifest; raises BalanceError if a record is neither kept nor rejected."""
        rejected = counts.rejected.total()
        if self.records != counts.kept + rejected:
            raise BalanceError(
                f"{self.records} records read, but {counts.kept} kept and {rejected} rejected; "
                "this is a defect of curate, please report it; nothing was written"
            )
        info = parts[0].tokenizer
        warnings = [damage.text for damage in self.reader.warnings] + list(info.warnings)
        if not counts.kept:
            warnings.append("every record was rejected")
        settings = self.recipe.tokens
        return {
            "version": curate.__version__,
            "versions": {"polars": pl.__version__, "python": platform.python_version()},
            "inputs": [asdict(read) for read in self.reader.inputs],
            "recipe": self.recipe.to_dict(),
            "tokenizer": info.to_dict(),
            "template": settings.template,
            "window": settings.max_tokens,
            "counts": {
                "read": self.records,
                "kept": counts.kept,
                "rejected": rejected,
                "rejected_exchanges": counts.exchanges.total(),
                "pieces": counts.pieces,
                "eval": counts.eval,
                "tokens": counts.tokens,
                "answer_tokens": counts.answer_tokens,
                "rules": _rule_counts(parts, decisions, counts),
                "exchanges": dict(sorted(counts.exchanges.items())),
                "edits": dict(sorted(counts.edits.items())),
                "roles": dict(sorted(counts.roles.items())),
            },
            "warnings": warnings,
            "run": self._run_facts(),
        }

    def _run_facts(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self.started
        return {
            "seconds": round(seconds, 3),
            "mb_per_s": round(self.reader.bytes_unpacked / 1e6 / seconds, 2),
            "workers": self.workers,
            "stages": {stage: round(spent, 3) for stage, spent in sorted(self.seconds.items())},
            "host": platform.node(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - seconds)),
            "paths": [str(source.path) if source.path else "-" for source in self.reader.sources],
            "file": self.file.name if self.file else None,
        }


def _rule_counts(
    parts: Sequence[Part], decisions: corpus.Decisions, counts: assemble.Counts
) -> dict[str, dict[str, int]]:
    alone: Counter[str] = sum((part.alone for part in parts), Counter())
    if decisions.would_take:
        alone[corpus.DUPLICATES] = decisions.would_take
    names = sorted({*counts.rejected, *alone})
    return {name: {"first": counts.rejected[name], "alone": alone[name]} for name in names}
