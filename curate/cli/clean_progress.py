"""Progress of `curate clean` on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from curate.display.figures import MB, duration, mb, number, percent

if TYPE_CHECKING:
    from curate.pipeline.run import Progress

EVERY = 3.0  # seconds between plain lines


@contextmanager
def show_progress(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Yield a function to call with each state of the run, or None if `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _plain()


def full_line(state: Progress) -> str:
    """Describe a state in one line: stage, bytes, share, rate, records, time left."""
    size = f" of {mb(state.bytes_total)}" if state.bytes_total else ""
    return f"{state.stage}: {mb(state.bytes_read)} MB{size} · {short_line(state)} · {number(state.rejected)} rejected"


def short_line(state: Progress) -> str:
    """Describe a state in the space that the bar leaves: share, rate, records, time left."""
    share = [percent(min(state.bytes_read / state.bytes_total, 1), digits=0)] if state.bytes_total else []
    rate = state.bytes_unpacked / MB / max(state.seconds, 1e-9)
    left = seconds_left(state)
    last = [f"{duration(left)} left"] if left else []
    return " · ".join([*share, f"{number(rate)} MB/s", f"{number(state.records)} records", *last])


def seconds_left(state: Progress) -> float | None:
    """Return the seconds left at the rate so far, None if unknown."""
    if not state.bytes_total or not state.bytes_read:
        return None
    return max(0.0, (state.bytes_total - state.bytes_read) * state.seconds / state.bytes_read)


def _plain() -> Callable[[Progress], None]:
    due = EVERY

    def update(state: Progress) -> None:
        nonlocal due
        if state.seconds >= due:
            due = state.seconds + EVERY
            click.echo(full_line(state), err=True)

    return update


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    from curate.display.text import console

    columns = (TextColumn("{task.fields[stage]}"), BarColumn(None), TextColumn("{task.fields[text]}"))
    # What is printed on stdout stays there: it may be a file.
    bars = Bars(*columns, console=console(stderr=True), transient=True, expand=True, redirect_stdout=False)
    with bars as progress:
        task = progress.add_task("", total=None, stage="starting", text="")

        def update(state: Progress) -> None:
            size, read = state.bytes_total, state.bytes_read
            progress.update(task, total=size, completed=read, stage=state.stage, text=short_line(state))

        yield update
