"""The first line of a fingerprint's file: which benchmark it is, and how large its parts are."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from curate.errors import InputError, error_message

T = TypeVar("T")
SUFFIX = ".fingerprint"
KEY = "curate_fingerprint"
FORMAT = 1
MAX_HEADER = 1 << 12  # bytes
MAX_BYTES = 1 << 30  # of a file: about 150 million 8-grams
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SIZES = ("texts", "hashes", "id_bytes")


@dataclass(frozen=True)
class Header:
    """The name of a benchmark, its numbers of texts and hashes, the bytes of its ids, the digest of what follows."""

    benchmark: str
    texts: int
    hashes: int
    id_bytes: int
    sha256: str

    def encode(self) -> bytes:
        """Return the header as a line of JSON."""
        return json.dumps({KEY: FORMAT, **asdict(self)}).encode() + b"\n"


def read_header(path: Path) -> Header:
    """Read a fingerprint's header alone; raises InputError as `read_parts` does, except for what follows it."""
    return _read(path, lambda file: _parse(path, file.readline(MAX_HEADER)))


def read_parts(path: Path) -> tuple[Header, bytes]:
    """Read a fingerprint's header and what follows it, whose digest is checked.

    Raises InputError if the file is missing, damaged, too large or no fingerprint.
    """
    header, body = _read(path, lambda file: (_parse(path, file.readline(MAX_HEADER)), file.read(MAX_BYTES)))
    if hashlib.sha256(body).hexdigest() != header.sha256:
        raise damaged(path, "its digest is not that of its content")
    return header, body


def damaged(path: Path, problem: str) -> InputError:
    """Return the error that a fingerprint is damaged."""
    return InputError(f"fingerprint {str(path)!r} is damaged: {problem}; make it again with curate fingerprint")


def _read(path: Path, read: Callable[[BinaryIO], T]) -> T:
    """Open a regular file of a size that is allowed, and read from it."""
    try:
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist; curate fingerprint makes one"
            raise InputError(f"fingerprint {str(path)!r} {problem}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InputError(f"fingerprint {str(path)!r} has {size:,} bytes, over the limit of {MAX_BYTES:,}")
        with path.open("rb") as file:
            return read(file)
    except (OSError, ValueError) as error:
        raise InputError(f"fingerprint {str(path)!r} cannot be read: {error_message(error)}") from None


def _parse(path: Path, line: bytes) -> Header:
    try:
        values = json.loads(line) if line.startswith(b'{"' + KEY.encode()) else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{str(path)!r} is not a fingerprint; make one of it with curate fingerprint")
    if values.pop(KEY, None) != FORMAT:
        raise InputError(f"fingerprint {str(path)!r} is of another version of curate; make it again")
    if not _is_header(values):
        raise damaged(path, "its first line does not say what it holds")
    return Header(**values)


def _is_header(values: dict[str, Any]) -> bool:
    """Return whether values have the keys and types of a header, and sizes that are allowed."""
    name, digest = values.get("benchmark"), values.get("sha256")
    return (
        values.keys() == Header.__annotations__.keys()
        and isinstance(name, str)
        and NAME.fullmatch(name) is not None
        and isinstance(digest, str)
        and all(type(values[key]) is int and 0 <= values[key] <= MAX_BYTES for key in SIZES)
    )
