"""Damage to an input: what could not be read, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ReportDamage = Callable[[int, int, str], None]  # byte offset, bytes lost, description


@dataclass(frozen=True)
class Damage:
    """A part of an input that could not be read: `bytes` lost at byte `offset` of its text, after decompression."""

    source_file: str
    offset: int
    bytes: int
    text: str
