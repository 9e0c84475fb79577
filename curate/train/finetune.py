"""The training run, top to bottom: settle, load, train with exact resumption, measure, answer, write what comes out.

    settle    model found, data read and proven, rows packed, memory and time planned     curate.train.prepare
    load      weights, adapters, ranks, optimizer; the state of a checkpoint if resumed   curate.train.setup
    train     steps, each over the rows that its number says                              curate.train.trainer, .order
    look      held-out loss and sample answers, now and then, base model first            curate.train.evaluation
    finish    model or adapter, its card, the run's page                                  curate.train.export, .page

Several ranks run the same lines; the first one alone writes and speaks.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from curate.errors import CheckpointError, RunError
from curate.model import device, load
from curate.model import find as model_find
from curate.model.device import DTYPES
from curate.train import checkpoint, config, distributed, examples, export, order, plan, prepare, setup
from curate.train.checkpoint import Loaded
from curate.train.config import TrainConfig
from curate.train.distributed import World
from curate.train.export import Making, Origin
from curate.train.look import Look
from curate.train.optim import adamw
from curate.train.prepare import Prepared
from curate.train.run import events, loggers, records
from curate.train.run import folder as run_folder
from curate.train.run.events import OnEvent
from curate.train.run.log import Journal, RunResult
from curate.train.trainer import LostStep, Trainer


def finetune(
    data: str | Path | None = None,
    *,
    preset: str | Path | TrainConfig | None = None,
    out: str | Path | None = None,
    resume: str | Path | bool = False,
    dry_run: bool = False,
    settings: Sequence[str] = (),
    place: str | None = None,
    on_event: OnEvent = events.unheard,
    **flags: object,
) -> RunResult:
    """Train a model on a curated set, or only plan to (`dry_run`); `resume` goes on with a run, True with the latest.

    `flags` are those of the command (`model`, `method`, `lr`, `epochs` …), `settings` any others, as
    `section.key=value`; `place` is `cpu` or `cuda`. Raises CurateError with what to type.
    """
    changed = config.changes({"data": None if data is None else str(data), **flags}, settings)
    asked = frozenset(key for key, value in changed.get("method", {}).items() if value is not None)
    joined = distributed.joined()  # by a caller, who then leaves the others too
    world = distributed.start(place)
    try:
        tell = on_event if world.main else events.unheard
        if resume:
            folder = distributed.broadcast(
                _on_main(world, run_folder.to_resume, None if resume is True else resume), world
            )
            chosen = run_folder.resumed(folder, changed)
            run_folder.refuse_finished(folder)
        else:
            chosen = config.override(config.load(preset or _preset(flags)), changed)
            folder = distributed.broadcast(_on_main(world, run_folder.new, out, chosen), world)
        return _run(chosen, asked, folder, world, tell, resume=bool(resume), dry_run=dry_run)
    finally:
        if not joined:
            distributed.finish()


def _preset(flags: Mapping[str, object]) -> str:
    return config.TINY if flags.get("model") == model_find.TINY else config.DEFAULT


def _on_main(world: World, find: Any, *arguments: Any) -> Any:
    return find(*arguments) if world.main else None


# ---- the run


def _run(
    chosen: TrainConfig,
    asked: frozenset[str],
    folder: Path,
    world: World,
    tell: OnEvent,
    *,
    resume: bool,
    dry_run: bool,
) -> RunResult:
    """Carry a run from its configuration to its result."""

    def say(text: str) -> None:
        tell(events.Said(text))

    def warn(text: str) -> None:
        tell(events.Warned(text))

    loggers.check(chosen.train.log)
    loaded = _checkpoint(folder, warn) if resume else None
    ready = _settled(chosen, asked, folder, world, say, loaded)
    chosen = prepare.fitted(chosen, ready.config)
    planned = ready.plan
    tell(events.Planned(planned, ready.facts()))
    if dry_run:
        return RunResult(folder, "planned", planned, ready.facts())
    plan.check(planned)
    with ExitStack() as stack:
        stack.enter_context(_writing(folder, world))
        journal = Journal(folder, ready, world, tell, loaded)
        stack.enter_context(journal.open(chosen))
        stopping = stack.enter_context(_signals())
        alive = setup.start(ready, world, say, warn)
        trainer = alive.trainer
        done = 0 if loaded is None else setup.restore(trainer, loaded)
        look = Look(ready, trainer, journal)
        if done == 0:
            look.base()
        steps, rows = planned.steps, len(ready.rows)
        rate = adamw.schedule(chosen.optimizer, steps.count)
        journal.started(alive)
        device.reset_peak(world.device)
        while journal.step < steps.count and not distributed.anywhere(stopping.number is not None, world):
            begin, done = time.perf_counter(), journal.step
            taken = order.rows_of(done, steps, rows, chosen.train.seed)
            lr = chosen.learning_rate * rate(done)
            try:
                outcome = trainer.take(done + 1, taken, lr)
            except LostStep:
                journal.back(_back(trainer, folder, done + 1, warn))
                continue
            except Exception as error:
                if not (planned.compiled and setup.is_compiler_error(error)):
                    raise
                setup.uncompile(trainer.model)
                warn(f"layers do not compile here and run as they are ({type(error).__name__})")
                continue
            journal.stepped(trainer, outcome, taken, lr, time.perf_counter() - begin)
            if look.is_due(journal.step):
                look.tuned(journal.step)
            if journal.is_save_due():
                journal.save(trainer)
        journal.save(trainer)
        if journal.step < steps.count:
            return journal.stopped(stopping.number)
        look.tuned(steps.count)
        result = export.finish(folder, trainer.model, _making(ready), world)
        return journal.finished(result)


def _checkpoint(folder: Path, warn: Any) -> Loaded | None:
    """Read the newest checkpoint that is whole; a run that was ended before its first one starts anew."""
    loaded = checkpoint.load_latest(folder)
    if loaded is None:
        warn(f"the run {str(folder)!r} has no checkpoint yet: it starts again from its first step")
        return None
    for text in loaded.warnings:
        warn(text)
    if loaded.state.optimizer is None:
        raise CheckpointError(
            f"{str(loaded.path)!r} is whole but holds weights alone, and no run goes on from them exactly; "
            f"begin a new one with them: --init {loaded.path}"
        )
    return loaded


def _settled(
    chosen: TrainConfig, asked: frozenset[str], folder: Path, world: World, say: Any, loaded: Loaded | None
) -> Prepared:
    """Prepare the run; a failed proof leaves the names of all that failed in the run's folder."""
    settings = chosen if loaded is None else prepare.as_before(chosen, loaded.state.facts, world)
    try:
        return prepare.prepare(settings, world, folder, say, asked)
    except examples.ProofError as error:
        if not world.main:
            raise
        folder.mkdir(parents=True, exist_ok=True)
        examples.write_left_out(folder / records.LEFT_OUT, error.failures)
        raise RunError(f"{error}; all of them are named in {folder / records.LEFT_OUT}") from None


def _back(trainer: Trainer, folder: Path, step: int, warn: Any) -> int:
    """Go back to the newest checkpoint after memory ran out while weights were being changed."""
    loaded = checkpoint.load_latest(folder)
    if loaded is None or (trainer.micro_batch == 1 and trainer.all_checkpointed):
        raise RunError(
            f"step {step}: memory ran out while the optimizer made its states; give --method lora or qlora, or "
            "--setting optimizer.form=8bit"
        )
    trainer.micro_batch = (trainer.micro_batch + 1) // 2
    done = setup.restore(trainer, loaded)
    warn(f"memory ran out in step {step}: back to step {done}, now {trainer.micro_batch} rows at once")
    return done


def _making(ready: Prepared) -> Making:
    """Return how the result is asked and what it comes from."""
    source, seed = ready.source, ready.config.train.seed
    origin = Origin(
        base=source.name,
        folder=source.folder,
        method=ready.config.method.kind,
        quantised=ready.config.method.kind == "qlora",
        fresh=lambda: load.load(source, dtype=DTYPES[ready.device.dtype], device="cpu", seed=seed),
    )
    return Making(export.asked_as_trained(ready.renderer), origin, int(ready.data.facts["window"]))


@contextmanager
def _writing(folder: Path, world: World) -> Iterator[None]:
    """Hold the run's folder, by the rank that writes."""
    if not world.main:
        yield
        return
    with run_folder.held(folder):
        yield


# ---- signals


@dataclass
class _Stopping:
    """The signal that asked the run to stop, null so far."""

    number: int | None = None


@contextmanager
def _signals() -> Iterator[_Stopping]:
    """Take the first SIGINT, SIGTERM or SIGHUP as a wish to save and stop; a second one ends the run at once.

    What is ignored, as SIGHUP under nohup, stays ignored.
    """
    stopping = _Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def ask(number: int, frame: FrameType | None) -> None:
        stopping.number = number
        for one, handler in before.items():
            signal.signal(one, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
