"""Evaluations made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from curate.results.files import (
    Contamination,
    Evaluation,
    EvaluationSettings,
    GroupScores,
    Score,
    TaskScores,
)

SETTINGS = EvaluationSettings(
    lm_eval="0.4.13",
    chat_template=True,
    template_sha256="a" * 64,
    fewshot_as_multiturn=True,
    shots=None,
    limit=None,
    seed=1,
    batch="8",
    dtype="float32",
    device="cpu",
    quantised=False,
)


def task(name: str, raw: float, normalised: float = 0.0, **changes: Any) -> TaskScores:
    made = TaskScores(
        name, "1.0", "c" * 64, "d" * 64, 0, 4, (Score("acc", "none", raw, 0.1, raw),), ("acc,none",),
        raw, 0.1, 0.25, normalised, raw, normalised, 3, ("2",), 0, ("0", "1", "2", "3"), (1.0, 0.0, 1.0, 0.0),
    )  # fmt: skip
    return replace(made, **changes)


def evaluation(
    tasks: Sequence[TaskScores], groups: Mapping[str, Mapping[str, Sequence[str]]] | None = None, **settings: Any
) -> Evaluation:
    made = [
        GroupScores(name, {member: tuple(names) for member, names in members.items()})
        for name, members in (groups or {}).items()
    ]
    where = Contamination("curated", "e" * 64, 12, 0.5)
    return Evaluation("run", "f" * 64, replace(SETTINGS, **settings), where, tuple(tasks), tuple(made))
