"""`curate.read`: the conversations of a set or a dump, for use in Python."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from curate.conversion.collection import Conversations
from curate.conversion.convert import check_keep, make_query
from curate.conversion.output import Split
from curate.dataset import manifest
from curate.dataset.curated_set import open_set
from curate.errors import InputError
from curate.remote.sets import find_set


def read(
    path: str | Path = "curated",
    *,
    where: str | None = None,
    search: str | None = None,
    ids: str | Path | Collection[str] | None = None,
    split: Split | None = None,
    sample: int | None = None,
    seed: int = 0,
    stratify: str | None = None,
    keep: Collection[str] = (),
) -> Conversations:
    """Return the conversations of a curated set, or of anything that `curate clean` reads; they are read when needed.

    Iterate over them for `Conversation` objects with their messages, or call `to_polars()` or `to_hf()`. The settings
    select conversations as those of `curate.convert`. Raises InputError or SetError in one line if there is no such
    file; errors in its content are raised when it is read.
    """
    check_keep(keep)
    query = make_query(where, search, ids, split, sample, seed, stratify)
    path = find_set(path)
    if not Path(path).exists():
        raise InputError(f"there is no file or set {str(path)!r}")
    if str(path) == "-":
        raise InputError("standard input can be read once only; give a file")
    if manifest.is_set(Path(path)):
        open_set(path)
    return Conversations(str(path), query, tuple(keep))
