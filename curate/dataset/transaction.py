"""Write a curated set as a whole or not at all."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl

from curate import files
from curate.dataset import manifest
from curate.dataset.curated_set import FILES, ORIGINALS, REJECTED
from curate.errors import SetError

PARTS = ".curate-parts"  # scratch of a run, inside the partial folder
ASIDE = ".curate-set-aside"  # stands in an earlier set while its name is given to the new one
ROW_GROUP = 20_000  # rows; by record order, so that the bytes do not depend on the workers
RAW_ROW_GROUP = 2_000  # of tables that hold records as they came, ten times larger: a row group is in memory whole


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Give a folder to write a set into; when the block ends well, swap it in as `target`.

    Refuses (SetError) a target that is neither absent, an empty folder, nor a set of ours, and one
    that another run is writing. On any error the target stays as it was and the partial is removed.
    """
    target = target.resolve()  # a link to a larger disk is followed, and stays a link
    partial = files.partial_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(_lock_of(target), _busy(target)):
            _recover(target, partial)
            _refuse_foreign(target)
            partial.mkdir()
            try:
                yield partial
                files.remove(partial / PARTS)
                files.sync_tree(partial)
                _swap_in(partial, target)
            finally:
                if partial.exists():
                    _retire(partial, target)
    except OSError as error:
        raise SetError(
            f"cannot write the set {str(target)!r}: {error.strerror or error}; it stays as it was"
        ) from error
    except pl.exceptions.ComputeError as error:
        raise SetError(f"cannot write the set {str(target)!r}: {why_not_written(error)}; it stays as it was") from error


def _lock_of(target: Path) -> Path:
    return target.parent / f".{target.name}.lock"


def _busy(target: Path) -> SetError:
    return SetError(f"another run is writing {str(target)!r}; wait for it, or give another -o")


def _recover(target: Path, partial: Path) -> None:
    """Undo what a run that was killed left: an earlier set under its set-aside name, a partial folder."""
    previous = _previous(target)
    if (previous / ASIDE).exists():  # without that the folder is a user's own copy
        if not target.exists():
            previous.rename(target)
        else:
            _retire(previous, target)
    if target.is_dir():
        (target / ASIDE).unlink(missing_ok=True)
    if partial.exists():
        _retire(partial, target)


def _previous(target: Path) -> Path:
    return target.parent / f"{target.name}.previous"


def _refuse_foreign(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise SetError(f"{str(target)!r} is not a folder; give another -o")
    if target.is_dir() and any(target.iterdir()) and not manifest.is_set(target):
        raise SetError(f"{str(target)!r} holds files and is not a curated set; nothing was written; give another -o")


def _swap_in(partial: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        partial.replace(target)
    elif not _exchange(partial, target):
        previous = _previous(target)
        if previous.exists():
            raise SetError(f"{str(previous)!r} stands in the way of setting the earlier set aside; move it")
        (target / ASIDE).touch()
        target.rename(previous)
        partial.rename(target)
        _retire(previous, target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux's renameat2 with RENAME_EXCHANGE); False where it cannot be done."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_cwd, rename_exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0)


def _retire(old: Path, target: Path) -> None:
    """Delete what curate wrote into `old`; anything else in it is the user's and moves into `target`."""
    files.remove(old / PARTS)
    for name in FILES:
        (old / name).unlink(missing_ok=True)
    for left in sorted(old.iterdir()):
        if left.name != ASIDE and not (target / left.name).exists() and target.is_dir():
            left.rename(target / left.name)
    (old / ASIDE).unlink(missing_ok=True)
    with suppress(OSError):  # what could not move stays, under its set-aside name
        old.rmdir()


def sink(file: Path, frame: pl.LazyFrame) -> None:
    """Write a table to its file, rows in the order given, in row groups of a fixed size.

    Raises OSError with one line where the file cannot be written.
    """
    try:
        frame.sink_parquet(
            file,
            compression="zstd",
            compression_level=1,
            row_group_size=RAW_ROW_GROUP if file.name in (REJECTED, ORIGINALS) else ROW_GROUP,
            maintain_order=True,
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise OSError(why_not_written(error)) from error


def why_not_written(error: Exception) -> str:
    """Return the cause that a library gives for a failed write, on one line and without its own names for it."""
    return str(error).splitlines()[0].rpartition("underlying IO error: ")[2]
