"""The text of many renderings before tokenization: blocks of text, control tokens and spans, stored as columns.

Columns are plain lists: `clean` appends about ten values for each message, and NumPy reads a list of ints far faster
than a list of objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Blocks:
    """The text between two control tokens; one row per block."""

    text: list[str] = field(default_factory=list)
    rendering: list[int] = field(default_factory=list)  # index of the rendering; ascending

    def __len__(self) -> int:
        return len(self.text)


@dataclass
class Controls:
    """Control tokens, as ids; one row per token."""

    token: list[int] = field(default_factory=list)  # ids, in the order in which they appear
    # The next block, which may be of a later rendering; `len(blocks)` at the end of the batch.
    block: list[int] = field(default_factory=list)
    rendering: list[int] = field(default_factory=list)  # its own rendering
    supervised: list[bool] = field(default_factory=list)  # such as the stop token of a supervised answer

    def __len__(self) -> int:
        return len(self.token)


@dataclass
class Spans:
    """Where a message's text is within a block; one row per span, in the order of the blocks.

    Both ends are boundaries that no token crosses, whether the span is supervised or not.
    """

    block: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)  # in characters of the block
    stop: list[int] = field(default_factory=list)  # one past the last character
    supervised: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.block)

    def rows(self) -> Iterator[tuple[int, int, int, bool]]:
        """Yield (block, start, stop, supervised) for each span."""
        return zip(self.block, self.start, self.stop, self.supervised, strict=True)

    def select(self, indices: Sequence[int], blocks: Sequence[int]) -> Spans:
        """Return the spans at `indices`, as spans of `blocks` (one for each index)."""
        return Spans(
            list(blocks),
            [self.start[i] for i in indices],
            [self.stop[i] for i in indices],
            [self.supervised[i] for i in indices],
        )


@dataclass
class TextBatch:
    """Renderings, written one after another by appending blocks, control tokens and spans to the last one.

    A rendering alternates between blocks and control tokens: no two blocks are adjacent, but control tokens may be.
    """

    blocks: Blocks = field(default_factory=Blocks)
    controls: Controls = field(default_factory=Controls)
    spans: Spans = field(default_factory=Spans)
    renderings: int = 0  # that are complete

    def add_block(self, text: str) -> None:
        """Append a block to the current rendering."""
        self.blocks.text.append(text)
        self.blocks.rendering.append(self.renderings)

    def add_control(self, token: int, supervised: bool) -> None:
        """Append a control token to the current rendering, by its id."""
        controls = self.controls
        controls.token.append(token)
        controls.block.append(len(self.blocks.text))
        controls.rendering.append(self.renderings)
        controls.supervised.append(supervised)

    def add_span(self, start: int, stop: int, supervised: bool) -> None:
        """Append a span of the last block, `start` to `stop` in characters."""
        spans = self.spans
        spans.block.append(len(self.blocks.text) - 1)
        spans.start.append(start)
        spans.stop.append(stop)
        spans.supervised.append(supervised)

    def end_rendering(self) -> None:
        """Complete the current rendering; it may be empty."""
        self.renderings += 1
