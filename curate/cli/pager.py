"""A pager for a sequence of screens: scroll within one, move to the next with a key."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from curate.display.figures import percent

if TYPE_CHECKING:
    from rich.console import RenderableType

Render = Callable[[int], "RenderableType"]

KEYS = {
    **dict.fromkeys(("n", "l", "\x1b[C", "\x1bOC"), "next"),
    **dict.fromkeys(("p", "h", "\x1b[D", "\x1bOD"), "previous"),
    **dict.fromkeys(("j", "\r", "\n", "\x1b[B", "\x1bOB"), "down"),
    **dict.fromkeys(("k", "\x1b[A", "\x1bOA"), "up"),
    **dict.fromkeys((" ", "f", "\x1b[6~"), "page down"),
    **dict.fromkeys(("b", "\x1b[5~"), "page up"),
    **dict.fromkeys(("g", "\x1b[H", "\x1b[1~", "\x1bOH"), "top"),
    **dict.fromkeys(("G", "\x1b[F", "\x1b[4~", "\x1bOF"), "bottom"),
    **dict.fromkeys(("q", "Q", "\x1b", "\x04"), "quit"),
}
ALTERNATE, BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # alternate screen with a hidden cursor, and back
CLEAR = "\x1b[H\x1b[J"


def browse(count: int, render: Render) -> None:
    """Show screens 0 to `count` - 1; a single screen that fits is printed without the pager."""
    width, height = shutil.get_terminal_size()
    if count == 1 and len(lines := _lines(render(0), width)) < height:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        return
    sys.stdout.write(ALTERNATE)
    try:
        _run(count, render)
    finally:
        sys.stdout.write(BACK)
        sys.stdout.flush()


def _run(count: int, render: Render) -> None:
    screen, top = 0, 0  # index of the screen; its first visible line
    rendered_for: tuple[int, int] | None = None  # screen and width of `lines`
    lines: list[str] = []
    while True:
        width, height = shutil.get_terminal_size()
        room = max(height - 1, 1)
        if rendered_for != (screen, width):
            lines, rendered_for = _lines(render(screen), width), (screen, width)
        top = max(0, min(top, len(lines) - room))
        _draw(lines[top : top + room], _status(screen, count, top + room, len(lines), width))
        action = KEYS.get(click.getchar())
        if action == "quit":
            return
        if action in ("next", "previous"):
            step = 1 if action == "next" else -1
            target = min(max(screen + step, 0), count - 1)
            screen, top = target, 0 if target != screen else top
        elif action == "page down" and top + room >= len(lines) and screen + 1 < count:
            screen, top = screen + 1, 0
        else:
            top += {"down": 1, "up": -1, "page down": room, "page up": -room}.get(action or "", 0)
            top = {"top": 0, "bottom": len(lines)}.get(action or "", top)


def _lines(renderable: RenderableType, width: int) -> list[str]:
    from curate.display.text import console

    out = console(width=width)
    with out.capture() as captured:
        out.print(renderable)
    return captured.get().rstrip("\n").split("\n")


def _draw(lines: list[str], status: str) -> None:
    # Each line resets its style, so that none runs into the next; the last row is the status, inverted.
    sys.stdout.write(CLEAR + "".join(f"{line}\x1b[0m\r\n" for line in lines) + f"\x1b[7m{status}\x1b[0m")
    sys.stdout.flush()


def _status(screen: int, count: int, last_line: int, total: int, width: int) -> str:
    share = "all" if last_line >= total else percent(100 * last_line // total, 100, digits=0)
    text = f" {screen + 1} of {count:,} · {share} · n next  p previous  ↑↓ space scroll  q quit "
    return text[: max(width - 1, 1)]
