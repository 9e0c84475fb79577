"""A window on a text that only moves forward."""

from __future__ import annotations

from collections.abc import Iterator


class TextWindow:
    """A window on a text that only moves forward; `data[0]` is byte `start` of the text."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.data = b""
        self.start = 0
        self.at_end = False

    def move(self, by: int, size: int) -> None:
        """Drop `by` bytes, and read until `size` are available or the text ends."""
        self.start += by
        self._read(memoryview(self.data)[by:], size)

    def fill(self, size: int) -> None:
        """Read until `size` bytes are available or the text ends."""
        if len(self.data) < size and not self.at_end:
            # An eighth more, so that a window that grows little by little is not copied each time.
            self._read(memoryview(self.data), max(size, len(self.data) + len(self.data) // 8))

    def _read(self, rest: memoryview, size: int) -> None:
        parts: list[bytes | memoryview] = [rest]
        available = len(rest)
        while available < size and not self.at_end:
            block = next(self.blocks, None)
            self.at_end = block is None
            parts.append(block or b"")
            available += len(parts[-1])
        self.data = b"".join(parts)
