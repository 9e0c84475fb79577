"""What a run writes down as it goes, and tells: metrics, checkpoints, facts, and the page; by the first rank alone."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from curate._version import __version__
from curate.errors import CheckpointError
from curate.model import device, sizes
from curate.train import checkpoint, distributed, evaluation, prepare, setup
from curate.train import examples as train_examples
from curate.train.checkpoint import Loaded
from curate.train.config import TrainConfig
from curate.train.distributed import World
from curate.train.evaluation import EvalLoss, Sample
from curate.train.plan import Plan
from curate.train.prepare import Prepared
from curate.train.report import html
from curate.train.run import events, loggers, records
from curate.train.run import folder as run_folder
from curate.train.run.events import OnEvent, Stepped
from curate.train.setup import Alive
from curate.train.trainer import Outcome, Trainer

SHOWN_MASKS = 8  # conversations whose mask the run's page shows
RECENT = 20  # steps that the time left goes by
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors")
SAME = ("manifest_sha256", "template", "window", "tokenizer_hash", "conversations", "tokens", "supervised")


@dataclass(frozen=True)
class RunResult:
    """What came of a run: `status` is `planned`, `finished` or `stopped`; `result` the folder with what was trained.

    `signal` is the one that stopped it. `loss` is that of the last step, `base` and `tuned` the held-out losses.
    """

    run: Path
    status: str
    plan: Plan
    facts: Mapping[str, Any]
    step: int = 0
    loss: float | None = None
    base: EvalLoss | None = None
    tuned: EvalLoss | None = None
    result: Path | None = None
    report: Path | None = None
    signal: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `curate finetune --json` prints."""
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


class Journal:
    """The run's records so far."""

    def __init__(self, folder: Path, ready: Prepared, world: World, tell: OnEvent, loaded: Loaded | None) -> None:
        self.folder = folder
        self.ready = ready
        self.world = world
        self.tell = tell
        self.step = 0 if loaded is None else loaded.state.step
        before: Mapping[str, Any] = {} if loaded is None else loaded.state.facts
        self.seconds: float = before.get("seconds", 0.0)
        self.saved_step = self.step
        self.saved_at = time.monotonic()
        self.loss: float | None = before.get("loss")
        self.losses: dict[str, EvalLoss] = {}
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.lengths = ready.data.train.lengths
        self.loggers: list[loggers.Logger] = []
        self.facts: dict[str, Any] = {**ready.facts(), "versions": _versions()}
        if loaded is not None:
            self._check_same_data(before["data"])

    def _check_same_data(self, before: Mapping[str, Any]) -> None:
        """Refuse to go on with other data than the run began with: its rows would not be the next ones."""
        for key, value in self._identity().items():
            if before.get(key) != value:
                raise CheckpointError(
                    f"the data is not what the run began with: {key} was {before.get(key)!r}, is {value!r}; put the "
                    "set back as it was, or start a new run"
                )

    def _identity(self) -> dict[str, Any]:
        facts, rows = self.ready.data.facts, self.ready.rows
        return {**{key: facts[key] for key in SAME}, "rows": len(rows), "row_tokens": self.ready.row_tokens}

    # ---- the beginning

    @contextmanager
    def open(self, config: TrainConfig) -> Iterator[None]:
        """Write what is known before the first step; note how the run ended, should it end by an error."""
        if self.world.main:
            run_folder.write_config(self.folder, config)
            run_folder.write_json(self.folder, records.PLAN, self.ready.plan.to_dict())
            train_examples.write_left_out(self.folder / records.LEFT_OUT, self.ready.data.failures)
            self._write_masks()
            ends = (0, self.ready.plan.steps.count)  # where a resumed run looks again
            run_folder.trim(self.folder, self.step, looks_again=self.step in ends)
            self.loggers = loggers.start(config.train.log, self.folder, config.to_dict())
        self.write_facts("running")
        try:
            yield
        except KeyboardInterrupt as stop:  # the second wish to stop, which waits for nothing
            self.write_facts(f"stopped in step {self.step + 1}: curate finetune --resume {self.folder}")
            stop.args = (f"what was saved stands: curate finetune --resume {self.folder}",)
            raise
        except BaseException as error:
            self.write_facts(f"failed in step {self.step + 1}: {str(error) or type(error).__name__}")
            raise
        finally:
            for one in self.loggers:
                one.close()

    def _write_masks(self) -> None:
        (self.folder / records.MASKED).unlink(missing_ok=True)
        tokenizer, examples = self.ready.source.tokenizer, self.ready.data.train
        records.append(self.folder / records.MASKED, evaluation.masked(tokenizer, examples, SHOWN_MASKS))

    def started(self, alive: Alive) -> None:
        """Tell that the first step is next."""
        self.facts |= {"trained_parameters": alive.trained, "parameters": alive.parameters}
        self.write_facts("running")
        count = self.ready.plan.steps.count
        self.tell(events.Started(self.folder, self.step, count, alive.trained, alive.parameters))

    # ---- steps

    def stepped(self, trainer: Trainer, outcome: Outcome, rows: Sequence[int], lr: float, seconds: float) -> None:
        """Write down and tell a step."""
        self.step += 1
        self.seconds += seconds
        self.recent.append(seconds)
        steps, load = self.ready.plan.steps, self.ready.plan.load
        members = [index for row in rows for index in self.ready.rows[row]]
        work = sizes.work(self.lengths[members].tolist(), outcome.supervised)
        event = Stepped(
            step=self.step,
            steps=steps.count,
            epoch=min(self.step * steps.rows, steps.total_rows) / load.rows,
            loss=outcome.loss,
            lr=lr,
            norm=outcome.norm,
            tokens=work.tokens,
            supervised=work.supervised,
            seconds=seconds,
            tokens_per_s=work.tokens / seconds,
            mfu=self._mfu(work, seconds),
            gib=max(distributed.gather(device.peak_gib(self.world.device), self.world)),
            waited=outcome.waited / seconds,
            seconds_left=(steps.count - self.step) * float(np.mean(self.recent)),
        )
        self.loss = outcome.loss
        if outcome.skipped:
            self.tell(events.Warned(f"step {self.step}: an fp16 gradient overflowed; the loss is scaled down"))
        if self.world.main:
            records.append(self.folder / records.METRICS, [event.record()])
        self._log({name: value for name, value in event.record().items() if name in loggers.SHOWN})
        self.tell(event)

    def _mfu(self, work: sizes.Work, seconds: float) -> float:
        planned, full = self.ready.plan, self.ready.config.method.kind == "full"
        done = sizes.flops(self.ready.shape, work, full=full, adapters=0 if full else planned.trained)
        return done / seconds / (self.ready.device.rate * self.world.size)

    def _log(self, values: Mapping[str, float]) -> None:
        for one in self.loggers:
            one.numbers(dict(values), self.step)

    def back(self, step: int) -> None:
        """Forget the steps after one that the run has gone back to."""
        self.step = self.saved_step = step
        if self.world.main:
            run_folder.trim(self.folder, step)

    # ---- looks

    def evaluated(self, which: str, loss: EvalLoss) -> None:
        """Write down and tell a held-out loss."""
        self.losses[which] = loss
        if self.world.main:
            records.append(self.folder / records.EVAL, [loss.record(self.step, which)])
        if loss.overall.loss is not None:
            self._log({f"held out, {which}": loss.overall.loss})
        self.tell(events.Evaluated(self.step, which, loss))

    def sampled(self, which: str, samples: Sequence[Sample]) -> None:
        """Write down and tell some answers."""
        if self.world.main:
            records.append(self.folder / records.SAMPLES, [one.record(self.step, which) for one in samples])
        self.tell(events.Sampled(self.step, which, tuple(samples)))

    # ---- checkpoints

    def is_save_due(self) -> bool:
        """Tell whether a checkpoint is due, by steps or by rank 0's clock."""
        due = self.ready.config.checkpoint
        by_steps = bool(due.steps) and self.step - self.saved_step >= due.steps
        by_clock = bool(due.minutes) and time.monotonic() - self.saved_at >= due.minutes * 60
        return by_steps or (bool(due.minutes) and distributed.broadcast(by_clock, self.world))

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of this step, unless there is one; every rank calls it."""
        if self.saved_step == self.step and self.step:
            return
        begin = time.perf_counter()
        facts = {
            **prepare.choices(self.ready),
            "data": self._identity(),
            "seconds": self.seconds,
            "loss": self.loss,
        }
        keep = self.ready.config.checkpoint
        path = checkpoint.save(
            self.folder,
            setup.state(trainer, self.step, facts),
            keep=keep.keep,
            full_states=keep.full_states,
            writes=self.world.main,
        )
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.tell(events.Saved(self.step, path, time.perf_counter() - begin))

    # ---- the end

    def write_facts(self, status: str) -> None:
        """Write `run.json`."""
        if self.world.main:
            now = {"status": status, "step": self.step, "seconds": round(self.seconds, 1)}
            run_folder.write_json(self.folder, records.FACTS, {**now, **self.facts})

    def stopped(self, number: int | None) -> RunResult:
        """Write down and tell that the run was asked to stop; it can go on."""
        self.write_facts(f"stopped at step {self.step}: curate finetune --resume {self.folder}")
        return self._end("stopped", None, number)

    def finished(self, result: Path) -> RunResult:
        """Write down and tell that the run is over, and where its result is."""
        self.facts["result"] = str(result)
        self.write_facts("finished")
        return self._end("finished", result, None)

    def _end(self, status: str, result: Path | None, number: int | None) -> RunResult:
        report = html.write(self.folder) if self.world.main else None
        self.tell(events.Finished(self.folder, status, self.step, result, report))
        base, tuned = (self.losses.get(which) for which in (records.BASE, records.TUNED))
        return RunResult(
            run=self.folder,
            status=status,
            plan=self.ready.plan,
            facts=self.facts,
            step=self.step,
            loss=self.loss,
            base=base,
            tuned=tuned,
            result=result,
            report=report,
            signal=number,
        )


def _versions() -> dict[str, str]:
    found = {"curate": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
