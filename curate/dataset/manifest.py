"""A curated set's files and its manifest, read without the tables: what a set is, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from curate.errors import SetError

FORMAT = 1  # of the folder; raised when a reader of the old one would misread the new one
CONVERSATIONS, REJECTED, ORIGINALS = "conversations.parquet", "rejected.parquet", "originals.parquet"
MANIFEST, REPORT = "manifest.json", "report.html"
FILES = (CONVERSATIONS, REJECTED, ORIGINALS, MANIFEST, REPORT)


def read(path: Path) -> dict[str, Any] | None:
    """Return a folder's manifest, null where it holds none of curate's."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("curate_set") else None


def require(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return a set's folder and manifest; raises SetError that says what is wrong with it and what to type."""
    folder = Path(path)
    if not folder.exists():
        raise SetError(f"no curated set at {str(path)!r}; make one: curate clean DUMP -o {path}")
    if not folder.is_dir():
        raise SetError(f"{str(path)!r} is a file, not a curated set (a folder with {MANIFEST})")
    manifest = read(folder)
    if manifest is None:
        raise SetError(f"{str(path)!r} is not a curated set: it holds no readable {MANIFEST} of curate's")
    found = manifest["curate_set"]
    if found != FORMAT:
        raise SetError(f"{str(path)!r} has set format {found!r}, this version reads {FORMAT}; run curate clean again")
    for name in (CONVERSATIONS, REJECTED):
        if not (folder / name).is_file():
            raise SetError(f"{str(path)!r} is incomplete: {name} is missing; run curate clean again")
    return folder, manifest
