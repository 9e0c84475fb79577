"""Write files and folders whole or not at all: under a temporary name, then renamed into place.

Every writer of curate goes through here, so that a reader sees the earlier file or the new one, never half of one,
and so that two processes never write the same place.
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
    """Return the temporary name that `target` is written under: hidden, and in the same folder."""
    return target.with_name(f".{target.name}.partial")


@contextmanager
def replacing(target: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give a temporary path; when the block ends well, rename what was written there to `target`.

    A file or a folder may be written, or nothing at all. What stood at `target` stays until the rename, and stays for
    good if the block raises. `sync` flushes to the disk first, so that the rename survives a power loss.
    """
    target = target.resolve()  # a link stays a link, and what it leads to is replaced
    partial = partial_name(target)
    remove(partial)  # left by a process that was killed
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


def _swap_in(partial: Path, target: Path) -> None:
    if not target.is_dir():
        partial.replace(target)
        return
    old = target.with_name(f".{target.name}.old")  # a folder that is not empty cannot be renamed over
    remove(old)
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
    """Remove a file, a link or a whole folder, if there is one; what a link leads to is never touched.

    A folder that cannot be removed completely is left in part.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """Flush one file, or the names in one folder, to the disk."""
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
    """Hold a lock file; raises `busy` while another process holds it.

    The kernel releases it however this process ends. The file is removed afterwards unless `keep` is set.
    """
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            if not _is_open_file(path, file.fileno()):
                continue  # its last holder has just removed it: lock the new one
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
