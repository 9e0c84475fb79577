"""Write a curated set whole, or not at all."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from curate import files
from curate.dataset import manifest
from curate.dataset.curated_set import FILES, ORIGINALS, REJECTED
from curate.errors import SetError

PARTS = ".curate-parts"  # scratch of a run, inside the partial folder
ROW_GROUP = 20_000  # rows; by record order, so that the bytes do not depend on the workers
RAW_ROW_GROUP = 2_000  # of tables with raw records, whose rows are ten times larger: memory holds a row group


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Yield a folder to write a set into; when the block ends without an error, swap it in as `target`.

    Raises SetError if the target exists and is neither an empty folder nor a curated set, or if another run is
    writing it; UnsafePathError for a link at one of the names next to it that a run uses, and for a name that is not
    UTF-8. On any error the target stays unchanged and the partial folder is removed.
    """
    target = target.resolve()  # a link to a larger disk is followed, and stays a link
    files.refuse_bytes(target)
    partial = files.partial_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(_lock_of(target), _in_use_error(target)):
            _recover(target, partial)
            _refuse_foreign(target)
            partial.mkdir()
            try:
                yield partial
                files.remove(partial / PARTS, partial)
                files.sync_tree(partial)
                _swap_in(partial, target)
            finally:
                if partial.exists():
                    _retire(partial, target)
    except OSError as error:
        raise SetError(f"cannot write the set {str(target)!r}: {error.strerror or error}; it is unchanged") from error
    except pl.exceptions.ComputeError as error:
        raise SetError(f"cannot write the set {str(target)!r}: {why_not_written(error)}; it is unchanged") from error


def _lock_of(target: Path) -> Path:
    return target.parent / f".{target.name}.lock"


def _in_use_error(target: Path) -> SetError:
    return SetError(f"another run is writing {str(target)!r}; wait for it, or give another -o")


def _recover(target: Path, partial: Path) -> None:
    """Clean up after a killed run: restore an earlier set that was set aside, remove a partial folder."""
    previous = _previous(target)
    files.refuse_links(partial, previous)
    if (previous / files.SET_ASIDE).exists():  # without this file, the folder is a user's own copy
        if not target.exists():
            previous.rename(target)
        else:
            _retire(previous, target)
    files.remove(target / files.SET_ASIDE, target)
    if partial.is_dir():
        _retire(partial, target)
    if partial.exists():
        raise SetError(f"{str(partial)!r} is not curate's, and is where the set is written first; move it")


def _previous(target: Path) -> Path:
    return target.parent / f"{target.name}.previous"


def _refuse_foreign(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise SetError(f"{str(target)!r} is not a folder; give another -o")
    if target.is_dir() and any(target.iterdir()) and not manifest.is_set(target):
        raise SetError(f"{str(target)!r} contains files and is not a curated set; nothing was written; give another -o")


def _swap_in(partial: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        partial.replace(target)
    elif not _exchange(partial, target):
        previous = _previous(target)
        if previous.exists():
            raise SetError(f"{str(previous)!r} is in the way: the earlier set would be renamed to it; move it")
        (target / files.SET_ASIDE).touch()
        target.rename(previous)
        partial.rename(target)
        _retire(previous, target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step (Linux's renameat2 with RENAME_EXCHANGE); False if the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_cwd, rename_exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), rename_exchange) == 0)


def _retire(old: Path, target: Path) -> None:
    """Delete the files of curate in `old`; any others are the user's and move into `target`."""
    files.remove(old / PARTS, old)
    for name in FILES:
        if not (old / name).is_dir() or (old / name).is_symlink():  # a folder of that name is the user's
            files.remove(old / name, old)
    for path in sorted(old.iterdir()):
        if path.name != files.SET_ASIDE and not os.path.lexists(target / path.name) and target.is_dir():
            path.rename(target / path.name)
    files.remove(old / files.SET_ASIDE, old)
    files.remove(old, old.parent, only_empty=True)  # files that could not be moved stay


def row_group_size(name: str) -> int:
    """Return the number of rows in a row group of a table."""
    return RAW_ROW_GROUP if name in (REJECTED, ORIGINALS) else ROW_GROUP


def sink(file: Path, frame: pl.LazyFrame, row_group_size: int = ROW_GROUP) -> None:
    """Write a table to its file, rows in the order given, in row groups of this many rows.

    Raises OSError in one line if the file cannot be written.
    """
    try:
        frame.sink_parquet(
            file,
            compression="zstd",
            compression_level=1,
            row_group_size=row_group_size,
            maintain_order=True,
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise OSError(why_not_written(error)) from error


def why_not_written(error: Exception) -> str:
    """Return the cause in a library's error of a failed write, on one line."""
    return str(error).splitlines()[0].rpartition("underlying IO error: ")[2]
