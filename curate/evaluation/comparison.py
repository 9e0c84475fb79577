"""Compare the scores of two models, only where both were asked in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from curate.errors import InputError
from curate.results import files as results
from curate.results.files import Evaluation, TaskScores, mean

LABELS = {
    "lm_eval": "version of lm-eval",
    "chat_template": "chat template applied",
    "template_sha256": "chat template",
    "fewshot_as_multiturn": "examples as turns",
    "batch": "batch size",
    "quantised": "4 bits",
    "shots": "shots",
    "version": "version",
    "config_sha256": "settings",
    "items_sha256": "documents",
}
ASKED = ("version", "config_sha256", "items_sha256", "shots")  # of a task


@dataclass(frozen=True)
class ComparedTask:
    """The scores of two models on a task; `stderr` is that of the difference, from the same items in pairs."""

    task: str
    shots: int
    items: int
    one: float | None
    other: float | None
    difference: float | None
    stderr: float | None


@dataclass(frozen=True)
class EvaluationComparison:
    """Tasks that both models were asked, those that only one was, and what differs in how they were asked."""

    one: str
    other: str
    tasks: tuple[ComparedTask, ...]
    alone: tuple[str, ...]
    unlike: tuple[str, ...]


def compare_evaluations(one: str | Path, other: str | Path, *, unlike: bool = False) -> EvaluationComparison:
    """Compare two results of `evaluate`, each a file, or a run with one.

    Raises InputError where the models were asked in different ways, and names them; `unlike` compares all the same.
    """
    candidates = _evaluations(Path(one)), _evaluations(Path(other))
    pairs = [(first, second) for first in candidates[0] for second in candidates[1] if _shared(first, second)]
    if not pairs:
        raise InputError(f"{str(one)!r} and {str(other)!r} have no task in common; evaluate both with the same --tasks")
    # Of several results, those that are alike and share most.
    first, second = min(pairs, key=lambda pair: (len(differences(*pair)), -len(_shared(*pair))))
    found = differences(first, second)
    if found and not unlike:
        raise InputError(
            f"{str(one)!r} and {str(other)!r} were asked in different ways: {'; '.join(found)}; "
            "evaluate one again as the other, or compare all the same: --unlike"
        )
    shared = _shared(first, second)
    compared = tuple(_compare(*_pair(first, second, task)) for task in shared)
    alone = {task.task for each in (first, second) for task in each.tasks} - set(shared)
    return EvaluationComparison(str(one), str(other), compared, tuple(sorted(alone)), tuple(found))


def _evaluations(path: Path) -> list[Evaluation]:
    """Return the evaluations in a file, a folder of results or a run; raises InputError if there is none."""
    if path.is_dir():
        folder = path / results.FOLDER if (path / results.FOLDER).is_dir() else path
        found = [result for _, result in results.read_all(folder) if isinstance(result, Evaluation)]
        if not found:
            raise InputError(f"{str(path)!r} has no evaluation; make one: curate evaluate {path} --tasks TASK")
        return found
    result = results.read(path)
    if not isinstance(result, Evaluation):
        raise InputError(f"{str(path)!r} is not an evaluation")
    return [result]


def _shared(one: Evaluation, other: Evaluation) -> list[str]:
    names = {task.task for task in other.tasks}
    return [task.task for task in one.tasks if task.task in names]


def _pair(one: Evaluation, other: Evaluation, name: str) -> tuple[TaskScores, TaskScores]:
    first, second = (next(task for task in each.tasks if task.task == name) for each in (one, other))
    return first, second


def differences(one: Evaluation, other: Evaluation) -> list[str]:
    """Return what differs in how two models were asked the tasks that both have, in words."""
    found = list(_settings(one, other))
    for name in _shared(one, other):
        first, second = _pair(one, other, name)
        for key in ASKED:
            if getattr(first, key) != getattr(second, key):
                found.append(f"{name}: {_describe(key, getattr(first, key), getattr(second, key))}")
    return found


def _settings(one: Evaluation, other: Evaluation) -> Iterator[str]:
    before, after = asdict(one.settings), asdict(other.settings)
    for key, value in before.items():
        # What --shots made of each task is compared there; that one has no template is said once.
        implied = key == "shots" or (key == "template_sha256" and not (value and after[key]))
        if value != after[key] and not implied:
            yield _describe(key, value, after[key])


def _describe(key: str, one: object, other: object) -> str:
    shown = [str(value)[:8] if key.endswith("sha256") else _word(value) for value in (one, other)]
    return f"{LABELS.get(key, key)} {shown[0]} and {shown[1]}"


def _word(value: object) -> str:
    if value is None:
        return "none"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _compare(one: TaskScores, other: TaskScores) -> ComparedTask:
    known = one.raw is not None and other.raw is not None
    difference = other.raw - one.raw if one.raw is not None and other.raw is not None else None
    return ComparedTask(
        one.task, one.shots, one.items, one.raw, other.raw, difference, _paired_stderr(one, other) if known else None
    )


def _paired_stderr(one: TaskScores, other: TaskScores) -> float | None:
    """Return the standard error of the mean difference over the same items; None without those."""
    if one.item_ids != other.item_ids or len(one.item_ids) < 2:
        return None
    changes = [after - before for before, after in zip(one.item_scores, other.item_scores, strict=True)]
    centre = mean([*changes]) or 0.0
    return math.sqrt(math.fsum((change - centre) ** 2 for change in changes) / (len(changes) - 1) / len(changes))
