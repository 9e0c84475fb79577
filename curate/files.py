"""Write files and folders whole or not at all: under a temporary name, then renamed into place.

A reader sees the old file or the new one, never part of one. `lock` prevents two processes from writing to the same
place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from curate.errors import CurateError


def partial_name(target: Path) -> Path:
    """Return the temporary name for writing `target`: hidden, in the same folder."""
    return target.with_name(f".{target.name}.partial")


@contextmanager
def replacing(target: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, rename what was written there to `target`.

    The block may write a file, a folder or nothing. An earlier `target` stays in place until the rename, and if the
    block raises. `sync` flushes everything to the disk first, so that the result survives a power loss.
    """
    target = target.resolve()  # a link stays a link; its target is replaced
    partial = partial_name(target)
    _clean_up(target)
    try:
        yield partial
        if partial.exists():
            if sync:
                sync_tree(partial)
            _swap_in(partial, target)
            if sync:
                sync_path(target.parent)
    finally:
        remove(partial)


def _clean_up(target: Path) -> None:
    """Clean up after a killed process: remove its temporary files, and move a folder that it renamed away back."""
    remove(partial_name(target))
    old = _old_name(target)
    if not old.is_dir():
        return
    if target.is_dir():  # only a folder is ever renamed away
        remove(old)
    elif not target.exists():
        old.rename(target)


def _old_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _swap_in(partial: Path, target: Path) -> None:
    if not target.is_dir():
        partial.replace(target)
        return
    old = _old_name(target)  # a folder that is not empty cannot be renamed over
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    remove(old)


def write_text(target: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8; lone surrogates become backslash escapes."""
    with replacing(target) as partial:
        partial.write_text(text, "utf-8", errors="backslashreplace")


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it exists; the target of a link is never touched.

    Files that cannot be removed from a folder stay, without an error.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder with everything in it, to the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            sync_tree(entry)
    sync_path(path)


@contextmanager
def lock(path: Path, busy: CurateError, *, keep: bool = False) -> Iterator[None]:
    """Lock a file for the block; raises `busy` if another process has locked it.

    The kernel releases the lock however this process ends. The file is removed afterwards unless `keep` is set.
    """
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            if not _is_open_file(path, file.fileno()):
                continue  # the previous owner has just removed it: lock the new file
            try:
                yield
            finally:
                if not keep:
                    path.unlink(missing_ok=True)
            return


def _is_open_file(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/curate`, or else `~/.cache/curate`; raises RuntimeError for a user without a home."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))  # the XDG specification says to ignore a relative path
    return (root if root.is_absolute() else Path.home() / ".cache") / "curate"
