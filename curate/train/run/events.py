"""The events of a run in progress, for a terminal or a program to handle. Only rank 0 sends them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.train.planning.plan import Plan
    from curate.train.run.records import EvalLoss, Sample


@dataclass(frozen=True)
class Reported:
    """What the run is doing, in one line."""

    text: str


@dataclass(frozen=True)
class Rendered:
    """Some of the set's rows are rendered and proven."""

    rows: int
    total: int  # at most
    seconds: float  # since the first batch was begun

    @property
    def rows_per_second(self) -> float:
        """The rate so far."""
        return self.rows / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """The time left at the rate so far."""
        return max(0, self.total - self.rows) / max(self.rows_per_second, 1e-9)


@dataclass(frozen=True)
class Warned:
    """A problem that does not stop the run, in one line."""

    text: str


@dataclass(frozen=True)
class Planned:
    """The run is planned; `facts` are the contents of `run.json` so far."""

    plan: Plan
    facts: dict[str, Any]


@dataclass(frozen=True)
class Started:
    """The first step is about to begin."""

    run: Path
    step: int  # steps already done
    steps: int  # of the whole run
    trained: int  # parameters
    parameters: int  # of the model, with adapters


@dataclass(frozen=True)
class Stepped:
    """A step is done. Numbers are over all ranks."""

    step: int  # from 1
    steps: int  # of the whole run
    epoch: float  # epochs that are done, with a fraction
    loss: float  # per supervised token of the global batch, or per pair
    lr: float
    norm: float  # of the gradients, before clipping
    tokens: int  # without padding
    supervised: int  # tokens
    seconds: float
    tokens_per_s: float
    mfu: float  # model FLOPs utilisation, as a share of the measured rate of matrix products
    gib: float  # peak memory so far, of the rank with the highest
    waited: float  # share of the time in which tensors were prepared
    seconds_left: float  # estimated from the latest steps
    metrics: Mapping[str, float] = field(default_factory=dict)  # more that the objective measures, such as accuracy

    def record(self) -> dict[str, Any]:
        """Return the step's line of `metrics.jsonl`."""
        return {
            "step": self.step,
            "epoch": round(self.epoch, 4),
            "loss": self.loss,
            "lr": self.lr,
            "norm": self.norm,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "seconds": round(self.seconds, 4),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "mfu": round(self.mfu, 4),
            "gib": round(self.gib, 3),
            "waited": round(self.waited, 4),
            **{name: round(value, 6) for name, value in self.metrics.items()},
        }


@dataclass(frozen=True)
class Evaluated:
    """The held-out loss of the `base` or the `tuned` model (`which`) was computed."""

    step: int
    which: str
    loss: EvalLoss


@dataclass(frozen=True)
class Sampled:
    """Prompts were answered by the `base` or the `tuned` model (`which`)."""

    step: int
    which: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    step: int
    path: Path
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The run has ended."""

    run: Path
    status: str  # finished or stopped
    step: int
    result: Path | None  # folder with the model or adapter, if finished
    report: Path | None  # the run's page


Event = Reported | Rendered | Warned | Planned | Started | Stepped | Evaluated | Sampled | Saved | Finished
OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Do nothing with an event."""


@dataclass(frozen=True)
class Reporter:
    """Sends a run's events to a handler."""

    send: OnEvent = ignore_event

    def say(self, text: str) -> None:
        """Report what the run is doing."""
        self.send(Reported(text))

    def warn(self, text: str) -> None:
        """Report a problem that does not stop the run."""
        self.send(Warned(text))


class RenderProgress:
    """Reports how many rows of the set are rendered; called with the rows that are done and all."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.begin = time.monotonic()  # seconds

    def __call__(self, done: int, rows: int) -> None:
        self.reporter.send(Rendered(done, rows, time.monotonic() - self.begin))
