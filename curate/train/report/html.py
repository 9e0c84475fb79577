"""The page of a training run: `report.html`, rendered from the run's records.

Records are JSON that anyone may have changed, so values are checked and all text is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from curate import files
from curate._version import __version__
from curate.display import html_page
from curate.display.figures import loss, number, percent, significant
from curate.display.html import (
    Cell,
    chart,
    collapsible,
    definition_list,
    escape,
    footer,
    message_block,
    navigation,
    preformat,
    section,
    table,
    truncate,
)
from curate.train.report import results
from curate.train.run import records
from curate.train.run.records import Point, Records, Row

SHOWN = 40  # rows of tables that grow with the data, at most; the files next to the page have all
POINTS = 600  # of a line, at most
STEPS = 100  # rows of a table of steps, about
LONG = 4_000  # characters of a message
LONG_MASK = 20_000  # characters of an example with its mask
SHORT = 200  # characters of a cell
GENERATED = {  # keys of an origin, and their titles
    "method": "method",
    "model": "model",
    "prompts": "curate's prompts",
    "inputs": "given prompts or seeds",
    "seed": "seed",
}
SLICES = (  # keys of an evaluation, and their titles
    ("by_exchanges", "exchanges"),
    ("by_depth", "answer"),
    ("by_language", "language"),
    ("by_length", "length, tokens"),
)
# Keys of `metrics.jsonl` that have a chart each, and their titles.
COURSE = (
    *((key, key.replace("_", " ")) for key in records.PAIR_METRICS),
    *(("lr", "learning rate"), ("tokens_per_s", "tokens per second"), ("mfu", "MFU"), ("gib", "GiB")),
)
FORMATS: dict[str, Callable[[float], str]] = {  # by title of a column
    **dict.fromkeys(("loss", "running mean", "base", "tuned", "chosen loss", "rejected loss"), loss),
    **dict.fromkeys(("learning rate", "GiB", "margin", "chosen reward", "rejected reward"), significant),
    "accuracy": percent,
    "tokens per second": lambda value: number(round(value)),
    "MFU": percent,
}


def write(run: Path) -> Path:
    """Write the page of a run, finished or not; return its path."""
    file = run / records.REPORT
    files.write_text(file, render(records.read(run)))
    return file


def render(history: Records) -> str:
    """Return the page of a run."""
    parts = [
        ("loss", "Loss", _loss(history)),
        ("held-out", "Held-out loss", _held_out(history)),
        ("answers", "Answers", "".join(starmap(_answers, history.answers()))),
        *results.parts(history.results, history.unread),
        ("course", "Course of the run", _course(history)),
        ("data", "Data", _data(history)),
        ("left-out", "Left out of training", _left_out(history.left_out)),
        ("mask", "What is trained on", "".join(map(_mask, history.masked))),
        ("plan", "Plan and measurement", _plan(history)),
        ("config", "Configuration", f'<pre class="plain">{escape(history.config)}</pre>' if history.config else ""),
    ]
    body = _head(history, parts) + "".join(starmap(section, parts)) + footer(__version__)
    return html_page.document(history.name, body, {"lines": _lines(history)}, "curate finetune")


def _head(history: Records, parts: Sequence[tuple[str, str, str]]) -> str:
    """Return the header: base, method, steps and losses."""
    last = history.metrics[-1] if history.metrics else {}
    base, tuned = (_overall(history.evaluation(which)) for which in (records.BASE, records.TUNED))
    tiles = [
        (number(last["step"]) if last else "", "steps"),
        (_loss_text(last), "training loss"),
        (_loss_text(base), "held-out loss, base"),
        (_loss_text(tuned), "held-out loss, tuned"),
    ]
    shown = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in tiles if value)
    facts = definition_list(
        (name, escape(history.facts.get(name) or "")) for name in ("base", "method", "template", "status")
    )
    title = f'<h1>{escape(history.name)}</h1><div class="tiles">{shown}</div>'
    return f"<header>{title}{facts}{navigation(parts)}</header><main>"


def _overall(row: Row | None) -> Row:
    overall = row.get("overall") if row else None
    return overall if isinstance(overall, dict) else {}


def _loss_text(row: Row) -> str:
    return loss(row["loss"]) if isinstance(row.get("loss"), int | float) else ""


# ---- charts


def _lines(history: Records) -> dict[str, Any]:
    """Return the lines that page.js draws; `paint` is a colour variable of page.css."""
    steps = records.points(history.metrics, "loss")
    tuned, base = (records.held_out_curve(history, which) for which in (records.TUNED, records.BASE))
    losses = [
        _line("each step", steps, "--accent", faint=True),
        _line("running mean", records.smooth(steps), "--accent"),
        _line("tuned, held out", tuned, "--tool", marks=True),
        _line("base, held out", _level(base, steps), "--soft", dashed=True, marks=len(base) == 1 and not steps),
    ]
    course = {key: [_line(title, records.points(history.metrics, key), "--accent")] for key, title in COURSE}
    charts = {"loss": losses, **course}
    return {name: {"axis": "step", "series": series} for name, series in charts.items()}


def _line(name: str, points: Sequence[Point], paint: str, **looks: bool) -> dict[str, Any]:
    return {"name": name, "points": records.downsample(points, POINTS), "paint": paint, **looks}


def _level(base: Sequence[Point], steps: Sequence[Point]) -> list[Point]:
    """Return the base model's loss as a horizontal line over all steps."""
    if not (base and steps):
        return list(base)
    return [(min(base[0][0], steps[0][0]), base[0][1]), (max(base[-1][0], steps[-1][0]), base[0][1])]


def _loss(history: Records) -> str:
    steps = records.points(history.metrics, "loss")
    tuned, base = (records.held_out_curve(history, which) for which in (records.TUNED, records.BASE))
    if not (steps or tuned or base):
        return ""
    means = dict(records.smooth(steps))
    rows: list[Sequence[Cell]] = [(step, value, means[step]) for step, value in _thin_out_points(steps)]
    evaluations: list[Sequence[Cell]] = [(step, "base", value) for step, value in base]
    evaluations += [(step, "tuned", value) for step, value in tuned]
    tables = table("training loss", ("step", "loss", "running mean"), rows, FORMATS)
    tables += table("held-out loss over the run", ("step", "model", "loss"), evaluations, FORMATS)
    return chart("lines:loss", "loss by step; the table has the numbers") + collapsible("as a table", tables)


def _thin_out_points(points: Sequence[Point]) -> list[Point]:
    """Return at most STEPS evenly spaced points, including the last one."""
    stride = -(-len(points) // STEPS) or 1
    return [points[index] for index in range((len(points) - 1) % stride, len(points), stride)]


def _course(history: Records) -> str:
    """Return charts of learning rate, tokens per second, MFU and memory, with a table."""
    curves = {key: records.points(history.metrics, key) for key, _ in COURSE}
    shown = [(key, title) for key, title in COURSE if any(value for _, value in curves[key])]
    if not shown:
        return ""
    drawn = "".join(
        f"<figure><figcaption>{title}</figcaption>{chart(f'lines:{key}', f'{title} by step')}</figure>"
        for key, title in shown
    )
    values = [dict(curves[key]) for key, _ in shown]
    steps = sorted(set().union(*values))
    rows: list[Sequence[Cell]] = [
        (step, *(value.get(step) for value in values)) for step, _ in _thin_out_points([(step, 0.0) for step in steps])
    ]
    tables = table("the run by steps", ("step", *(title for _, title in shown)), rows, FORMATS)
    return f'<div class="grid">{drawn}</div>{collapsible("as a table", tables)}'


# ---- held-out losses and answers


def _held_out(history: Records) -> str:
    base, tuned = history.evaluation(records.BASE), history.evaluation(records.TUNED)
    newest = tuned or base
    if newest is None:
        return ""
    rows = [_slice("all", _overall(base), _overall(newest), tuned is not None)]
    groups = [_overall(newest)]
    for key, title in SLICES:
        before = {row.get("name"): row for row in (base or {}).get(key) or []}
        for row in (newest.get(key) or [])[:SHOWN]:
            name = f"{title}: {row.get('name')}"
            rows.append(_slice(name, before.get(row.get("name"), {}), row, tuned is not None))
            groups.append(row)
    heading = ("part", "pieces", "trained tokens", "base", "tuned", "change")
    formats = {**FORMATS, "change": _format_change}
    if _overall(newest).get("accuracy") is None:
        return table("held-out loss per trained token", heading, rows, formats)
    pairs = [(*row, group.get("accuracy"), group.get("margin")) for row, group in zip(rows, groups, strict=True)]
    return table("held-out loss per pair", (*heading, "accuracy", "margin"), pairs, formats)


def _format_change(value: float) -> str:
    return loss(value, signed=True)


def _slice(name: str, base: Row, now: Row, is_tuned: bool) -> tuple[Cell, ...]:
    before, after = base.get("loss"), now.get("loss") if is_tuned else None
    change = after - before if isinstance(before, float) and isinstance(after, float) else None
    return name, now.get("conversations"), now.get("tokens"), before, after, change


def _answers(base: Row | None, tuned: Row) -> str:
    """Return one prompt with the answers of both models, and the reference answer if there is one."""
    prompt = "".join(
        message_block(str(message.get("role")), _content(message.get("content")))
        for message in tuned.get("messages") or []
        if isinstance(message, dict)
    )
    answers = [("base", base), ("tuned", tuned)]
    if isinstance(tuned.get("reference"), str):
        answers.append(("reference", {"answer": tuned["reference"], "stopped": True}))
    shown = "".join(_answer(title, row) for title, row in answers if row)
    name = f'<p class="note">{escape(tuned["name"])}</p>' if tuned.get("name") else ""
    return f'<article>{name}{prompt}<div class="answers">{shown}</div></article>'


def _answer(title: str, row: Row) -> str:
    return message_block(
        "assistant", _content(row.get("answer", "")), title if row.get("stopped") else f"{title}, did not stop"
    )


def _content(content: object) -> str:
    return preformat(escape(truncate(str(content), LONG)))


# ---- data, mask, plan


def _facts(values: object) -> str:
    if not isinstance(values, Mapping):
        return ""
    return definition_list(
        (escape(records.label(str(name))), _value(value)) for name, value in values.items() if value is not None
    )


def _value(value: object) -> str:
    """Return a JSON value as HTML."""
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(key)} {_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "<br>".join(map(_value, value))
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(json.dumps(value, ensure_ascii=False, default=str))
    return number(value) if isinstance(value, int) else significant(value)


def _data(history: Records) -> str:
    data, made = history.facts.get("data"), history.generated()
    others = {key: value for key, value in data.items() if key != "generated"} if made and data else data
    return _facts(others) + _generated(made)


def _generated(made: Sequence[Row]) -> str:
    """Return what made the conversations that a model generated, and how many of each are trained on."""
    rows = [(*(_short(row.get(key)) for key in GENERATED), _count(row.get("conversations"))) for row in made]
    return table("conversations that a model made", (*GENERATED.values(), "conversations"), rows)


def _short(value: object) -> str:
    return "" if value is None else truncate(str(value), SHORT)


def _count(value: object) -> int | None:
    return value if type(value) is int else None


def _left_out(rows: Sequence[Row]) -> str:
    shown = [(str(row.get("name", row.get("id", ""))), str(row.get("reason", ""))) for row in rows[:SHOWN]]
    note = f'<p class="note">{number(len(rows))} in total, listed in {records.LEFT_OUT}</p>'
    return table("pieces and exchanges left out", ("id", "reason"), shown) + note * (len(rows) > SHOWN)


def _mask(row: Row) -> str:
    """Return one example with its trained spans marked; the key `runs` has [text, trained] pairs in order."""
    runs = row.get("runs")
    spans = [span for span in (runs if isinstance(runs, list) else ()) if isinstance(span, list) and len(span) == 2]
    shown = "".join(f"<mark>{part}</mark>" if trained else part for part, trained in _truncate_spans(spans, LONG_MASK))
    return collapsible(f"<mark>trained on</mark> in {escape(row.get('name'))}", preformat(shown))


def _truncate_spans(spans: Iterable[Sequence[Any]], max_chars: int) -> Iterator[tuple[str, bool]]:
    """Yield spans with their text escaped, until `max_chars` characters are reached."""
    for text, trained in spans:
        yield escape(truncate(str(text), max(max_chars, 0))), bool(trained)
        max_chars -= len(str(text))
        if max_chars <= 0:
            break


def _plan(history: Records) -> str:
    """Return the plan, with the measured value next to each predicted one that was measured."""
    memory = [value for _, value in records.points(history.metrics, "gib")]
    measured = {
        "peak_gib": max(memory, default=None),
        "steps": history.metrics[-1]["step"] if history.metrics else None,
        "seconds": history.facts.get("seconds"),
    }
    return definition_list(
        (
            escape(records.label(name)),
            _value(value)
            + (f' <span class="note">measured {_value(measured[name])}</span>' if measured.get(name) else ""),
        )
        for name, value in history.plan.items()
        if value not in (None, [], {})
    )
