"""What a run tells while it goes on: frozen events, for a screen, a log or a program to take as it likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.train.evaluation import EvalLoss, Sample
    from curate.train.plan import Plan


@dataclass(frozen=True)
class Said:
    """A line about what is being done."""

    text: str


@dataclass(frozen=True)
class Warned:
    """A line about something that is not as it should be, while the run goes on."""

    text: str


@dataclass(frozen=True)
class Planned:
    """What the run will do; `facts` are those of `run.json` so far."""

    plan: Plan
    facts: dict[str, Any]


@dataclass(frozen=True)
class Started:
    """The first step is next: from which step on, in which folder."""

    run: Path
    step: int
    steps: int
    trained: int
    parameters: int


@dataclass(frozen=True)
class Stepped:
    """A step is done. `loss` is per supervised token of the whole global step, `norm` that of its gradients.

    `mfu` counts strictly, over the device's measured matrix products; `gib` is the most memory held so far;
    `seconds_left` goes by the latest steps; `waited` is the share of the time that went into fetching data.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    lr: float
    norm: float
    tokens: int
    supervised: int
    seconds: float
    tokens_per_s: float
    mfu: float
    gib: float
    waited: float
    seconds_left: float

    def record(self) -> dict[str, Any]:
        """Return the line of `metrics.jsonl`."""
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
        }


@dataclass(frozen=True)
class Evaluated:
    """The held-out loss was taken, of the `base` or the `tuned` model."""

    step: int
    which: str
    loss: EvalLoss


@dataclass(frozen=True)
class Sampled:
    """Prompts were answered, by the `base` or the `tuned` model."""

    step: int
    which: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Saved:
    """A checkpoint stands."""

    step: int
    path: Path
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The run is over: `status` is `finished` or `stopped`; `result` the folder with the model, if there is one."""

    run: Path
    status: str
    step: int
    result: Path | None
    report: Path | None


Event = Said | Warned | Planned | Started | Stepped | Evaluated | Sampled | Saved | Finished
OnEvent = Callable[[Event], None]


def unheard(event: Event) -> None:
    """Take an event and do nothing with it."""
