"""Small ShareGPT dumps in every form, and functions that read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curate.ingest.decode import RawRecord, decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs

Read = tuple[list[RawRecord], Reader]
Dump = Callable[..., Read]


def row(number: int, text: str = "hello") -> dict[str, Any]:
    """Return a small ShareGPT row."""
    turns = [{"from": "human", "value": f"{text} {number}"}, {"from": "gpt", "value": 'say "hi", {"id": 1}, ok'}]
    return {"id": f"r{number}", "conversations": turns}


ROWS = [row(number) for number in range(13)]
LINES = b"\n".join(json.dumps(each).encode() for each in ROWS) + b"\n"
ARRAY = json.dumps(ROWS).encode()
PRETTY = json.dumps(ROWS, indent=2).encode()
VALUES = b"\n".join(json.dumps(each, indent=2).encode() for each in ROWS)
WRAPPED = json.dumps({"version": 1, "notes": [1, [2]], "data": ROWS, "more": {"a": []}}).encode()
FORMS = {"array": ARRAY, "lines": LINES, "pretty": PRETTY, "values": VALUES, "wrapped": WRAPPED}


def read(path: Path, **settings_: Any) -> Read:
    """Read one file to its end."""
    reader = Reader(open_inputs([path]), **settings_)
    return [record for chunk in reader for record in decode_records(chunk)], reader


def reads(folder: Path) -> Dump:
    """Return a function that writes bytes to a file in the folder and reads it as a dump."""

    def read_bytes(data: bytes, name: str = "dump.json", **settings_: Any) -> Read:
        path = folder / name
        path.write_bytes(data)
        return read(path, **settings_)

    return read_bytes


def values(records: list[RawRecord]) -> list[Any]:
    return [record.value for record in records]


def good(records: list[RawRecord]) -> list[Any]:
    return [record.value for record in records if record.problem is None]


def rules(records: list[RawRecord]) -> list[str]:
    return [record.problem.rule for record in records if record.problem is not None]
