"""How progress is drawn on stderr: bars on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress


class Timed(Protocol):
    """A state of a run."""

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""


State = TypeVar("State", bound=Timed)


def make_bars(*, auto_refresh: bool = True) -> Progress:
    """Return bars, each with the fields `stage` before it and `text` after it, which are gone when they close.

    What is printed on stdout stays there: it may be a file.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    from curate.display.text import console

    return Progress(
        *(TextColumn("{task.fields[stage]}"), BarColumn(None), TextColumn("{task.fields[text]}")),
        console=console(stderr=True),
        transient=True,
        expand=True,
        auto_refresh=auto_refresh,
        redirect_stdout=False,
    )


def print_message(text: str) -> None:
    """Print a line on stderr, above a bar if there is one: `click.echo` would write it behind the bar."""
    print(text, file=sys.stderr, flush=True)


def print_lines(describe: Callable[[State], str], every: float) -> Callable[[State], None]:
    """Return a function that prints a state's line every so many seconds, the first one after as many."""
    return throttle(lambda state: click.echo(describe(state), err=True), every, first=every)


def throttle(show: Callable[[State], object], every: float, *, first: float = 0.0) -> Callable[[State], None]:
    """Return a function that shows a state, but only after `first` seconds of the run, and then every so many."""
    due = first

    def update(state: State) -> None:
        nonlocal due
        if state.seconds >= due:
            due = state.seconds + every
            show(state)

    return update
