"""Record a run as it proceeds, and report it: metrics, evaluations, checkpoints, facts, and the run's page.

Every rank has a `RunLog` and calls the same methods in the same order, because some exchange values between ranks. Only
rank 0 writes files.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from curate import files
from curate._version import __version__
from curate.errors import CheckpointError
from curate.model import device, sizes
from curate.model.adapters import Trainable
from curate.model.choices import METHODS
from curate.model.fingerprint import Fingerprint, difference
from curate.settings import decode_json
from curate.train import checkpoint, distributed, evaluation, examples
from curate.train.checkpoint import Loaded
from curate.train.planning.plan import Plan
from curate.train.prepare import Run
from curate.train.report import html
from curate.train.run import events, loggers, records
from curate.train.run import folder as run_folder
from curate.train.run.events import Stepped
from curate.train.run.records import EvalLoss, Sample
from curate.train.trainer import StepResult, Trainer

SHOWN_MASKS = 8  # examples whose loss mask the run's page shows
RECENT = 20  # last steps, from which the remaining time is estimated
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors")  # whose versions `run.json` records
# Facts about the data that must be the same when a run is resumed.
SAME = (
    "manifest_sha256",
    "identity_sha256",
    "template",
    "window",
    "tokenizer_hash",
    "conversations",
    "tokens",
    "supervised",
)


@dataclass(frozen=True)
class RunResult:
    """The result of a run; one that was only planned has neither steps nor losses."""

    run: Path  # its folder
    status: str  # planned, finished or stopped
    plan: Plan
    facts: Mapping[str, Any]
    step: int = 0
    loss: float | None = None  # of the last step
    base: EvalLoss | None = None  # held out, before training
    tuned: EvalLoss | None = None  # held out, after training
    result: Path | None = None  # folder with the model or adapter
    report: Path | None = None  # the run's page
    signal: int | None = None  # that stopped the run

    def to_dict(self) -> dict[str, Any]:
        """Return the output of `curate finetune --json`."""
        held_out = {which: loss.overall.loss for which, loss in (("base", self.base), ("tuned", self.tuned)) if loss}
        return {
            "run": str(self.run),
            "status": self.status,
            "step": self.step,
            "loss": self.loss,
            "held_out": held_out,
            "result": str(self.result) if self.result else None,
            "report": str(self.report) if self.report else None,
            "signal": self.signal,
            "plan": self.plan.to_dict(),
            "facts": dict(self.facts),
        }


class RunLog:
    """The records of a run: its counters, and the files that they are written to.

    Raises CheckpointError if the run is resumed with different data.
    """

    def __init__(self, run: Run, loaded: Loaded | None) -> None:
        before: Mapping[str, Any] = {} if loaded is None else loaded.state.facts
        self.run = run
        self.folder = run.folder
        self.world = run.world
        self.send = run.reporter.send
        self.step = 0 if loaded is None else loaded.state.step  # steps that are done
        self.seconds: float = before.get("seconds", 0.0)  # of training, without evaluations
        self.loss: float | None = before.get("loss")  # of the last step
        self.saved_step = self.step  # of the last checkpoint
        self.saved_at = time.monotonic()  # seconds
        self.losses: dict[str, EvalLoss] = {}  # held out, by BASE and TUNED
        self.recent_seconds: deque[float] = deque(maxlen=RECENT)
        self.loggers: list[loggers.Logger] = []
        self.facts: dict[str, Any] = {**run.facts(), "versions": _versions()}
        self.base: Fingerprint | None = None  # of the model that was loaded
        if loaded is not None:
            self._require_same_data(before["data"])

    def _require_same_data(self, before: Mapping[str, Any]) -> None:
        """Refuse to resume with different data: a step would have different packed rows."""
        for key, value in self._data_identity().items():
            if before.get(key) != value:
                raise CheckpointError(
                    f"the data has changed since the run started: {records.label(key)} was {before.get(key)!r}, is "
                    f"{value!r}; restore the set, or start a new run"
                )

    def use_base(self, base: Fingerprint | None, loaded: Loaded | None) -> None:
        """Record the base that was loaded; raises CheckpointError if the run started from another.

        A checkpoint of a full fine-tune has all weights, so its base no longer matters.
        """
        self.base = base
        before = None if loaded is None else loaded.state.facts.get("base")
        if base is None or before is None or not METHODS[self.run.config.method.kind].adapter:
            return
        if changed := difference(decode_json(Fingerprint, before), base):
            raise CheckpointError(
                f"the base {self.run.source.name!r} has changed since the run started: {changed}; "
                "restore it, or start a new run"
            )

    def _data_identity(self) -> dict[str, Any]:
        """Return the facts that determine the packed rows of each step, for a checkpoint."""
        facts, packed = self.run.data.facts, self.run.packed
        return {**{key: facts[key] for key in SAME}, "rows": len(packed.rows), "row_tokens": packed.row_tokens}

    # ---- the beginning

    @contextmanager
    def open(self) -> Iterator[None]:
        """Write what is known before the first step; if the block raises, record how the run ended."""
        requested = self.run.requested
        if self.world.main:
            run_folder.write_config(self.folder, requested)
            run_folder.write_json(self.folder, records.PLAN, self.run.plan.to_dict())
            examples.write_left_out(self.folder / records.LEFT_OUT, self.run.data.failures)
            self._write_masks()
            # A run that stopped at step 0, or after the last step, evaluates there when it is resumed.
            evaluates_again = self.step in (0, self.run.plan.steps.count)
            run_folder.trim(self.folder, self.step, evaluates_again=evaluates_again)
            self.loggers = loggers.start(requested.train.log, self.folder, requested.to_dict())
        self.write_facts("running")
        try:
            yield
        except KeyboardInterrupt as stop:  # the second signal, which does not wait for a checkpoint
            self.write_facts(f"stopped in step {self.step + 1}: curate finetune --resume {self.folder}")
            stop.args = (f"the last checkpoint is intact: curate finetune --resume {self.folder}",)
            raise
        except BaseException as error:
            self.write_facts(f"failed in step {self.step + 1}: {str(error) or type(error).__name__}")
            raise
        finally:
            for logger in self.loggers:
                logger.close()

    def _write_masks(self) -> None:
        files.remove(self.folder / records.MASKED, self.folder)
        lines = evaluation.decode_masks(self.run.source.tokenizer, self.run.data.train, SHOWN_MASKS)
        records.append(self.folder / records.MASKED, lines)

    def start(self, trainable: Trainable) -> None:
        """Record and report that training begins."""
        self.facts |= {"trained_parameters": trainable.count, "parameters": trainable.total}
        self.write_facts("running")
        count = self.run.plan.steps.count
        self.send(events.Started(self.folder, self.step, count, trainable.count, trainable.total))

    # ---- steps

    def record_step(self, result: StepResult) -> None:
        """Record and report a step. Collective: the ranks exchange their peak memory."""
        self.step = result.step
        self.seconds += result.seconds
        self.loss = result.loss
        self.recent_seconds.append(result.seconds)
        steps, load = self.run.plan.steps, self.run.plan.load
        work = sizes.work(self.run.packed.lengths(result.rows), result.supervised)
        event = Stepped(
            step=self.step,
            steps=steps.count,
            epoch=min(self.step * steps.rows, steps.total_rows) / load.rows,
            loss=result.loss,
            lr=result.lr,
            norm=result.norm,
            tokens=work.tokens,
            supervised=work.supervised,
            seconds=result.seconds,
            tokens_per_s=work.tokens / result.seconds,
            mfu=self._mfu(work, result.seconds),
            gib=max(distributed.gather(device.peak_gib(self.world.device), self.world)),
            waited=result.data_seconds / result.seconds,
            seconds_left=(steps.count - self.step) * float(np.mean(self.recent_seconds)),
            metrics=result.metrics,
        )
        if result.skipped:
            self.run.reporter.warn(f"step {self.step}: an fp16 gradient overflowed; the loss scale is halved")
        if self.world.main:
            records.append(self.folder / records.METRICS, [event.record()])
        self._log({name: value for name, value in event.record().items() if name in loggers.METRICS})
        self.send(event)

    def _mfu(self, work: sizes.Work, seconds: float) -> float:
        """Return the model FLOPs utilisation: operations per second, as a share of the measured rate of all ranks.

        `sizes.flops` counts only what the model needs: no recomputed activations, no padding.
        """
        full = self.run.config.method.full
        adapters = 0 if full else self.run.plan.trained
        flops = sizes.flops(self.run.shape, work, full=full, adapters=adapters)
        return flops / seconds / (self.run.device.rate * self.world.size)

    def _log(self, values: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log(dict(values), self.step)

    def rewind(self, step: int) -> None:
        """Remove the records of the steps after one that the run went back to."""
        self.step = self.saved_step = step
        if self.world.main:
            run_folder.trim(self.folder, step)

    # ---- evaluations

    def record_loss(self, which: str, loss: EvalLoss) -> None:
        """Record and report a held-out loss."""
        self.losses[which] = loss
        if self.world.main:
            records.append(self.folder / records.EVAL, [loss.record(self.step, which)])
        if loss.overall.loss is not None:
            self._log({f"held out, {which}": loss.overall.loss})
        self.send(events.Evaluated(self.step, which, loss))

    def record_samples(self, which: str, samples: Sequence[Sample]) -> None:
        """Record and report sample answers."""
        if self.world.main:
            records.append(self.folder / records.SAMPLES, [sample.record(self.step, which) for sample in samples])
        self.send(events.Sampled(self.step, which, tuple(samples)))

    # ---- checkpoints

    def is_save_due(self) -> bool:
        """Return whether a checkpoint is due, by steps or by the clock of rank 0.

        Collective: all ranks get the same answer, though their clocks differ.
        """
        settings = self.run.config.checkpoint
        by_steps = bool(settings.steps) and self.step - self.saved_step >= settings.steps
        by_clock = bool(settings.minutes) and time.monotonic() - self.saved_at >= settings.minutes * 60
        return by_steps or (bool(settings.minutes) and distributed.broadcast(by_clock, self.world))

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of this step unless there is one. Collective: every rank must call this."""
        if self.saved_step == self.step and self.step:
            return
        begin = time.perf_counter()
        facts = {
            **self.run.choices(),
            "data": self._data_identity(),
            "seconds": self.seconds,
            "loss": self.loss,
            "base": None if self.base is None else asdict(self.base),
        }
        settings = self.run.config.checkpoint
        path = checkpoint.save(
            self.folder,
            trainer.state(self.step, facts),
            keep=settings.keep,
            full_states=settings.full_states,
            writes=self.world.main,
        )
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.send(events.Saved(self.step, path, time.perf_counter() - begin))

    # ---- the end

    def write_facts(self, status: str) -> None:
        """Write `run.json`."""
        if self.world.main:
            progress = {"status": status, "step": self.step, "seconds": round(self.seconds, 1)}
            run_folder.write_json(self.folder, records.FACTS, {**progress, **self.facts})

    def stop(self, signal: int | None) -> RunResult:
        """Record and report that the run stopped at a signal; it can be resumed."""
        self.write_facts(f"stopped at step {self.step}: curate finetune --resume {self.folder}")
        return self._end("stopped", None, signal)

    def finish(self, result: Path) -> RunResult:
        """Record and report that the run is finished, with the folder of its result."""
        self.facts["result"] = str(result)
        self.write_facts("finished")
        return self._end("finished", result, None)

    def _end(self, status: str, result: Path | None, signal: int | None) -> RunResult:
        report = html.write(self.folder) if self.world.main else None
        self.send(events.Finished(self.folder, status, self.step, result, report))
        return RunResult(
            run=self.folder,
            status=status,
            plan=self.run.plan,
            facts=self.facts,
            step=self.step,
            loss=self.loss,
            base=self.losses.get(records.BASE),
            tuned=self.losses.get(records.TUNED),
            result=result,
            report=report,
            signal=signal,
        )


def _versions() -> dict[str, str]:
    versions = {"curate": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
