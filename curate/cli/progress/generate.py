"""Progress of `curate generate`: a live panel with what is generated on a terminal, otherwise plain lines.

It is imported when a run begins, so it may import Rich at module level.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.text import Text

from curate.cli.progress.bars import print_message, throttle
from curate.display.figures import duration, number, plural
from curate.display.text import console, one_line, safe

if TYPE_CHECKING:
    from curate.generation.run import State

EVERY = 5.0  # seconds between plain lines
REFRESH = 0.2  # seconds between two pictures of the panel
SHOWN = 600  # characters of the latest prompt and answer
Followers = tuple[Callable[[str], None], Callable[["State"], None]]


@contextmanager
def follow(*, quiet: bool) -> Iterator[Followers]:
    """Yield a function that takes messages and one that takes states; if `quiet`, only warnings are printed."""
    if quiet:
        yield _warn, lambda state: None
    elif sys.stderr.isatty():
        with Live(console=console(stderr=True), auto_refresh=False, transient=True) as live:
            yield _line, throttle(lambda state: live.update(render_state(state), refresh=True), REFRESH)
    else:
        yield _line, throttle(lambda state: _line(progress_line(state)), EVERY)


def _warn(text: str) -> None:
    if text.startswith("warning: "):
        _line(text)


def _line(text: str) -> None:
    print_message(one_line(text, 2000))


def progress_line(state: State) -> str:
    """Describe a state in one line: conversations, drops by rule, calls, tokens, rate, time left."""
    of = "" if state.wanted is None else f" of {number(state.wanted)}"
    parts = [f"{number(state.accepted)}{of} {plural(state.wanted or state.accepted, 'conversation')}"]
    if state.dropped:
        rules = ", ".join(f"{rule} {number(count)}" for rule, count in state.dropped.most_common())
        parts.append(f"dropped: {rules}")
    parts.append(f"{number(state.calls)} {plural(state.calls, 'call')}, {number(state.tokens)} tokens")
    if state.from_journal:
        parts.append(f"{number(state.from_journal)} {plural(state.from_journal, 'reply', 'replies')} from the journal")
    parts.append(f"{state.rate:.1f} replies/s")
    if state.left is not None:
        parts.append(f"{duration(state.left)} left")
    return " · ".join(parts)


def render_state(state: State) -> RenderableType:
    """Return the panel: a bar, the counts, and the latest exchange with control characters made visible."""
    bar = ProgressBar(total=state.wanted, completed=state.accepted) if state.wanted else Text()
    line = Padding(bar, 0)  # a bar by itself has no end of line
    latest = [_shown("prompt", state.prompt), _shown("answer", state.answer)] if state.prompt else []
    return Panel(Group(line, Text(progress_line(state)), *latest), title="generating", title_align="left")


def _shown(label: str, text: str) -> RenderableType:
    cut = text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
    return Group(Text(label, style="bold"), Text(safe(cut)))
