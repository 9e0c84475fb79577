"""A training run in the terminal: its plan and its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from curate.display import terminal
from curate.display.figures import (
    YEAR,
    duration,
    gib,
    gib_parts,
    loss,
    number,
    percent,
    plural,
    significant,
    size,
    spoken_duration,
)
from curate.display.text import one_line, safe
from curate.rendering.preparation import describe_hidden

if TYPE_CHECKING:
    from curate.train.planning.plan import Plan
    from curate.train.run.log import RunResult
    from curate.train.run.records import Records, Row

ANSWERS = 3  # prompts with answers; the run's page has all
LONG = 240  # terminal cells of one answer


# ---- before


def render_plan(planned: Plan, facts: Mapping[str, Any]) -> RenderableType:
    """Render what a run will do, the memory, time and disk it needs, and the reasons."""
    load, hardware = planned.load, planned.hardware
    grid = terminal.label_grid()
    part = planned.trained <= planned.parameters  # an adapter may be larger than `tiny`
    share = f" ({percent(planned.trained, planned.parameters, digits=2)})" if part else ""
    init = f", initialised from {facts['init']}" if facts.get("init") else ""
    terminal.add_row(
        grid, "model", terminal.safe_text(f"{facts['base']}, {number(planned.parameters)} parameters{init}")
    )
    terminal.add_row(grid, "method", f"{facts['method']}: {number(planned.trained)} parameters trained{share}")
    if facts.get("objective") == "dpo":
        terminal.add_row(grid, "objective", "dpo: pairs, compared with the model as it is before the first step")
    terminal.add_row(grid, "data", terminal.safe_text(_data(planned, facts["data"])))
    if counted := facts["data"].get("estimated"):
        proof = "not proven yet: a run proves each piece before it trains (now: --prove)"
        terminal.add_row(grid, "", terminal.safe_text(f"by {counted}; {proof}"))
    if again := facts["data"].get("split_again"):
        terminal.add_row(grid, "", terminal.safe_text(str(again)))
    if path := facts["data"].get("identity"):
        count = facts["data"]["identity_conversations"]
        of_them = f"of these, {number(count)} from {path} on the model's identity, none held out"
        terminal.add_row(grid, "", terminal.safe_text(of_them))
    if by_answer := facts["data"].get("by_answer"):
        terminal.add_row(grid, "", terminal.safe_text(str(by_answer)))
    if alone := facts["data"].get("without_pair"):
        verb = "is" if alone == 1 else "are"
        named = f"{number(alone)} {plural(alone, 'piece')} without a rejected answer {verb} left out"
        terminal.add_row(grid, "", named)
    if hidden := facts["data"].get("hidden_tools"):
        terminal.add_row(grid, "", describe_hidden(hidden, "data.hidden_tools"))
    padded = f"; unpacked rows would be {percent(load.padded_utilisation)} full"
    filled = f"{percent(load.utilisation)} full"
    terminal.add_row(grid, "rows", f"{number(load.rows)} of {number(load.row_tokens)} tokens, {filled}{padded}")
    terminal.add_row(grid, "steps", _steps(planned))
    where = f"{hardware.ranks} × {hardware.name}" if hardware.ranks > 1 else hardware.name
    terminal.add_row(grid, "device", terminal.safe_text(f"{where}; {facts['dtype']}"))
    terminal.add_row(grid, "attention", terminal.safe_text(str(facts["attention"])))
    terminal.add_row(grid, "memory", _memory(planned))
    terminal.add_row(grid, "time", _time(planned))
    if hardware.card is not None:
        terminal.add_row(grid, "data sheet", _wrap(hardware.card.source))
    room = "" if hardware.disk is None else f" of {size(hardware.disk)} free"
    terminal.add_row(grid, "disk", f"{size(planned.disk)}{room} (a checkpoint {size(planned.checkpoint)})")
    for index, reason in enumerate(planned.reasons):
        terminal.add_row(grid, "" if index else "because", terminal.safe_text(reason))
    return Group(grid, *_misfit(planned))


def _data(planned: Plan, facts: Mapping[str, Any]) -> str:
    load = planned.load
    eval_count, left_out_count = facts.get("eval_conversations"), facts.get("left_out")
    held_out = f", {number(eval_count)} held out" if eval_count else ", none held out"
    left_out = f", {number(left_out_count)} left out" if left_out_count else ""
    sources = int(facts.get("sources", 0))
    sources += sources and int(facts.get("identity_conversations") or 0)  # the pieces have those too
    chats = f"{number(sources)} {plural(sources, 'conversation')} in " if sources else ""
    pieces = f"{facts['set']}: {chats}{number(load.examples)} {plural(load.examples, 'piece')}{held_out}{left_out}"
    tokens = f"{number(load.work.tokens)} tokens, {number(load.work.supervised)} trained on"
    return f"{pieces}; {tokens} (template {facts['template']})"


def _steps(planned: Plan) -> str:
    steps, ranks = planned.steps, planned.hardware.ranks
    portions = f"{planned.micro_batch} at once" + (f", {planned.grad_accum} times" if planned.grad_accum > 1 else "")
    examples = round(steps.examples)
    each = f"{number(examples)} {plural(examples, 'piece')} in {number(steps.rows)} {plural(steps.rows, 'row')}"
    many = f" on each of {ranks} ranks" if ranks > 1 else ""
    return f"{number(steps.count)} of {each} ({portions}{many}); {steps.epochs:g} epochs"


def _memory(planned: Plan) -> str:
    total, parts = gib_parts(planned.memory_parts)
    largest = sorted(parts.items(), key=lambda part: -float(part[1].replace(",", "")))
    named = " + ".join(f"{name} {shown}" for name, shown in largest)
    return f"{total} GiB of {gib(planned.hardware.memory)}: {named}"


def _time(planned: Plan) -> str:
    """Return the estimated time, and what it is based on."""
    hardware = planned.hardware
    if planned.seconds is None or hardware.rate is None:
        if hardware.kind == "cpu":
            return "unknown: only the memory is given; a plan on that machine itself, without --for, measures its rate"
        return "unknown: only the memory is given; name a card for it, as in --for rtx-4090"
    rate = f"{percent(planned.efficiency, digits=0)} of {significant(hardware.rate / 1e12)} TFLOP/s"
    basis = "the data sheet's, assumed, not measured" if hardware.card else "measured here"
    too_long = ": not on this device" if planned.seconds > YEAR else ""
    spoken = f"about {spoken_duration(planned.seconds)}" if planned.seconds >= 1 else "less than a second"
    return f"{spoken}{too_long}, at {rate} ({basis})"


def _misfit(planned: Plan) -> Iterator[RenderableType]:
    if not planned.fits:
        resource = "the memory" if not planned.fits_memory else "the disk"
        yield Text(f"this does not fit {resource}", "bold red")
        for suggestion in planned.suggestions:
            yield Text(f"would fit: {suggestion}")


# ---- after


def render_result(result: RunResult, history: Records) -> RenderableType:
    """Render the result of a run: losses before and after, its path, and some answers of both models."""
    grid = terminal.label_grid()
    losses = [row["loss"] for row in history.metrics if isinstance(row.get("loss"), int | float)]
    elapsed = duration(float(history.facts.get("seconds") or 0))
    terminal.add_row(grid, "steps", f"{number(result.step)} of {number(result.plan.steps.count)} in {elapsed}")
    if losses:
        terminal.add_row(grid, "loss", f"{loss(losses[0])} → {loss(losses[-1])}")
    if pairs := _last_pairs(history):
        terminal.add_row(grid, "pairs", pairs)
    if held_out := _held_out(history):
        terminal.add_row(grid, "held out", held_out)
    terminal.add_row(grid, "written", _wrap(str(result.result or result.run), "bold"))
    if result.report:
        terminal.add_row(grid, "page", _wrap(str(result.report)))
    if result.status == "finished":
        terminal.add_row(grid, "next", _wrap(f"curate chat {result.run}", "bold cyan"))
    else:
        terminal.add_row(grid, "resume", _wrap(f"curate finetune --resume {result.run}", "bold cyan"))
    answers = history.answers()[:ANSWERS] if result.status == "finished" else []
    return Group(*_answers(answers), grid)


def _wrap(text: str, style: str = "") -> Text:
    """Return a path or a command that wraps if it is too long."""
    return Text(safe(text), style, overflow="fold")


def _last_pairs(history: Records) -> str:
    """Return how well the last step's pairs were told apart, if it had pairs."""
    last = history.metrics[-1] if history.metrics else {}
    if not isinstance(last.get("accuracy"), int | float) or not isinstance(last.get("margin"), int | float):
        return ""
    return f"accuracy {percent(last['accuracy'])}, margin {significant(last['margin'])} in the last step"


def _held_out(history: Records) -> str:
    rows = [(name, history.evaluation(which)) for name, which in (("base", "base"), ("tuned", "tuned"))]
    overall = [(name, row["overall"]) for name, row in rows if row and row["overall"]["loss"] is not None]
    return " → ".join(f"{name} {loss(values['loss'])}{_accuracy(values)}" for name, values in overall)


def _accuracy(values: Mapping[str, Any]) -> str:
    return f" (accuracy {percent(values['accuracy'])})" if values.get("accuracy") is not None else ""


def _answers(pairs: Sequence[tuple[Row | None, Row]]) -> Iterator[RenderableType]:
    for base, tuned in pairs:
        grid = terminal.label_grid()
        prompt = str(tuned["messages"][-1]["content"]).strip()
        grid.add_row("prompt", Text(one_line(prompt, LONG), "bold"))
        if base is not None:
            grid.add_row("base", Text(one_line(str(base["answer"]).strip(), LONG)))
        grid.add_row("tuned", Text(one_line(str(tuned["answer"]).strip(), LONG) + _cut(tuned), "green"))
        if tuned.get("reference"):
            grid.add_row("reference", Text(one_line(str(tuned["reference"]).strip(), LONG), "dim"))
        yield grid
        yield Text()


def _cut(row: Row) -> str:
    return "" if row.get("stopped") else " … (did not stop)"
