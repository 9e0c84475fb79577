"""The journal of a run: every request and every reply, as JSON lines that are only ever appended.

A run that was stopped or killed goes on from it without asking anything twice. The first line says what the run is.
A reply is on the disk before it is used. A last line that is cut off, by a kill or a full disk, is removed when the
journal is opened; a damaged line elsewhere is left alone and counted, and its request is asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curate import files
from curate.client.exchange import Reply, Request, read_reply
from curate.errors import RunError

VERSION = 1


class Journal:
    """The journal at `path` of the run that `header` describes; `notes` say what was mended.

    Raises RunError where another run wrote it, or writes it now.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.notes: list[str] = []
        self.calls = 0  # made by earlier runs
        self.tokens = 0
        self._places: dict[tuple[str, str], int] = {}  # of replies, by key and hash
        busy = RunError(f"another run is writing {str(path)!r}; wait for it, or give another -o")
        self._lock = files.lock(path.with_name(f".{path.name}.lock"), busy)
        self._lock.__enter__()
        try:
            self._open(path, {"journal": VERSION, **header})
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def _open(self, path: Path, header: Mapping[str, Any]) -> None:
        files.refuse_links(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            self._mend()
            self._read(header)
        except BaseException:
            self._file.close()
            raise

    def _mend(self) -> None:
        """Remove a last line that is cut off."""
        size, end = os.fstat(self._file.fileno()).st_size, 0
        place = size
        while place > 0 and not end:  # from the end, block by block
            start = max(0, place - 65_536)
            found = os.pread(self._file.fileno(), place - start, start).rfind(b"\n")
            place, end = start, start + found + 1 if found >= 0 else 0
        if end < size:
            os.ftruncate(self._file.fileno(), end)
            self.notes.append(f"the last line of {self.path.name} was cut off ({size - end:,} bytes) and is removed")

    def _read(self, header: Mapping[str, Any]) -> None:
        """Read the lines of earlier runs; raises RunError where the first is not `header`."""
        damaged, place = 0, 0
        with os.fdopen(os.dup(self._file.fileno()), "rb") as lines:
            for number, line in enumerate(lines):
                entry = _parse(line)
                if number == 0:
                    self._check(entry, header)
                elif entry is None or not self._take(entry, place):
                    damaged += 1
                place += len(line)
        if place == 0:
            self._write(header)
        if damaged:
            self.notes.append(f"{damaged} damaged lines of {self.path.name} are skipped; what they held is asked again")

    def _check(self, entry: dict[str, Any] | None, header: Mapping[str, Any]) -> None:
        if entry is None or "journal" not in entry:
            raise RunError(f"{str(self.path)!r} is not a journal of curate; move it, or give another -o")
        header = json.loads(json.dumps(header))
        changed = sorted(key for key in entry.keys() | header.keys() if entry.get(key) != header.get(key))
        if changed:
            raise RunError(
                f"{str(self.path)!r} is of a run with another {', '.join(changed)}; give the same, another -o, "
                "or --fresh to begin again"
            )

    def _take(self, entry: dict[str, Any], place: int) -> bool:
        """Take an entry of an earlier run; return whether it is whole."""
        if "sent" in entry:
            self.calls += 1
        elif _has(entry, reply=str, hash=str, tokens=int) and "body" in entry and entry["tokens"] >= 0:
            self._places.setdefault((entry["reply"], entry["hash"]), place)
            self.tokens += entry["tokens"]
        elif _has(entry, failed=str, hash=str, error=str):
            if entry.get("final"):
                self._places.setdefault((entry["failed"], entry["hash"]), place)
        else:
            return False
        return True

    @property
    def replies(self) -> int:
        """How many replies of earlier runs it holds."""
        return len(self._places)

    def find(self, request: Request) -> Reply | None:
        """Return the reply that an earlier run got to a request, None if it got none that can be read."""
        place = self._places.get((request.key, request.hash))
        if place is None:
            return None
        entry = json.loads(self._line_at(place))
        if "failed" in entry:
            return Reply("", "error", error=entry["error"], from_journal=True)
        try:
            return read_reply(request, entry["body"], from_journal=True)
        except ValueError:  # damaged
            return None

    def _line_at(self, place: int) -> bytes:
        with os.fdopen(os.dup(self._file.fileno()), "rb") as lines:
            lines.seek(place)
            return lines.readline()

    def add_sent(self, request: Request, attempt: int) -> None:
        """Note that a request is about to be sent; its body is noted the first time."""
        entry = {"sent": request.key, "hash": request.hash, "attempt": attempt}
        self._write(entry | ({"path": request.path, "body": request.body} if attempt == 1 else {}), sync=False)

    def add_reply(self, request: Request, body: Any, tokens: int) -> None:
        """Add a reply; it is on the disk when this returns."""
        self._write({"reply": request.key, "hash": request.hash, "tokens": tokens, "body": body})

    def add_failure(self, request: Request, error: str, *, final: bool) -> None:
        """Add a failed attempt; after a final one the request is not sent again."""
        self._write({"failed": request.key, "hash": request.hash, "error": error, "final": final}, sync=final)

    def _write(self, entry: Mapping[str, Any], *, sync: bool = True) -> None:
        stamped = (
            {**entry, "at": datetime.now(UTC).isoformat(timespec="milliseconds")} if "journal" not in entry else entry
        )
        line = json.dumps(stamped, ensure_ascii=True).encode() + b"\n"
        written = self._file.write(line)
        if written != len(line):  # the disk is full
            raise RunError(f"cannot write {str(self.path)!r}: the disk is full; make room and type the same command")
        if sync:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, and let others write it."""
        self._file.close()
        self._lock.__exit__(None, None, None)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _has(entry: Mapping[str, Any], **kinds: type) -> bool:
    """Return whether an entry has values of exactly these types."""
    return all(type(entry.get(key)) is kind for key, kind in kinds.items())


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
