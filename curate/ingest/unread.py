"""Files beside dumps that are not read: which of them are named, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

MAX_NAMES = 20  # in one warning

# What cannot hold chats, or only says something about a dump. Everything else is named when it is not read.
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".ico", ".svg")
CODE = (".py", ".pyc", ".sh", ".js", ".css")
CHECKSUMS = (".md5", ".sha1", ".sha256", ".sha512", ".crc")
ABOUT = (
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "contributing",
    "citation",
    "thumbs",
    "_success",
)


@dataclass(frozen=True)
class UnreadFile:
    """A file, folder or member of an archive that was not read, and why."""

    name: str
    reason: str


def is_hidden(name: str) -> bool:
    """Return whether a path is hidden, or what macOS stores beside a file."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part not in (".", "..") for part in parts)


def is_negligible(name: str) -> bool:
    """Return whether a file that is no dump need not be named: a picture, code, a checksum, a README or a license."""
    path = PurePosixPath(name.lower())
    return path.suffix in PICTURES + CODE + CHECKSUMS or path.name.partition(".")[0] in ABOUT


def describe_skipped(names: Sequence[str]) -> str:
    """Return one line on the files of a folder or zip that do not look like dumps."""
    more = f", and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    verb = (
        "file is not read: it does not look like a dump"
        if len(names) == 1
        else "files are not read: they do not look like dumps"
    )
    return f"{len(names):,} {verb}: {', '.join(names[:MAX_NAMES])}{more}; to read one, unpack it and give its own name"
