"""Choose the objective that a run's settings name."""

from __future__ import annotations

from curate.train.config import ObjectiveSettings
from curate.train.objectives.dpo import Dpo
from curate.train.objectives.objective import Objective
from curate.train.objectives.sft import Sft


def choose(settings: ObjectiveSettings) -> Objective:
    """Return the objective of a run."""
    return Dpo(settings) if settings.kind == "dpo" else Sft()
