"""A curated set on disk: its files and columns, read lazily, written whole or not at all.

A set is a folder of `conversations.parquet`, `rejected.parquet`, `originals.parquet` (unless left
out), `manifest.json` and `report.html`. It is written aside in
`.NAME.partial` and swapped in by one rename (an exchange of two names where an earlier set stands),
so whoever looks sees the earlier set or the new one. Files that curate did not write are never
deleted: a user's own files in the folder move along into the new set.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from curate import manifest
from curate.errors import SetError

CONVERSATIONS, REJECTED, ORIGINALS = manifest.CONVERSATIONS, manifest.REJECTED, manifest.ORIGINALS
MANIFEST, REPORT, FILES = manifest.MANIFEST, manifest.REPORT, manifest.FILES
PARTS = ".curate-parts"  # scratch of a run, inside the partial folder
ASIDE = ".curate-set-aside"  # stands in an earlier set while its name is given to the new one
ROW_GROUP = 20_000  # rows; by record order, so that the bytes do not depend on the workers
RAW_ROW_GROUP = 2_000  # of tables that hold records as they came, ten times larger: a row group is in memory whole

MESSAGE = pl.Struct(
    {
        "role": pl.String,
        "content": pl.String,
        "name": pl.String,
        "tool_calls": pl.String,
        "train": pl.Boolean,
        "stop": pl.Boolean,
    }
)
EDIT = pl.Struct({"rule": pl.String, "message": pl.Int32, "count": pl.Int32, "before": pl.String, "after": pl.String})
SOURCE = {"source_file": pl.String, "source_index": pl.Int64}
SIGNALS: dict[str, pl.DataType | type[pl.DataType]] = {"language": pl.String, "language_confidence": pl.Float32}
MEASURES: dict[str, pl.DataType | type[pl.DataType]] = {"turns": pl.Int32, "characters": pl.Int64, "model": pl.String}

Schema = Mapping[str, pl.DataType | type[pl.DataType]]


def conversations_schema(signals: Schema) -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns of conversations.parquet; `signals` are those beyond the built-in ones."""
    return {
        "id": pl.String,
        "source_id": pl.String,
        "piece": pl.Int32,
        "messages": pl.List(MESSAGE),
        **SIGNALS,
        "tokens": pl.Int32,
        "turns": pl.Int32,
        "prompt_tokens": pl.Int32,
        "answer_tokens": pl.Int32,
        "characters": pl.Int64,
        "model": pl.String,
        "edits": pl.List(EDIT),
        "edit_names": pl.List(pl.String),
        "cluster": pl.String,
        "split": pl.String,
        **SOURCE,
        "metadata": pl.String,
        **signals,
    }


def rejected_schema(signals: Schema) -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns of rejected.parquet; signals and measures are null where they could not be taken."""
    return {
        "source_id": pl.String,
        **SOURCE,
        "scope": pl.String,
        "message_range": pl.List(pl.Int32),
        "rule": pl.String,
        "reason": pl.String,
        "evidence": pl.String,
        "twin": pl.String,
        "record": pl.Binary,
        **MEASURES,
        **SIGNALS,
        **signals,
    }


ORIGINALS_SCHEMA: Schema = {**SOURCE, "record": pl.Binary}


@dataclass(frozen=True)
class CuratedSet:
    """A set that stands: `path` and its manifest; the tables are scanned lazily."""

    path: Path
    manifest: dict[str, Any]

    def conversations(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.path / CONVERSATIONS)

    def rejected(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.path / REJECTED)

    def originals(self) -> pl.LazyFrame | None:
        """Return the original bytes of changed records, or None if the set was written without them."""
        file = self.path / ORIGINALS
        return pl.scan_parquet(file) if file.exists() else None

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        from curate.page import notebook

        return notebook.of_set(self)


def is_set(path: Path) -> bool:
    """Tell whether a folder holds a curated set's manifest."""
    return manifest.read(path) is not None


def open_set(path: str | Path = "curated") -> CuratedSet:
    """Open a curated set; raises SetError that says what is wrong with it and what to type."""
    return CuratedSet(*manifest.require(path))


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Give a folder to write a set into; when the block ends well, swap it in as `target`.

    Refuses (SetError) a target that is neither absent, an empty folder, nor a set of ours, and one
    that another run is writing. On any error the target stays as it was and the partial is removed.
    """
    target = target.resolve()  # a link to a larger disk is followed, and stays a link
    partial = target.parent / f".{target.name}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            _recover(target, partial)
            _refuse_foreign(target)
            partial.mkdir()
            try:
                yield partial
                shutil.rmtree(partial / PARTS, ignore_errors=True)
                _sync(partial)
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


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the target's lock; the kernel lets go of it however this process ends."""
    lock = target.parent / f".{target.name}.lock"
    while True:
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SetError(f"another run is writing {str(target)!r}; wait for it, or give another -o") from None
            if not _same_file(lock, file.fileno()):
                continue  # its last holder has just removed it: lock the one that stands now
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
    if target.is_dir() and any(target.iterdir()) and manifest.read(target) is None:
        raise SetError(f"{str(target)!r} holds files and is not a curated set; nothing was written; give another -o")


def _sync(folder: Path) -> None:
    """Bring the folder's files to the disk, so that the rename never outruns them."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
    shutil.rmtree(old / PARTS, ignore_errors=True)
    for name in FILES:
        (old / name).unlink(missing_ok=True)
    for left in sorted(old.iterdir()):
        if left.name != ASIDE and not (target / left.name).exists() and target.is_dir():
            left.rename(target / left.name)
    (old / ASIDE).unlink(missing_ok=True)
    with suppress(OSError):  # what could not move stays, under its set-aside name
        old.rmdir()


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest: sorted keys, readable, UTF-8."""
    text = json.dumps({"curate_set": manifest.FORMAT, **facts}, indent=1, sort_keys=True, ensure_ascii=False)
    # A file name that is no UTF-8 comes as lone surrogates, and stands as their JSON escapes.
    (folder / MANIFEST).write_text(text + "\n", "utf-8", errors="backslashreplace")


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
