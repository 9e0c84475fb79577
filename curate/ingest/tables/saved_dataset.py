"""Folders that the datasets library has saved: which of their files hold rows, and of which split."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

STATE, SPLITS = "state.json", "dataset_dict.json"
ABOUT = frozenset({STATE, SPLITS, "dataset_info.json"})  # files without rows
KEYS_ABOUT = (b'"_data_files"', b'"_fingerprint"', b'"features"', b'"splits"')
CACHE = "is a file that datasets keeps beside the data that it was made from"


def is_about(path: Path) -> bool:
    """Return whether a file only describes the data set beside it."""
    return path.name in ABOUT and (path.name == SPLITS or any(path.parent.glob("*.arrow")))


def is_about_member(name: str, head: bytes) -> bool:
    """Return whether a member of an archive, of which `head` are the first bytes, only describes a data set."""
    return PurePosixPath(name).name in ABOUT and any(key in head for key in KEYS_ABOUT)


def is_cache(path: Path) -> bool:
    """Return whether an Arrow file is not of the data of the folder's data set, but computed from these."""
    names = _data_files(path.parent) if path.suffix == ".arrow" else []
    return bool(names) and path.name not in names


def missing_files(path: Path) -> list[str]:
    """Return the names of the files that a state names and that are not in its folder."""
    return (
        [name for name in _data_files(path.parent) if not (path.parent / name).exists()] if path.name == STATE else []
    )


def split_of(path: Path) -> str:
    """Return the split that the rows of a data set's file belong to; empty if it has none."""
    folder = path.parent
    if path.name not in _data_files(folder):
        return ""
    splits = _read(folder.parent / SPLITS).get("splits")
    if isinstance(splits, list) and folder.name in splits:
        return folder.name
    split = _read(folder / STATE).get("_split")
    return split if isinstance(split, str) else ""


def _data_files(folder: Path) -> list[str]:
    entries = _read(folder / STATE).get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [name for name in names if isinstance(name, str)]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
