"""How a training run looks in a terminal: its plan before, its result after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from curate.display import terminal
from curate.display.text import duration, one_line, safe

if TYPE_CHECKING:
    from curate.train.plan import Plan
    from curate.train.run.log import RunResult
    from curate.train.run.records import Records, Row

GIB = 2**30
ANSWERS = 3  # of the prompts, shown side by side; the run's page has them all
LONG = 240  # terminal cells of one answer


# ---- before


def plan_page(planned: Plan, facts: Mapping[str, Any]) -> RenderableType:
    """Render what a run will do, need and take, and why."""
    load, hardware = planned.load, planned.hardware
    grid = terminal.facts()
    share = 100 * planned.trained / planned.parameters
    init = f", trained on from {facts['init']}" if facts.get("init") else ""
    terminal.add(grid, "model", terminal.text(f"{facts['base']}, {planned.parameters:,} parameters{init}"))
    terminal.add(grid, "method", f"{facts['method']}: {planned.trained:,} parameters trained ({share:.3g} %)")
    terminal.add(grid, "data", terminal.text(_data(planned, facts["data"])))
    if again := facts["data"].get("split_again"):
        terminal.add(grid, "", terminal.text(str(again)))
    padded = f"; a row for each conversation would be {100 * load.padded_utilisation:.1f} % full"
    filled = f"{100 * load.utilisation:.1f} % full"
    terminal.add(grid, "rows", f"{load.rows:,} of {load.row_tokens:,} tokens, {filled}{padded}")
    terminal.add(grid, "steps", _steps(planned))
    where = f"{hardware.ranks} × {hardware.name}" if hardware.ranks > 1 else hardware.name
    terminal.add(grid, "device", terminal.text(f"{where}; {facts['dtype']}"))
    terminal.add(grid, "attention", terminal.text(str(facts["attention"])))
    terminal.add(grid, "memory", _memory(planned))
    terminal.add(grid, "time", f"about {duration(planned.seconds)}, at {hardware.rate / 1e12:,.3g} TFLOP/s measured")
    room = f"{planned.disk / GIB:,.2f} GiB of {hardware.disk / GIB:,.1f} free"
    terminal.add(grid, "disk", f"{room} (a checkpoint {planned.checkpoint / GIB:,.2f})")
    for place, reason in enumerate(planned.reasons):
        terminal.add(grid, "" if place else "because", terminal.text(reason))
    return Group(grid, *_misfit(planned))


def _data(planned: Plan, told: Mapping[str, Any]) -> str:
    load = planned.load
    left = f", {told['left_out']:,} left out" if told.get("left_out") else ""
    held = f", {told['eval_conversations']:,} held out" if told.get("eval_conversations") else ", none held out"
    named = f"{told['set']}: {load.conversations:,} conversations{held}{left}"
    return f"{named}; {load.work.tokens:,} tokens, {load.work.supervised:,} trained on (template {told['template']})"


def _steps(planned: Plan) -> str:
    steps, ranks = planned.steps, planned.hardware.ranks
    portions = f"{planned.micro_batch} at once" + (f", {planned.grad_accum} times" if planned.grad_accum > 1 else "")
    each = f"{steps.conversations:,.0f} conversations in {steps.rows:,} {terminal.plural(steps.rows, 'row')}"
    many = f" on each of {ranks} ranks" if ranks > 1 else ""
    return f"{steps.count:,} of {each} ({portions}{many}); {steps.epochs:g} epochs"


def _memory(planned: Plan) -> str:
    largest = sorted(planned.parts.items(), key=lambda part: -part[1])
    named = " · ".join(f"{name} {size / GIB:,.2f}" for name, size in largest if size / GIB >= 0.005)
    return f"{planned.needs / GIB:,.2f} GiB of {planned.hardware.memory / GIB:,.1f}: {named}"


def _misfit(planned: Plan) -> Iterator[RenderableType]:
    if not planned.fits:
        what = "the memory" if not planned.fits_memory else "the disk"
        yield Text(f"this does not fit {what}", "bold red")
        for suggestion in planned.suggestions:
            yield Text(f"would fit: {suggestion}")


# ---- after


def result_page(result: RunResult, found: Records) -> RenderableType:
    """Render how a run ended: losses before and after, where its result is, and some answers side by side."""
    grid = terminal.facts()
    losses = [row["loss"] for row in found.metrics if isinstance(row.get("loss"), int | float)]
    taken = duration(float(found.facts.get("seconds") or 0))
    terminal.add(grid, "steps", f"{result.step:,} of {result.plan.steps.count:,} in {taken}")
    if losses:
        terminal.add(grid, "loss", f"{losses[0]:.4g} → {losses[-1]:.4g}")
    if held := _held_out(found):
        terminal.add(grid, "held out", held)
    terminal.add(grid, "written", _folded(str(result.result or result.run), "bold"))
    if result.report:
        terminal.add(grid, "page", _folded(str(result.report)))
    if result.status == "finished":
        terminal.add(grid, "next", _folded(f"curate chat {result.run}", "bold cyan"))
    else:
        terminal.add(grid, "go on", _folded(f"curate finetune --resume {result.run}", "bold cyan"))
    answers = found.answers()[:ANSWERS] if result.status == "finished" else []
    return Group(*_answers(answers), grid)


def _folded(text: str, style: str = "") -> Text:
    """Return a path or a line to type, folded where it is too long, not cut."""
    return Text(safe(text), style, overflow="fold")


def _held_out(found: Records) -> str:
    rows = [(name, found.evaluation(which)) for name, which in (("base", "base"), ("tuned", "tuned"))]
    said = [f"{name} {row['overall']['loss']:.4g}" for name, row in rows if row and row["overall"]["loss"] is not None]
    return " → ".join(said)


def _answers(pairs: Sequence[tuple[Row | None, Row]]) -> Iterator[RenderableType]:
    for base, tuned in pairs:
        grid = terminal.facts()
        asked = str(tuned["messages"][-1]["content"]).strip()
        grid.add_row("asked", Text(one_line(asked, LONG), "bold"))
        if base is not None:
            grid.add_row("base", Text(one_line(str(base["answer"]).strip(), LONG)))
        grid.add_row("tuned", Text(one_line(str(tuned["answer"]).strip(), LONG) + _cut(tuned), "green"))
        if tuned.get("reference"):
            grid.add_row("data", Text(one_line(str(tuned["reference"]).strip(), LONG), "dim"))
        yield grid
        yield Text()


def _cut(row: Row) -> str:
    return "" if row.get("stopped") else " … (did not stop)"
