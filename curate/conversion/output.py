"""Where a conversion writes: its target, the file of what was left out, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from curate.conversion.read import Found
from curate.conversion.writers import Entry, native_record
from curate.errors import RecordError
from curate.schemas import read_turns

Split = Literal["train", "eval"]
LEFT_OUT = ".left-out.jsonl"


@dataclass(frozen=True)
class ConvertResult:
    """What became of the records: read = written + left_out + other_split."""

    target: Path
    read: int
    written: int
    left_out: Mapping[str, int]  # by rule
    other_split: int  # read, but not of the split asked for
    edits: Mapping[str, int]  # repairs that reading took, by rule
    left_out_file: Path | None
    warnings: tuple[str, ...]


def left_out_of(target: Path) -> Path:
    """Return the file beside a target that says what is not in it."""
    return target.with_name(target.name + LEFT_OUT)


def left_out_line(row: Found, entry: Entry | None, error: RecordError) -> dict[str, object]:
    """Return the line that says why a record was left out, with all of it."""
    record: object = (
        row.raw.decode("utf-8", "backslashreplace") if row.raw is not None else read_turns.to_plain_json(row.value)
    )
    if entry is not None:
        record = native_record(entry)
    place = {"source_file": row.file, "source_index": row.index}
    return {**place, "rule": error.rule, "reason": error.reason, "evidence": error.evidence, "record": record}
