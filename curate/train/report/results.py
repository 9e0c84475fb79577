"""The parts of a run's page on what was measured of its model: benchmarks, judges and votes.

Results are JSON that anyone may have changed: they are read with types checked, and all text is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from curate.display.figures import number, percent, significant
from curate.display.html import Cell, definition_list, escape, table
from curate.results.files import Arena, Estimate, Evaluation, EvaluationSettings, Judge, Result, TaskScores
from curate.results.groups import GroupRow, group_rows

Part = tuple[str, str, str]  # id, title, HTML
T = TypeVar("T", bound=Result)
SHARES = ("score", "±", "normalised", "not trained on")
HEADING = ("task", "shots", "items", *SHARES, "items left")
DIGITS = 12  # of a hash
SHOWN = 200  # rows of a table, at most


def parts(results: Sequence[Result], unread: Sequence[str]) -> list[Part]:
    """Return the parts for these results; `unread` are files that could not be read."""
    sections: list[Part] = [
        ("benchmarks", "Benchmarks", _all(results, Evaluation, _evaluation)),
        ("judge", "Judge", _all(results, Judge, _judge)),
        ("arena", "Arena", _all(results, Arena, _arena)),
    ]
    notes = "".join(f'<p class="note">{escape(name)} cannot be read, and is left out</p>' for name in unread)
    return [*sections, ("results", "Results left out", notes)]


def _all(results: Iterable[Result], kind: type[T], render: Callable[[T], str]) -> str:
    return "".join(render(result) for result in results if isinstance(result, kind))


# ---- benchmarks


def _evaluation(result: Evaluation) -> str:
    rows: list[Sequence[Cell]] = [_task(task) for task in result.tasks[:SHOWN]]
    for group, members in group_rows(result):
        rows += [_group(member, f"{group.name}: {member.name}") for member in members if member.tasks > 1]
        rows.append(_group(group, f"{group.name} (mean)"))
    left = len(result.tasks) - SHOWN
    note = f'<p class="note">{number(left)} further tasks are in the file</p>' if left > 0 else ""
    formats = dict.fromkeys(SHARES, percent)
    return table(f"scores of {result.model}", HEADING, rows, formats) + note + definition_list(_asked(result))


def _task(task: TaskScores) -> tuple[Cell, ...]:
    scores = task.raw, task.stderr, task.normalised, task.clean_raw
    return task.task, task.shots, task.items, *scores, task.clean_items if task.clean_raw is not None else None


def _group(row: GroupRow, name: str) -> tuple[Cell, ...]:
    return name, None, None, row.raw, None, row.normalised, row.clean_raw, None


def _asked(result: Evaluation) -> list[tuple[str, str]]:
    """Return how the model was asked, and what its items were looked for in, as names and HTML."""
    settings, where = result.settings, result.contamination
    searched = where.problem or f"{number(where.rows)} pieces of {where.set}, set {where.manifest_sha256[:DIGITS]}"
    flagged, unmatched = (sum(counts) for counts in zip(*_dirty(result.tasks), strict=True)) if result.tasks else (0, 0)
    values = {
        "prompts": _prompts(settings),
        "items asked": "" if settings.limit is None else f"the first {number(settings.limit)} of each task",
        "lm-eval": settings.lm_eval,
        "seed": str(settings.seed),
        "batch": settings.batch,
        "computed": f"{settings.dtype} on {settings.device}{', weights in 4 bits' if settings.quantised else ''}",
        "items looked for in": searched,
        "items that were trained on": number(flagged) if not where.problem else "",
        "items too short to look for": number(unmatched) if unmatched else "",
        "weights": result.model_sha256[:DIGITS],
    }
    return [(name, escape(value)) for name, value in values.items()]


def _dirty(tasks: Iterable[TaskScores]) -> list[tuple[int, int]]:
    return [(len(task.flagged), task.unmatched) for task in tasks]


def _prompts(settings: EvaluationSettings) -> str:
    if not settings.chat_template:
        return "plain text"
    turns = "examples as turns" if settings.fewshot_as_multiturn else "examples in one turn"
    return f"chats, template {settings.template_sha256[:DIGITS]}, {turns}"


# ---- judge and arena


def _estimates(caption: str, names: str, value: str, rows: Sequence[Estimate], write: Callable[[float], str]) -> str:
    """Return a table of values with their intervals."""
    heading = (names, value, "from", "to", "count")
    cells = [
        (each.name, each.value, _bound(each.low, "−∞"), _bound(each.high, "∞"), each.count) for each in rows[:SHOWN]
    ]
    return table(caption, heading, cells, dict.fromkeys((value, "from", "to"), write))


def _bound(value: float | None, without: str) -> Cell:
    """Return a bound of an interval; the data may give none, as of a model that never lost."""
    return without if value is None else value


def _judge(result: Judge) -> str:
    pairwise = result.mode == "pair"
    shown = _estimates(
        f"judged by {result.judge}, with 95 % intervals",
        "prompts",
        "win rate" if pairwise else "rating",
        result.estimates,
        percent if pairwise else significant,
    )
    facts = {
        "judge": result.judge,
        "mode": result.mode,
        "against": result.opponent,
        "times each": str(result.repeats),
        "judge's prompt": result.prompt_sha256[:DIGITS],
        "replies that could not be read": number(result.failed) if result.failed else "",
    }
    return shown + definition_list((name, escape(value)) for name, value in facts.items())


def _arena(result: Arena) -> str:
    shown = _estimates("ratings, with 95 % intervals", "model", "rating", result.estimates, _rating)
    style = "taken out" if result.style_control else "not taken out"
    facts = {"this model": result.model, "votes": number(result.votes), "effect of style": style}
    return shown + definition_list((name, escape(value)) for name, value in facts.items())


def _rating(value: float) -> str:
    return number(round(value))
