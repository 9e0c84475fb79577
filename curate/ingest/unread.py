"""Files beside dumps that are not read: which of them are named, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

MAX_NAMES = 20  # in one warning

# What cannot hold chats, or only says something about a dump. Everything else is named when it is not read.
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".ico", ".svg")
CODE = (".py", ".pyc", ".sh", ".css")  # JavaScript may hold data
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

# Beside the chats of ChatGPT's and Claude's exports: files about the user and what the user uploaded, no chats.
PART_OF_EXPORT = "is a part of an export that holds no chats"
_CHATS = re.compile(r"conversations(?:-\d+)?\.json")
_PARTS = frozenset(
    f"{name}.json"
    for name in (
        *("user", "user_settings", "message_feedback", "shared_conversations", "model_comparisons", "group_chats"),
        *("shopping", "sora", "export_manifest", "users", "projects", "memories", "ads", "codex", "gpts", "plugins"),
    )
) | {"chat.html"}
_UPLOAD = re.compile(r"file-\w{6,}[-.].*|file[-_]\w{20,}.*", re.S)  # ids of files begin the names of uploads
_FOLDERS = frozenset({"textdocs", "projects", "dalle-generations", "audio"})


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


def parts_of_exports(paths: Iterable[str]) -> set[str]:
    """Return those of the paths that are parts of an export without chats, by their names and its conversations."""
    all_paths = [PurePosixPath(path) for path in paths]
    exports = {path.parent for path in all_paths if _CHATS.fullmatch(path.name)}
    return {str(path) for path in all_paths if exports and _is_part(path, exports)}


def _is_part(path: PurePosixPath, exports: set[PurePosixPath]) -> bool:
    if path.parent in exports:
        return path.name in _PARTS or _UPLOAD.fullmatch(path.name) is not None
    return path.parent.name in _FOLDERS and not exports.isdisjoint(path.parents)


def describe_skipped(names: Sequence[str]) -> str:
    """Return one line on the files of a folder or zip that do not look like dumps."""
    more = f", and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    verb = (
        "file is not read: it does not look like a dump"
        if len(names) == 1
        else "files are not read: they do not look like dumps"
    )
    return (
        f"{len(names):,} {verb}: {', '.join(names[:MAX_NAMES])}{more}; to read one, name it (from an archive, unpacked)"
    )
