"""The journal of a run: the results of each unit of work, appended when it is done, so that a killed run continues.

The first line says what is measured, and with what. Each further line has the results of one unit, the hash of the
documents that they belong to, and a checksum. A run that begins again reads the lines in their order. At the first that
is cut off, damaged or of other documents, it cuts the file there and goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from curate import files

VERSION = 1
Results = list[Any]


class Journal:
    """An open journal: `take` returns the results of the next unit if they are there, `append` adds them."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        files.refuse_links(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self.path = path
        self.file: BinaryIO = os.fdopen(descriptor, "r+b")
        self.reading = True  # lines of an earlier run may follow
        self.replaced = False  # an earlier run measured something else
        wanted = _line({"journal": VERSION, **header})
        found = self.file.readline()
        if found != wanted:
            self.replaced = bool(found)
            self.file.seek(0)
            self.file.truncate()
            self.reading = False
            self._write(wanted)

    def take(self, key: str) -> Results | None:
        """Return the results of the next unit, whose documents have the hash `key`; None if they are not there."""
        if not self.reading:
            return None
        place = self.file.tell()
        entry = _read(self.file.readline())
        if entry is not None and entry["key"] == key:
            results: Results = entry["results"]
            return results
        self.file.seek(place)
        self.file.truncate()
        self.reading = False
        return None

    def append(self, key: str, results: Results) -> None:
        """Add the results of the unit that `take` has not found; they are on the disk when this returns."""
        self._write(_line({"key": key, "results": results}))

    def remove(self) -> None:
        """Remove the file: what it holds is in the set."""
        files.remove(self.path, self.path.parent)

    def _write(self, line: bytes) -> None:
        self.file.write(line)
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def _line(values: Mapping[str, Any]) -> bytes:
    """Return a line with its checksum; floats are written so that they read back as the same."""
    text = json.dumps(values, allow_nan=False, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n".encode()


def _read(line: bytes) -> dict[str, Any] | None:
    """Return the values of a whole line, None for one that is cut off or damaged."""
    checksum, _, text = line.partition(b" ")
    if not line.endswith(b"\n") or hashlib.sha256(text[:-1]).hexdigest()[:16].encode() != checksum:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get("results"), list) and "key" in values else None
