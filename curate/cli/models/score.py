"""`curate score`: measure a set with a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from curate.cli.options import base_options, device_options
from curate.cli.progress.bars import make_bars, print_lines, print_message

if TYPE_CHECKING:
    from curate.scoring.score import ScoreProgress, ScoreResult

EVERY = 5.0  # seconds between plain lines


@click.command()
@click.argument("source", metavar="SET")
@click.option("--model", required=True, help="A run, a model, an adapter or a GGUF file; or a Hub name.")
@click.option("-o", "--output", "--out", "output", help="Folder to write.  [default: SET itself gets the columns]")
@click.option("--signal", default="likelihood", help="likelihood or guard.  [default: likelihood]")
@click.option("--guard", help="How a guard is asked: llama-guard, qwen3guard or yes-no.  [default: by its name]")
@click.option("--template", help="Built-in prompt template, or `model`.  [default: the model's, else the set's]")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Window.  [default: the set's]")
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Tokens read at a time.  [default: by device]")
@base_options
@device_options
@click.option("--dry-run", is_flag=True, help="Print the plan (tokens, time), and read nothing.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that render.  [default: all cores]")
@click.option("--force", is_flag=True, help="Replace a set that was not made from SET.")
@click.option("--quiet", "-q", is_flag=True, help="Print warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan and the model as JSON.")
def score(source: str, model: str, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Measure a set's answers with a model.

    Adds the columns of the signal likelihood to SET (or to a copy, -o), for --where, stats and refilter:
    perplexity, and IFD, which is over 1 where an answer is less likely after its prompt than by itself.
    With --signal guard, the model is a guard such as Llama Guard, which finds unsafe prompts and answers. A
    run that was stopped or killed continues where it was: type the same command.

    \b
    Example:
      curate score curated --model meta-llama/Llama-3.2-1B
    """
    from curate.scoring.score import score as run

    say = (lambda text: None) if quiet else print_message
    with _show_progress(quiet) as progress:
        result = run(source, model, say=say, progress=progress, **settings)
    _report(result, quiet, as_json)


def _report(result: ScoreResult, quiet: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from curate.display.figures import duration

    for text in result.warnings:
        click.echo(f"warning: {text}", err=True)
    if as_json:
        models = [] if result.manifest is None else [asdict(model) for model in result.manifest.models]
        click.echo(json.dumps({"plan": asdict(result.plan), "models": models}, indent=1, ensure_ascii=False))
    elif not quiet and result.manifest is not None:
        click.echo(f"{result.plan.signal} written to {result.output} in {duration(result.seconds)}")


@contextmanager
def _show_progress(quiet: bool) -> Iterator[Callable[[ScoreProgress], None]]:
    """Yield a function to call with each state: a bar on a terminal, otherwise a line every few seconds."""
    if quiet:
        yield lambda state: None
    elif sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield print_lines(progress_line, EVERY)


def progress_line(state: ScoreProgress) -> str:
    """Describe a state in one line: share, rows, rate, time left."""
    from curate.display.figures import duration, number, percent

    parts = [percent(state.rows, state.total, digits=0), f"{number(state.rows)} of {number(state.total)} rows"]
    if state.resumed:
        parts.append(f"{number(state.resumed)} from an earlier run")
    if state.tokens:
        parts.append(f"{number(round(state.tokens / max(state.seconds, 1e-9)))} tokens/s")
    if state.left is not None:
        parts.append(f"{duration(state.left)} left")
    return " · ".join(parts)


@contextmanager
def _bar() -> Iterator[Callable[[ScoreProgress], None]]:
    with make_bars() as bars:
        task = bars.add_task("", total=None, stage="scoring", text="")

        def update(state: ScoreProgress) -> None:
            bars.update(task, total=state.total, completed=state.rows, text=progress_line(state))

        yield update
