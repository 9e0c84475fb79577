"""Text and JSON that are safe to print, and consoles to print on; Rich is imported only when used."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import unicodedata
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

ELLIPSIS = "…"
HIDDEN = (  # non-ASCII characters that control a terminal, are invisible, or cannot be encoded in UTF-8
    *range(0x80, 0xA0),  # C1: 0x9B alone starts an escape sequence on some terminals
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # direction marks and overrides
    *(0x2028, 0x2029, 0xFEFF),
    *range(0xD800, 0xE000),  # lone surrogates
)
_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},  # ESC becomes ␛
    0x7F: "␡",
    **{code: f"\\u{code:04x}" for code in HIDDEN},
}
ESCAPED = {code: f"\\u{code:04x}" for code in (0x7F, *HIDDEN)}  # as JSON escapes
HIDDEN_PATTERN = (
    f"[\\x7f{''.join(chr(code) for code in HIDDEN if not 0xD800 <= code < 0xE000)}]"  # a regular expression
)
_ESCAPED = re.compile(f"[{''.join(map(chr, ESCAPED))}]")
_VISIBLE_LINE = {**_VISIBLE, ord("\n"): "⏎", ord("\t"): " "}


def safe(text: str) -> str:
    """Make control characters, escape codes and direction overrides visible; keep line breaks and tabs."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def one_line(text: str, width: int = 200) -> str:
    """Return `safe` text on one line, cut at `width` terminal cells but never within a number."""
    shown = text[: 2 * width].replace("\r\n", "\n").translate(_VISIBLE_LINE)
    return shown if len(text) <= 2 * width and cells(shown) <= width else _cut(shown, width)


def to_json(value: object) -> str:
    """Return a dataclass or plain values as JSON, with terminal control characters escaped."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return escape_hidden(json.dumps(plain, indent=1, ensure_ascii=False))


def to_json_line(value: object) -> str:
    """Return plain values as JSON on one line, with terminal control characters escaped."""
    return escape_hidden(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def escape_hidden(text: str) -> str:
    """Return JSON text with terminal control characters escaped."""
    return _ESCAPED.sub(lambda match: ESCAPED[ord(match[0])], text)  # far faster than `translate`


def cells(text: str) -> int:
    """Count the terminal cells that text takes: two for a wide East Asian character, none for a combining mark."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, width: int) -> str:
    used = 0
    for index, character in enumerate(text):
        used += _cells(character)
        if used > width - 1:
            return text[:index].rstrip("0123456789.,") + ELLIPSIS  # "92…" would look like a number
    return text + ELLIPSIS


def show(renderable: RenderableType) -> None:
    """Print on stdout, without trailing blanks if it is a pipe or a file.

    The terminal wraps a table that is wider than itself, since cropping would cut numbers.
    """
    out = console()
    if out.is_terminal:
        out.print(renderable, crop=False)
        return
    with out.capture() as captured:
        out.print(renderable, crop=False)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def console(*, stderr: bool = False, file: IO[str] | None = None, width: int | None = None) -> Console:
    """Return a console that prints text unchanged: no markup, no emoji names, no highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, file=file, width=width, markup=False, emoji=False, highlight=False)
