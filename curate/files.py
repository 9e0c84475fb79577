"""Write files and folders whole or not at all: under a temporary name, then renamed into place.

A reader sees the old file or the new one, never part of one. `lock` prevents two processes from writing to the same
place.

curate never writes links, so a link at a name that curate chooses (a temporary name, a lock, a checkpoint) leads to
files of somebody else: `refuse_links` refuses it. Everything that is removed goes through `remove`, which checks that
the path lies in the right folder.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from curate.errors import CurateError, UnsafePathError

MAX_WHOLE = 256 << 20  # bytes of a file that is read whole; the largest tokenizer.json have 40 MB
SET_ASIDE = ".curate-set-aside"  # a file that marks an earlier folder while the new one is swapped in


def partial_name(target: Path) -> Path:
    """Return the temporary name for writing `target`: hidden, in the same folder."""
    return target.with_name(f".{target.name}.partial")


def refuse_bytes(path: Path) -> None:
    """Raise UnsafePathError for a path that is not UTF-8, under which Polars neither reads nor writes a table."""
    if not is_text(str(path)):
        raise UnsafePathError(
            f"the name {str(path)!r} is not UTF-8, and tables are only kept under names that are; rename it"
        )


def is_text(name: str) -> bool:
    """Return whether a name or an argument is UTF-8; other bytes of it are lone surrogates in Python."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


@contextmanager
def replacing(target: Path, *, folder: bool = False, sync: bool = False, follow_link: bool = False) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, rename what was written there to `target`.

    The block may write a file, or with `folder` a folder, or nothing. An earlier `target` stays in place until the
    rename, and if the block raises. `sync` flushes everything to the disk first, so that the result survives a power
    loss. `follow_link` is for a target that the user names: a link is kept, and its target is replaced. Raises
    UnsafePathError as `check_replaceable` does.
    """
    if follow_link:
        target = target.resolve()
    partial = partial_name(target)
    check_replaceable(target, folder=folder)
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
        remove(partial, target.parent)


def _clean_up(target: Path) -> None:
    """Clean up after a killed process: remove its temporary files, and move a folder that it set aside back."""
    remove(partial_name(target), target.parent)
    old = _old_name(target)
    if (old / SET_ASIDE).exists():
        if target.exists():
            remove(old, target.parent)
        else:
            old.rename(target)
    remove(target / SET_ASIDE, target)


def _old_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _swap_in(partial: Path, target: Path) -> None:
    if not target.is_dir():
        partial.replace(target)
        return
    old = _old_name(target)  # a folder that is not empty cannot be renamed over
    if old.exists():
        raise UnsafePathError(f"{str(old)!r} is in the way: the earlier folder would be renamed to it; move it")
    (target / SET_ASIDE).touch()
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        remove(target / SET_ASIDE, target)
        raise
    remove(old, target.parent)


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file whole or not at all, and flush it to the disk; raises UnsafePathError as `replacing` does."""
    with replacing(target, sync=True) as partial:
        partial.write_bytes(content)


def write_text(target: Path, text: str, *, follow_link: bool = False) -> None:
    """Write a text file whole or not at all, in UTF-8; lone surrogates become backslash escapes.

    Raises UnsafePathError as `replacing` does.
    """
    with replacing(target, follow_link=follow_link) as partial:
        partial.write_text(text, "utf-8", errors="backslashreplace")


# ---- staying inside


def check_replaceable(target: Path, *, folder: bool = False) -> None:
    """Check the names that `replacing` uses: early, so that no work is lost.

    Raises UnsafePathError for a link, for a folder where a file will be written, and for the reverse.
    """
    names = [target, partial_name(target)] + [_old_name(target)] * folder
    refuse_links(*names)
    for path in names:
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            kind = "folder" if folder else "regular file"
            raise UnsafePathError(f"{str(path)!r} is not a {kind}, so curate does not replace it; move it")


def refuse_links(*paths: Path) -> None:
    """Raise UnsafePathError if a path is a symbolic link."""
    for path in paths:
        if path.is_symlink():
            raise UnsafePathError(
                f"{str(path)!r} is a link; curate follows no link at this name, which may lead anywhere; remove it"
            )


def remove(path: Path, inside: Path, *, only_empty: bool = False) -> None:
    """Remove a file, a link or a whole folder that lies in the folder `inside`, if it exists.

    The target of a link is never touched. Files that cannot be removed from a folder stay, without an error.
    `only_empty` keeps a folder that has files. Raises UnsafePathError if `path` is not below `inside`, or if a folder
    between the two is a link.
    """
    _prove_inside(path, inside)
    if not path.is_dir() or path.is_symlink():
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
    elif only_empty:
        with suppress(OSError):
            path.rmdir()
    else:
        shutil.rmtree(path, ignore_errors=True)  # does not follow links


def _prove_inside(path: Path, inside: Path) -> None:
    names = path.parts[len(inside.parts) :]
    if path.parts[: len(inside.parts)] != inside.parts or not names or ".." in names:
        raise UnsafePathError(f"{str(path)!r} is not in the folder {str(inside)!r}; nothing was removed")
    folder = inside
    for name in names[:-1]:
        folder = folder / name
        refuse_links(folder)


def scratch_folder(path: Path) -> Path:
    """Make an empty folder for temporary files, in place of one that a killed process left; return its path."""
    refuse_links(path)
    remove(path, path.parent)
    path.mkdir()
    return path


@contextmanager
def spooling(blocks: Iterable[bytes], folder: Path | None = None) -> Iterator[Path]:
    """Write blocks to a temporary file in `folder` (None: the system's folder for these); it is removed afterwards."""
    with tempfile.NamedTemporaryFile(prefix="curate-", dir=folder) as file:  # a new file that only this user can read
        file.writelines(blocks)
        file.flush()
        yield Path(file.name)


def open_own(path: Path) -> io.BufferedReader:
    """Open a file that curate wrote, for reading.

    Raises UnsafePathError for a link, or what is not a regular file: opening a pipe would wait for a writer.
    """
    refuse_links(path)
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnsafePathError(f"{str(path)!r} is not a regular file")
    return file


def read_whole(path: Path) -> bytes:
    """Return the bytes of a small file from elsewhere, such as a model's configuration; a link to it is followed.

    Raises OSError for what is not a regular file (a pipe would wait for a writer, a device may never end), and for a
    file of more than MAX_WHOLE bytes.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if status.st_size > MAX_WHOLE:
            raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than {MAX_WHOLE:,}", str(path))
        return file.read()


# ---- the disk


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
    """Lock a file for the block; raises `busy` if another process has locked it, UnsafePathError for a link.

    The kernel releases the lock however this process ends. The file, which is empty, is removed afterwards unless
    `keep` is set.
    """
    while True:
        refuse_links(path)
        if path.exists() and not path.is_file():
            raise UnsafePathError(f"{str(path)!r} is not a regular file; curate locks a file of this name; move it")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o666), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            if not _is_open_file(path, file.fileno()):
                continue  # the previous owner has just removed it: lock the new file
            own = os.fstat(file.fileno()).st_size == 0  # a file with content is the user's
            try:
                yield
            finally:
                if own and not keep:
                    remove(path, path.parent)
            return


def _is_open_file(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/curate`, or else `~/.cache/curate`; raises RuntimeError for a user without a home."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))  # the XDG specification says to ignore a relative path
    return (root if root.is_absolute() else Path.home() / ".cache") / "curate"
