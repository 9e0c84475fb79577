"""Progress of `curate finetune`: a live panel on a terminal, otherwise one line for each step.

It is imported when a run begins, so it may import Rich at module level.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType
from rich.live import Live
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from curate.display import figures
from curate.display.figures import GIB, duration, gib, number, percent, plural, significant
from curate.display.text import console, one_line
from curate.train.report.terminal import render_plan
from curate.train.run import events
from curate.train.run.events import Event, Planned, Rendered, Stepped, Warned

if TYPE_CHECKING:
    from curate.train.run.records import EvalLoss

BLOCKS = "▁▂▃▄▅▆▇█"
EVERY = 5.0  # seconds between lines about rendering, without a terminal
CURVE = 60  # cells of the loss curve


@contextmanager
def follow(*, quiet: bool, dry_run: bool = False) -> Iterator[Callable[[Event], None]]:
    """Yield a function that takes a run's events; if `quiet`, it prints warnings only."""
    if quiet:
        yield Lines(Warned)
    elif sys.stderr.isatty():
        with Live(console=console(stderr=True), auto_refresh=False, transient=True) as live:
            yield Panel(live, plan=not dry_run)
    elif dry_run:
        yield Lines(events.Reported, events.Rendered, Warned)
    else:
        yield Lines()


def event_line(event: Event) -> str:
    """Describe an event in one line; return an empty text for events that are shown otherwise or not at all."""
    match event:
        case events.Reported():
            return event.text
        case events.Warned():
            return f"warning: {event.text}"
        case events.Started():
            starts = f"resumes at step {event.step}" if event.step else "starts"
            trained = f"{number(event.trained)} of {number(event.parameters)} parameters are trained"
            return f"run {event.run} {starts}: {trained}"
        case events.Evaluated():
            return f"held out, {event.which}, step {event.step}: {loss_text(event.loss)}"
        case events.Sampled():
            ended = sum(sample.stopped for sample in event.samples)
            cut = len(event.samples) - ended
            longest = max((sample.tokens for sample in event.samples), default=0)
            rest = f", {cut} cut off after {number(longest)} tokens (eval.max_new_tokens)" if cut else ""
            which = f"answers, {event.which}, step {event.step}"
            return f"{which}: {ended} of {len(event.samples)} ended with a stop token{rest}"
        case events.Saved():
            return f"saved {event.path} in {number(event.seconds)} s"
    return ""


def loss_text(loss: EvalLoss) -> str:
    """Describe a held-out loss."""
    overall = loss.overall
    shown = "no loss" if overall.loss is None else f"loss {figures.loss(overall.loss)}"
    if overall.accuracy is not None and overall.margin is not None:
        shown += f", accuracy {percent(overall.accuracy)}, margin {significant(overall.margin)}"
    return f"{shown} over {number(overall.examples)} {plural(overall.examples, 'piece')}"


def step_metrics(event: Stepped) -> dict[str, str]:
    """Return the metrics of a step, formatted, by name."""
    return {
        "loss": figures.loss(event.loss),
        **_pair_metrics(event.metrics),
        "lr": f"{event.lr:.2e}",
        "norm": significant(event.norm),
        "tokens/s": number(round(event.tokens_per_s)),
        "MFU": percent(event.mfu),
        "memory": f"{gib(event.gib * GIB)} GiB",
        "data": percent(event.waited),
    }


def _pair_metrics(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return how well a step's pairs were told apart, if it had pairs."""
    if "margin" not in metrics:
        return {}
    return {"accuracy": percent(metrics["accuracy"]), "margin": significant(metrics["margin"])}


# ---- without a terminal


class Lines:
    """Prints a line for each event, or for those of some kinds."""

    def __init__(self, *kinds: type[Event]) -> None:
        self.kinds = kinds
        self.due = EVERY  # seconds of rendering, at which the next line is due

    def __call__(self, event: Event) -> None:
        if self.kinds and not isinstance(event, self.kinds):
            return
        if isinstance(event, Planned):
            click.echo(_plan_text(event), err=True, nl=False)
        elif isinstance(event, Stepped):
            click.echo(step_line(event), err=True)
        elif isinstance(event, Rendered):
            if event.seconds >= self.due:
                self.due = event.seconds + EVERY
                click.echo(f"rendering and proving: {render_line(event)}", err=True)
        elif text := event_line(event):
            click.echo(one_line(text, 2000), err=True)


def render_line(event: Rendered) -> str:
    """Describe the progress of rendering: share, rate, time left."""
    share = percent(min(event.rows / max(event.total, 1), 1.0), digits=0)
    left = f" · {duration(event.seconds_left)} left" if event.rows < event.total else ""
    return f"{share} · {number(round(event.rows_per_second))} pieces/s{left}"


def step_line(event: Stepped) -> str:
    """Describe a step in one line."""
    shown = "  ".join(f"{name} {value}" for name, value in step_metrics(event).items())
    return f"step {event.step}/{event.steps}  {shown}  ETA {duration(event.seconds_left)}"


def _plan_text(event: Planned) -> str:
    """Return the plan as text, without trailing blanks."""
    out = console(stderr=True)
    with out.capture() as captured:
        out.print(render_plan(event.plan, event.facts))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


# ---- on a terminal


class Panel:
    """Shows the state of a run at the bottom of the terminal; other events scroll by above it."""

    def __init__(self, live: Live, *, plan: bool = True) -> None:
        self.live = live
        self.plan = plan  # whether to show it: a plan alone is printed on stdout
        self.name = ""
        self.losses: list[float] = []
        self.held_out: dict[str, EvalLoss] = {}

    def __call__(self, event: Event) -> None:
        say = self.live.console.print
        if isinstance(event, Planned):
            self.name = str(event.facts["base"])
            self.live.update(Text(), refresh=True)
            if self.plan:
                say(render_plan(event.plan, event.facts))
        elif isinstance(event, Rendered):
            self.live.update(render_bar(event), refresh=True)
        elif isinstance(event, Stepped):
            self.losses.append(event.loss)
            self.live.update(self.render(event), refresh=True)
        elif text := event_line(event):
            if isinstance(event, events.Evaluated):
                self.held_out[event.which] = event.loss
            say(Text(one_line(text, 2000), "yellow" if isinstance(event, Warned) else "dim"))

    def render(self, event: Stepped) -> RenderableType:
        """Return the panel at a step."""
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        position = f"step {number(event.step)} of {number(event.steps)} · epoch {event.epoch:.2f}"
        head.add_row(position, ProgressBar(event.steps, event.step), f"ETA {duration(event.seconds_left)}")
        metrics = step_metrics(event)
        grid = Table.grid(padding=(0, 3, 0, 0))
        grid.add_row(*(Text(name, "dim") for name in metrics))
        grid.add_row(*(Text(value, "bold") for value in metrics.values()))
        body = Table.grid(expand=True)
        for part in (head, grid, Text(curve(self.losses), "cyan"), *self._held_out()):
            body.add_row(part)
        return Box(body, title=Text(f"curate finetune {self.name}"), title_align="left")

    def _held_out(self) -> list[RenderableType]:
        losses = [f"{which} {loss_text(loss)}" for which, loss in self.held_out.items()]
        return [Text(f"held out: {' · '.join(losses)}", "dim")] if losses else []


def render_bar(event: Rendered) -> RenderableType:
    """Return the bar of rendering, with rate and time left."""
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    grid.add_row("rendering and proving", ProgressBar(max(event.total, 1), event.rows), render_line(event))
    return grid


def curve(losses: Sequence[float], width: int = CURVE) -> str:
    """Return losses as at most `width` block characters, each the mean of consecutive steps, scaled to the range."""
    count = min(width, len(losses))
    cuts = [index * len(losses) // count for index in range(count + 1)] if count else []
    means = [sum(losses[start:end]) / (end - start) for start, end in pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)
