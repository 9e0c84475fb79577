"""Scores of an evaluation, and the comparison of two, in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from curate.display import terminal
from curate.display.figures import number, percent
from curate.results.files import Evaluation, TaskScores
from curate.results.groups import GroupRow, group_rows

NUMBERS = ("shots", "items", "score", "±", "normalised", "not trained on", "items left")


def render_evaluation(evaluation: Evaluation) -> RenderableType:
    """Render the scores of each task and group, in percent; ± is the standard error."""
    knows = not evaluation.contamination.problem
    table = _table("task", NUMBERS if knows else NUMBERS[:-2])
    for task in evaluation.tasks:
        _add(table, _cells(task), knows)
    for group, members in group_rows(evaluation):
        table.add_section()
        for member in [each for each in members if each.tasks > 1]:
            _add(table, _group_cells(member), knows)
        _add(table, _group_cells(group, "bold"), knows)
    lines = [terminal.safe_text(line, "dim") for line in _notes(evaluation)]
    return Group(table, Text(), *lines)


def _table(first: str, columns: Iterable[str]) -> Table:
    table = terminal.plain_table()
    table.add_column(first, style="bold")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _add(table: Table, cells: Sequence[str | Text], knows: bool) -> None:
    table.add_row(*(cells if knows else cells[:-2]))


def _cells(task: TaskScores) -> list[str | Text]:
    clean = "" if task.clean_items == task.items else number(task.clean_items)
    return [
        terminal.safe_text(task.task),
        str(task.shots),
        number(task.items),
        _share(task.raw),
        _share(task.stderr),
        _share(task.normalised),
        _share(task.clean_raw),
        clean or "all",
    ]


def _group_cells(row: GroupRow, style: str = "") -> list[str | Text]:
    scores = _share(row.raw), "", _share(row.normalised), _share(row.clean_raw)
    return [terminal.safe_text(row.name, style), "", f"{row.tasks} tasks", *scores, ""]


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def _notes(evaluation: Evaluation) -> Iterable[str]:
    """Say how the model was asked, and what the items were looked for in."""
    settings, where = evaluation.settings, evaluation.contamination
    asked = f"as chats, template {settings.template_sha256[:8]}" if settings.chat_template else "as plain text"
    turns = ", examples as turns" if settings.fewshot_as_multiturn else ""
    limit = f", the first {number(settings.limit)} items only" if settings.limit is not None else ""
    yield f"asked {asked}{turns}{limit}; lm-eval {settings.lm_eval}, seed {settings.seed}, batch {settings.batch}"
    if where.problem:
        yield f"not compared with a training set: {where.problem}"
    else:
        yield f"items were looked for in {number(where.rows)} pieces of {where.set}"


def render_comparison(one: str, other: str, rows: Iterable[Sequence[object]]) -> RenderableType:
    """Render tasks with both scores; a row: task, shots, items, scores, their difference and its standard error."""
    table = _table("task", ("shots", "items", one, other, "difference", "±"))
    for task, shots, items, *values in rows:
        before, after, difference, stderr = (value if isinstance(value, float) else None for value in values)
        change = "" if difference is None else percent(difference, signed=True)
        cells = (str(shots), str(items), _share(before), _share(after), change, _share(stderr))
        table.add_row(terminal.safe_text(str(task)), *cells)
    return table
