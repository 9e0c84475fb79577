"""The scores of groups of tasks, such as a leaderboard, from those of their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curate.results.files import Evaluation, TaskScores, mean


@dataclass(frozen=True)
class GroupRow:
    """The scores of a group, or of one of its members; None where a task of it is missing."""

    name: str
    tasks: int
    raw: float | None
    normalised: float | None
    clean_raw: float | None
    clean_normalised: float | None


def group_rows(evaluation: Evaluation) -> list[tuple[GroupRow, list[GroupRow]]]:
    """Return each group with its members: a member is the mean of its tasks, the group that of its members."""
    by_name = {task.task: task for task in evaluation.tasks}
    rows = []
    for group in evaluation.groups:
        members = [_member(name, [by_name.get(task) for task in tasks]) for name, tasks in group.members.items()]
        tasks = sum(len(tasks) for tasks in group.members.values())
        rows.append((GroupRow(group.group, tasks, *_means(members)), members))
    return rows


def _member(name: str, tasks: Sequence[TaskScores | None]) -> GroupRow:
    return GroupRow(name, len(tasks), *_means(tasks))


def _means(parts: Sequence[GroupRow | TaskScores | None]) -> tuple[float | None, ...]:
    names = ("raw", "normalised", "clean_raw", "clean_normalised")
    return tuple(mean([None if part is None else getattr(part, name) for part in parts]) for name in names)
