"""`curate.score`: measure a set with a model, batch by batch, and write the signal into the set."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from curate import files
from curate.dataset import arrow
from curate.dataset.curated_set import MANIFEST, CuratedSet, open_set
from curate.dataset.manifest import Manifest
from curate.display.figures import number, plural, spoken_duration
from curate.engine.base import default_workers
from curate.engine.pool import open_pool
from curate.errors import CurateError, SetError, did_you_mean
from curate.ingest.remote.address import is_remote
from curate.model.device import measure_device
from curate.model.files import OnMessage
from curate.model.sizes import Work, flops
from curate.model.sources import ignore_message
from curate.pipeline.sets.changes import check_current
from curate.remote.sets import fetch_set
from curate.scoring import columns
from curate.scoring import guard as guard_module
from curate.scoring.guards import QUESTION, choose_family
from curate.scoring.journal import Journal
from curate.scoring.likelihood import Likelihood, LikelihoodPreparer
from curate.scoring.opening import Choice, FoundModel, find_scorer, make_scoring_renderer
from curate.scoring.reader import Reader
from curate.scoring.work import Measure, Prepared, Result, Unit, cut_units
from curate.train.planning.speed import efficiency

BUDGET = {"cuda": 32_768}  # tokens of a forward pass, by device
CPU_BUDGET = 4_096
SIGNALS = ("likelihood", guard_module.NAME)
GUARD_WINDOW = 4_096  # tokens of a guard's prompt, unless --max-tokens says otherwise
MANY_ROWS = 4_000  # of a set; with fewer, starting worker processes takes longer than they save


@dataclass(frozen=True)
class Plan:
    """What a run will do: the texts to read, by the set's own counts, and the time that this takes."""

    signal: str
    model: str
    template: str
    device: str
    dtype: str
    conversations: int
    tokens: int  # about, in all documents
    seconds: float
    budget: int  # tokens of a forward pass

    def describe(self) -> str:
        """Return the plan on one line."""
        return (
            f"{self.signal} of {number(self.conversations)} {plural(self.conversations, 'conversation')} by "
            f"{self.model} ({self.dtype} on {self.device}, template {self.template}): about {number(self.tokens)} "
            f"tokens, {number(self.budget)} at a time, {self._time()}"
        )

    def _time(self) -> str:
        """Return the time on the device; how long loading takes depends on the disk, so it is not guessed."""
        taken = "less than a minute" if self.seconds < 60 else spoken_duration(self.seconds)
        return f"{taken} once the model is loaded"


@dataclass(frozen=True)
class ScoreProgress:
    """The state of a run: rows of the set that are done, of which some by an earlier run, tokens read, seconds."""

    rows: int
    total: int
    resumed: int
    tokens: int
    seconds: float

    @property
    def left(self) -> float | None:
        """The seconds left at the rate so far, None if unknown."""
        done = self.rows - self.resumed
        return (self.total - self.rows) * self.seconds / done if done else None


@dataclass(frozen=True)
class ScoreResult:
    """The result: the set's folder and manifest, the plan, and warnings. Without a manifest, nothing was run."""

    output: Path
    plan: Plan
    manifest: Manifest | None
    warnings: list[str]
    seconds: float


OnProgress = Callable[[ScoreProgress], None]


def score(
    source: str | Path,
    model: str,
    output: str | Path | None = None,
    *,
    signal: str = "likelihood",
    guard: str | None = None,
    template: str | None = None,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    base: str | None = None,
    other_base: bool = False,
    dry_run: bool = False,
    force: bool = False,
    workers: int | None = None,
    say: OnMessage = ignore_message,
    progress: OnProgress = lambda state: None,
) -> ScoreResult:
    """Measure the conversations of a set with a model, and add the signal's columns to it, or to a copy at `output`.

    `signal` is likelihood or guard; `guard` the family of the model, by default by its name. A run that was killed
    continues where it stopped. `max_tokens` is the window, by default that of the set, limited to
    the model's positions. `batch_tokens` are read at a time. `dry_run` only makes the plan. `say` gets messages about
    the model and the plan. Raises CurateError with what to type.
    """
    started = time.perf_counter()
    if is_remote(output or source):
        raise SetError("a signal is added to a set on this machine; give -o FOLDER")
    curated = open_set(fetch_set(source))
    check_current(curated)
    folder = curated.path if output is None else Path(output)
    columns.check_target(curated, folder, force)
    found = find_scorer(Choice(model, base, other_base, template, dtype, device))
    job = _make_job(curated, found, Request(signal, guard, max_tokens, batch_tokens))
    plan = job.plan()
    say(plan.describe())
    if dry_run:
        return ScoreResult(folder, plan, None, [], time.perf_counter() - started)
    with _journal_lock(folder, signal):
        manifest, warnings = job.run(folder, workers, say, progress)
    return ScoreResult(folder, plan, manifest, warnings, time.perf_counter() - started)


@dataclass(frozen=True)
class Request:
    """What to measure: the signal, the family of a guard, the window, and the tokens of a forward pass."""

    signal: str
    guard: str | None
    max_tokens: int | None
    batch_tokens: int | None

    def window(self, default: int, positions: int) -> int:
        """Return the window; raises CurateError for one that the model does not have."""
        if self.max_tokens is not None and self.max_tokens > positions:
            raise CurateError(
                f"--max-tokens {self.max_tokens} exceeds the model's {positions:,} positions; "
                f"give --max-tokens {positions} or less"
            )
        return self.max_tokens or min(default, positions)


def _make_job(curated: CuratedSet, found: FoundModel, request: Request) -> _Job:
    if request.signal not in SIGNALS:
        hint = did_you_mean(request.signal, SIGNALS)
        raise CurateError(f"unknown signal {request.signal!r}{hint}")
    if request.guard is not None and request.signal != guard_module.NAME:
        raise CurateError(f"--guard {request.guard} is for --signal guard; leave it out, or give both")
    budget = request.batch_tokens or BUDGET.get(found.device.type, CPU_BUDGET)
    if request.signal == guard_module.NAME:
        return _make_guard_job(curated, found, request, budget)
    counts, positions = curated.manifest.counts, found.shape.positions
    window = request.window(curated.manifest.window, positions)
    renderer = make_scoring_renderer(found, curated.manifest)
    answers = counts.answer_tokens or counts.tokens // 2  # not counted by an early version
    work = Work(counts.tokens + answers, 2 * answers, 0)
    make_preparer = partial(LikelihoodPreparer, renderer, window)
    return _Job(curated, found, Likelihood(), make_preparer, renderer.name, window, budget, work)


def _make_guard_job(curated: CuratedSet, found: FoundModel, request: Request, budget: int) -> _Job:
    names = [found.choice.model, str(found.artifact.folder), found.source.name]
    name, family = choose_family(found.choice.model, names, request.guard)
    window = request.window(GUARD_WINDOW, found.shape.positions)
    fallback = make_scoring_renderer(found, curated.manifest) if family.template == QUESTION else None
    renderer = guard_module.make_guard_renderer(found, family, fallback)
    make_preparer = partial(guard_module.GuardPreparer, renderer, family, window)
    preparer, counts = make_preparer(), curated.manifest.counts
    roles = counts.roles or {}
    texts = roles.get("user", counts.kept) + roles.get("assistant", counts.kept)
    work = Work(2 * counts.tokens + texts * len(preparer.preamble), 2 * texts, 0)
    measure = guard_module.Guard(preparer.verdict)
    return _Job(curated, found, measure, make_preparer, f"{name}, {renderer.name}", window, budget, work)


@dataclass(frozen=True)
class _Job:
    """One signal of one set by one model."""

    curated: CuratedSet
    found: FoundModel
    measure: Measure
    make_preparer: Callable[[], Callable[[bytes], list[Prepared]]]  # can be pickled
    template: str
    window: int
    budget: int
    work: Work  # by the set's counts

    def plan(self) -> Plan:
        """Return the plan, from the set's counts; with another tokenizer the tokens are an estimate."""
        device = measure_device(self.found.device, dtype=self.found.dtype)
        forward = flops(self.found.shape, self.work, full=True) / 3  # a third of forward and backward
        return Plan(
            signal=self.measure.name,
            model=self.found.choice.model,
            template=self.template,
            device=device.name,
            dtype=self.found.dtype,
            conversations=self.curated.manifest.counts.kept,
            tokens=self.work.tokens,
            seconds=forward / (device.rate * efficiency(device.kind, full=True)),
            budget=max(self.budget, self.window),
        )

    def run(
        self, folder: Path, workers: int | None, say: OnMessage, progress: OnProgress
    ) -> tuple[Manifest, list[str]]:
        """Score every conversation, write the set, and return its manifest with warnings."""
        model = self.found.load(say)
        reader = Reader(model, self.found.shape, row_tokens=self.window, budget=self.budget)
        facts = self.found.facts(self.measure.name, self.template, self.window)
        header = {
            "set": hashlib.sha256((self.curated.path / MANIFEST).read_bytes()).hexdigest(),
            "model": asdict(facts),
            "device": self.found.device.type,
            "budget": self.budget,
        }
        with Journal(_journal_path(folder, self.measure.name), header) as journal:
            if journal.replaced:
                say("an interrupted run measured with other settings; it is begun again")
            try:
                results, rows, unscored = self._score(reader, journal, workers, progress)
            except KeyboardInterrupt as stop:
                stop.args = ("what is measured is kept; type the same command to continue",)
                raise
            table = self.measure.columns(results)[np.repeat(np.arange(len(rows)), rows)]
            measured = columns.Measured(table, replace(facts, unscored=dict(sorted(unscored.items()))))
            asked = {"model": self.found.choice.model, "signal": self.measure.name}
            manifest = columns.write(self.curated, folder, measured, asked)
            journal.remove()
        return manifest, _warn(unscored)

    def _score(
        self, reader: Reader, journal: Journal, workers: int | None, progress: OnProgress
    ) -> tuple[list[Result], list[int], Counter[str]]:
        """Return the result of each conversation, its rows in the set, and how much was not scored, by reason."""
        results: list[Result] = []
        rows: list[int] = []
        unscored: Counter[str] = Counter()
        total, read, resumed, tokens = arrow.count_rows(self.curated.path), 0, 0, 0
        started = time.perf_counter()
        for unit in self._units(workers, total):
            done = journal.take(unit.key)
            if done is None:
                done = self.measure.score(reader, unit.prepared)
                journal.append(unit.key, done)
                tokens += sum(item.tokens for item in unit.prepared)
            else:
                resumed += sum(item.rows for item in unit.prepared)
                started = time.perf_counter()
            results += done
            rows += [item.rows for item in unit.prepared]
            for item, result in zip(unit.prepared, done, strict=True):
                unscored += item.unscored + self.measure.count_unscored(result)
            read += sum(item.rows for item in unit.prepared)
            progress(ScoreProgress(read, total, resumed, tokens, time.perf_counter() - started))
        return results, rows, unscored

    def _units(self, workers: int | None, total: int) -> Iterator[Unit]:
        count = workers or (default_workers() if total >= MANY_ROWS else 1)
        with open_pool(self.make_preparer, count) as pool:
            yield from cut_units(pool.map(arrow.read_batches(self.curated.path)), self.budget)


def _journal_path(folder: Path, signal: str) -> Path:
    """Return the journal's place: hidden, beside the set, since the set itself is written at the end."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.{signal}.journal")


def _journal_lock(folder: Path, signal: str) -> AbstractContextManager[None]:
    path = _journal_path(folder, signal)
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = SetError(f"another run measures {signal!r} for {str(folder)!r}; wait for it, or give another -o")
    return files.lock(path.with_name(f"{path.name}.lock"), busy)


def _warn(unscored: Mapping[str, int]) -> list[str]:
    """Return a warning about what has no score."""
    counts = {rule: count for rule, count in sorted(unscored.items()) if count}
    if not counts:
        return []
    total = sum(counts.values())
    reasons = ", ".join(f"{rule} {number(count)}" for rule, count in counts.items())
    return [f"{number(total)} {plural(total, 'text')} could not be scored: {reasons}"]
