"""Progress of `curate clean` on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from curate.cli.progress.bars import make_bars, print_lines
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
        yield print_lines(full_line, EVERY)


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


def is_read(state: Progress) -> bool:
    """Return whether all input is read, so that its share says nothing of what is left to do."""
    return bool(state.bytes_total) and state.bytes_read >= (state.bytes_total or 0)


def seconds_left(state: Progress) -> float | None:
    """Return the seconds left at the rate so far, None if unknown."""
    if not state.bytes_total or not state.bytes_read:
        return None
    return max(0.0, (state.bytes_total - state.bytes_read) * state.seconds / state.bytes_read)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    with make_bars() as bars:
        task = bars.add_task("", total=None, stage="starting", text="")

        def update(state: Progress) -> None:
            size, text = state.bytes_total, short_line(state)
            if is_read(state):  # without a total, the bar moves to and fro
                size, text = None, f"{number(state.records)} records · {duration(state.seconds)}"
            bars.update(task, total=size, completed=state.bytes_read, stage=state.stage, text=text)

        yield update
