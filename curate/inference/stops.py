"""Cut a stream of text at the first stop string, without ever returning a part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Takes text in parts and returns what is certain to come before any stop string.

    The stop that ends first cuts the text, so the result does not depend on how the text is divided into parts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.found = False
        self._held = ""  # the end of the text so far that may be the beginning of a stop

    def add(self, text: str) -> str:
        """Return the text that can be shown now; nothing after a stop."""
        if self.found:
            return ""
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return the text that was held, as no stop completed it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that a stop begins with, in characters."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
