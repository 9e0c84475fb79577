"""Damage to an input: what could not be read, where, and which text failed the checksum of its container."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

ReportDamage = Callable[[int, int, str], None]  # byte offset, bytes lost, what happened
ReportLoss = Callable[[int, int | None, str], None]  # byte offset, bytes on disk lost (None: unknown), what happened
GAP_TEXT = b"\0\n"  # JSON cannot contain a zero byte, so the text before and after a gap never forms one record


@dataclass(frozen=True)
class Damage:
    """A part of an input that could not be read: `bytes` lost at byte `offset` of its text, after decompression."""

    source_file: str
    offset: int
    bytes: int
    text: str


@dataclass(frozen=True)
class Verified:
    """Marks a place between the blocks of a stream: the blocks since the mark before are as they were written."""


@dataclass(frozen=True)
class Failed:
    """Marks a place between the blocks of a stream: the blocks since the mark before may be altered."""

    reason: str


@dataclass(frozen=True)
class Gap:
    """Marks a place between the blocks of a stream where some of its text is missing."""


@dataclass(frozen=True)
class CutOff:
    """Marks the end of a stream that is cut off: no checksum covers the blocks since the mark before."""

    reason: str


Block = bytes | Verified | Failed | Gap | CutOff


@dataclass(frozen=True)
class FailedText:
    """Bytes `start` to `stop` of a text, which may be altered."""

    start: int
    stop: int
    reason: str


@dataclass
class Verification:
    """Follows the marks of a stream: its text up to byte `verified` is checked, apart from the `failed` parts."""

    offset: int = 0
    verified: int = 0
    failed: list[FailedText] = field(default_factory=list)
    gaps: set[int] = field(default_factory=set)  # bytes of the text where some of it is missing
    cut_off: str = ""  # why the stream around the text has no end, if it has none

    def remove_marks(self, blocks: Iterator[Block]) -> Iterator[bytes]:
        """Yield the text of a stream without its marks, which are noted."""
        for block in blocks:
            if isinstance(block, Gap):
                self.gaps.add(self.offset)
                block = GAP_TEXT
            if isinstance(block, bytes):
                self.offset += len(block)
                yield block
                continue
            if isinstance(block, CutOff):
                self.cut_off = block.reason
                continue
            if isinstance(block, Failed) and self.verified < self.offset:
                self.failed.append(FailedText(self.verified, self.offset, block.reason))
            self.verified = self.offset
