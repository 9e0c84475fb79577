"""Progress of commands that may take long, on a terminal's stderr: what is done, its rate, and the time left."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from curate.cli.progress.bars import make_bars
from curate.display.figures import MB, duration, number, percent
from curate.progress import BYTES, Stage, watch

DELAY = 1.5  # seconds after which a command counts as long
EVERY = 0.2  # seconds between two pictures


@contextmanager
def show_stages(name: str, *, quiet: bool = False) -> Iterator[None]:
    """Show the stages of the work within the block, under `name` where it names none.

    Nothing is shown if `quiet`, where stderr is no terminal, and for work that is done within DELAY. Print results
    after the block, so that the bar is gone by then.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    whole, stop = Stage(name), threading.Event()
    with watch() as stages:
        thread = threading.Thread(target=_follow, args=(whole, stages, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def describe(stage: Stage, seconds: float) -> str:
    """Describe a stage after so many seconds, beside its bar: share, rate and time left, as far as they are known."""
    seconds = max(seconds, 1e-9)
    if not stage.done:
        return duration(seconds)
    rate = stage.done / seconds
    parts = [] if not stage.total else [percent(min(stage.done / stage.total, 1), digits=0)]
    if stage.unit == BYTES:
        parts.append(f"{number(rate / MB)} MB/s")
    else:
        parts += [] if stage.total else [f"{number(stage.done)} {stage.unit}"]
        parts.append(f"{number(round(rate) if rate >= 10 else rate)} {stage.unit}/s")
    if stage.total:
        parts.append(f"{duration(max(0, stage.total - stage.done) / rate)} left")
    return " · ".join(parts)


def _follow(whole: Stage, stages: Sequence[Stage], stop: threading.Event) -> None:
    """Draw the innermost stage until `stop` is set."""
    if stop.wait(DELAY):
        return
    with make_bars(auto_refresh=False) as bars:
        task = bars.add_task("", total=None, stage="", text="")
        while True:
            stage = next(iter(stages[-1:]), whole)
            text = describe(stage, stage.seconds)
            bars.update(task, total=stage.total, completed=stage.done, stage=stage.name, text=text, refresh=True)
            if stop.wait(EVERY):
                return
