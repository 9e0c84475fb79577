"""Run a training from top to bottom: prepare, load, train with exact resumption, evaluate, write the result.

    prepare    find the model, read and prove the data, pack it, plan memory and time    curate.train.prepare
    load       weights, adapters, ranks, optimizer; a checkpoint's state if resumed      curate.train.trainer
    train      steps, each over the packed rows that its number determines               curate.train.trainer, .packing
    evaluate   held-out loss and sample answers: the base model first, then regularly    curate.train.evaluator
    finish     model or adapter, its card, the run's page                                curate.train.results, .report

All ranks run the same code; only rank 0 writes files and sends events.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from curate import files
from curate.errors import CheckpointError, CurateError
from curate.model import device, loader, sources
from curate.model.device import DTYPES
from curate.model.fingerprint import Fingerprint
from curate.train import checkpoint, config, distributed
from curate.train.checkpoint import Loaded
from curate.train.config import TrainConfig
from curate.train.distributed import World
from curate.train.evaluator import Evaluator
from curate.train.objectives import reference
from curate.train.optim import adamw
from curate.train.planning.machines import find_machine
from curate.train.prepare import Request, Run, plan_only, prepare
from curate.train.results import export
from curate.train.results.export import Origin, ResultInfo
from curate.train.run import events, loggers, resumption
from curate.train.run import folder as run_folder
from curate.train.run.events import OnEvent, Reporter
from curate.train.run.log import RunLog, RunResult
from curate.train.run.records import BASE, TUNED
from curate.train.trainer import LostStep, Trainer


def finetune(
    data: str | Path | None = None,
    *,
    preset: str | Path | TrainConfig | None = None,
    out: str | Path | None = None,
    resume: str | Path | bool = False,
    dry_run: bool = False,
    prove: bool = False,
    machine: str | None = None,
    settings: Sequence[str] = (),
    device: str | None = None,
    on_event: OnEvent = events.ignore_event,
    **flags: object,
) -> RunResult:
    """Train a model on a curated set, or only plan the run (`dry_run`).

    A plan alone does not render a large set, but takes its token counts, unless `prove`. `machine` plans for another
    machine, such as `h200`, `2x RTX 4090` or `24GB`, and implies `dry_run`.
    `resume` is the folder of a run to continue; True continues the latest one under runs/. `flags` are those of the
    command (`model`, `method`, `lr`, `epochs` …), `settings` are any others as `section.key=value`, and `device` is
    `cpu` or `cuda`. With torchrun, every rank must call this. Raises CurateError with a message that says what
    to type.
    """
    elsewhere = None if machine is None else find_machine(machine)
    dry_run = dry_run or elsewhere is not None
    changed = config.changes({"data": None if data is None else str(data), **flags}, settings)
    method_settings = frozenset(key for key, value in changed.get("method", {}).items() if value is not None)
    was_initialized = distributed.is_initialized()  # then the caller leaves the process group
    world = distributed.start(device)
    reporter = Reporter(on_event if world.main else events.ignore_event)  # each event is reported once
    try:
        if resume:
            folder = _on_main(world, run_folder.find_resumable, None if resume is True else resume)
            requested = run_folder.load_config(folder, changed)
            run_folder.refuse_finished(folder)
        else:
            requested = config.override(config.load(preset or _default_preset(flags)), changed)
            folder = _on_main(world, run_folder.choose_new, out, requested)
        # Before the minutes that reading the data may take:
        loggers.check_installed(requested.train.log)
        if elsewhere is None and world.main:
            run_folder.require_room(folder)
        request = Request(requested, folder, world, reporter, method_settings)
        if dry_run:
            plan, facts = plan_only(request, prove=prove, machine=elsewhere)
            reporter.send(events.Planned(plan, facts))
            return RunResult(folder, "planned", plan, facts)
        loaded = _load_checkpoint(request) if resume else None  # on every rank, onto the CPU
        run = prepare(request, None if loaded is None else loaded.state.facts)
        reporter.send(events.Planned(run.plan, run.facts()))
        run.plan.require_fit()
        return _train(run, loaded)
    except CurateError as error:
        distributed.tell_torchrun(str(error))
        raise
    finally:
        if not was_initialized:
            distributed.finish()


def _default_preset(flags: Mapping[str, object]) -> str:
    """Return the preset of a run without one: the tiny model and DPO have presets of the same names."""
    if flags.get("model") == sources.TINY:
        return sources.TINY
    return config.DPO if flags.get("objective") == config.DPO else config.DEFAULT


def _on_main(world: World, locate: Callable[..., Path], *arguments: Any) -> Path:
    """Return on every rank the path that `locate` finds on rank 0, so that all use the same folder."""
    return distributed.broadcast(locate(*arguments) if world.main else Path(), world)


# ---- the run


def _train(run: Run, loaded: Loaded | None) -> RunResult:
    """Train, evaluate and save; return the result, of a finished run or of one that a signal stopped."""
    steps, seed = run.plan.steps, run.config.train.seed  # `steps` of the whole run, before a resumption too
    schedule = adamw.schedule(run.config.optimizer, steps.count)
    with ExitStack() as stack:
        hold = stack.enter_context(_hold_folder(run))
        log = RunLog(run, loaded)
        stack.enter_context(log.open())
        stop = stack.enter_context(_stop_on_signal())  # inside `log.open`, which records a second signal
        trainer = Trainer(run.load_model(), run)
        base = run.fingerprint()
        log.use_base(base, loaded)
        evaluator = Evaluator(run, trainer)
        if run.config.objective.sides == 2:
            _use_reference(run, trainer, evaluator)  # before a checkpoint's weights are loaded
        evaluated = None  # the last step after which the model was evaluated
        # A checkpoint of step 0 comes from a run that stopped before its first step: its evaluation is repeated.
        if loaded is None or trainer.restore(loaded) == 0:
            _evaluate(evaluator, BASE, log)
        log.start(trainer.trainable)
        hold.keep = True
        device.reset_peak(
            run.world.device
        )  # so that the peak is that of training, without loading and the first evaluation
        # A signal may reach only some ranks; all must leave the loop at the same step.
        while log.step < steps.count and not distributed.any_rank(stop.number is not None, run.world):
            rows = run.packed.rows_of_step(log.step, steps, seed)
            lr = run.config.learning_rate * schedule(log.step)  # schedule and rows count steps from 0
            try:
                result = trainer.step(log.step + 1, rows, lr)
            except LostStep:
                log.rewind(trainer.recover_from_oom(checkpoint.load_latest(run.folder), log.step + 1))
                continue
            log.record_step(result)
            if evaluator.is_due(log.step):
                _evaluate(evaluator, TUNED, log)
                evaluated = log.step
            if log.is_save_due():
                log.save(trainer)
        log.save(trainer)  # also if it was stopped; does nothing if this step is saved already
        if log.step < steps.count:
            return log.stop(stop.number)
        if evaluated != log.step:
            _evaluate(evaluator, TUNED, log)
        return log.finish(export.finish(run.folder, trainer.model, _result_info(run, base), run.world))


def _load_checkpoint(request: Request) -> Loaded | None:
    """Load the newest intact checkpoint; return None for a run that ended before its first one, which starts over."""
    folder, warn = request.folder, request.reporter.warn
    loaded = checkpoint.load_latest(folder, resumption.check)
    if loaded is None:
        warn(f"the run {str(folder)!r} has no checkpoint yet; it starts over from the first step")
        return None
    for text in loaded.warnings:
        warn(text)
    if loaded.state.optimizer is None:
        raise CheckpointError(
            f"the checkpoint {str(loaded.path)!r} has weights but not the optimizer's state that --resume needs; "
            f"start a new run from it: --init {loaded.path}"
        )
    return loaded


def _use_reference(run: Run, trainer: Trainer, evaluator: Evaluator) -> None:
    """Compare the pairs of a run with the model as it was before the first step. Collective."""
    key = reference.key(trainer.fingerprint, run.data.train, run.data.eval)
    found = reference.load_or_compute(run.folder, key, evaluator.score, run.world, run.reporter)
    trainer.use_reference(found.train)
    evaluator.reference = found.eval


def _evaluate(evaluator: Evaluator, which: str, log: RunLog) -> None:
    """Compute and record held-out loss and sample answers of the base or the tuned model."""
    if (loss := evaluator.loss(which)) is not None:
        log.record_loss(which, loss)
    if samples := evaluator.samples(which):
        log.record_samples(which, samples)


def _result_info(run: Run, base: Fingerprint | None) -> ResultInfo:
    """Return the result's prompt format and origin; `base` is the fingerprint of the model that was loaded."""
    source, seed = run.source, run.config.train.seed
    origin = Origin(
        base=source.name,
        folder=source.folder,
        method=run.config.method.kind,
        quantised=run.config.method.quantised,
        fingerprint=base,
        create=lambda: loader.load_model(source, dtype=DTYPES[run.device.dtype], device="cpu", seed=seed),
    )
    return ResultInfo(export.serving_for(run.renderer), origin, int(run.data.facts["window"]))


@dataclass
class _Hold:
    """A hold on the run's folder."""

    keep: bool = False  # the folder if an error ends the run, as from the first step on


@contextmanager
def _hold_folder(run: Run) -> Iterator[_Hold]:
    """Create and lock the run's folder, on the rank that writes; a new one is removed if the run is refused."""
    hold = _Hold()
    if not run.world.main:
        yield hold
        return
    is_new = not run.folder.exists()
    try:
        with run_folder.lock(run.folder):
            yield hold
    except Exception:
        if is_new and not hold.keep:
            files.remove(run.folder, run.folder.parent)
        raise


# ---- signals


@dataclass
class _Stop:
    """A request to stop."""

    number: int | None = None  # of the signal; None before one arrives


@contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request to save and stop.

    A second one ends the run at once. Ignored signals, such as SIGHUP under nohup, stay ignored.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield stop
        return
    current = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in current.items() if handler != signal.SIG_IGN}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.number = number
        restore()

    for number in handlers:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        restore()
