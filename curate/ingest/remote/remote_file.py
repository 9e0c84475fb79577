"""A file elsewhere that is read by byte ranges, with the methods of a path that `curate.ingest` uses."""

from __future__ import annotations

import atexit
import functools
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.errors import InputError, error_message
from curate.ingest.kinds import HEAD_BYTES
from curate.ingest.remote import address
from curate.ingest.remote.store import open_store
from curate.progress import BYTES, stage

MIN_FETCH, MAX_FETCH = 1 << 20, 8 << 20  # bytes of one request: the more, the further a file is read in order
ATTEMPTS = 4  # of one request whose answer breaks off; obstore repeats those that get none
REQUEST = re.compile(r"Generic \w+ error: Error performing .*? - ")  # before the cause in obstore's messages
QUERY = re.compile(r"\?[^\s\"')]*")  # of an address in a message: may be a signature


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address, as it was when it was found: its size, and its ETag or else the time of its last change."""

    url: str = field(repr=False)
    size: int
    version: str

    def __str__(self) -> str:
        return address.show(self.url)

    @property
    def name(self) -> str:
        """Its name, without the folders around it."""
        return address.name_of(self.url)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open it for reading; the reader raises OSError in one line where it cannot be read or has changed."""
        return io.BufferedReader(_Ranges(self), MIN_FETCH)

    def absolute(self) -> RemoteFile:
        """Return itself: an address is absolute."""
        return self

    def resolve(self) -> RemoteFile:
        """Return itself: there are no links."""
        return self

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop`; raises OSError."""
        return _read_again(self, start, stop) if stop - start <= MIN_FETCH else self._ask(start, stop)

    def _ask(self, start: int, stop: int) -> bytes:
        data: bytes = repeat(lambda: self._read(start, stop))
        return data

    def _read(self, start: int, stop: int) -> bytes:
        result, data = _get(self.url, start, stop)
        if (result.meta["size"], _version(result.meta)) != (self.size, self.version):
            raise Changed("it has changed while it was read; run the command again")
        if len(data) != stop - start:
            raise ConnectionError(f"the server sent {len(data)} bytes instead of {stop - start}")
        return data


@functools.lru_cache(maxsize=8)
def _read_again(file: RemoteFile, start: int, stop: int) -> bytes:
    """Return bytes of a file; a range of a text is read twice in a row, to name its part and to clean it."""
    return file._ask(start, stop)


class Changed(OSError):
    """A file is no longer what it was when it was found."""


class NoRanges(OSError):
    """A server sends files only whole."""


class _Ranges(io.RawIOBase):
    """Reads a file in requests that grow from MIN_FETCH to MAX_FETCH while it is read in order."""

    def __init__(self, file: RemoteFile) -> None:
        self.file = file
        self.position = self.start = 0  # of the reader, and of the bytes that are held
        self.held = b""
        self.in_order = 0  # bytes that were fetched one after the other

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.file.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        if not self.start <= self.position < self.start + len(self.held):
            self._fetch(len(buffer))
        at = self.position - self.start
        block = self.held[at : at + len(buffer)]
        buffer[: len(block)] = block
        self.position += len(block)
        return len(block)

    def _fetch(self, wanted: int) -> None:
        if self.position != self.start + len(self.held):
            self.in_order = 0
        size = min(max(self.in_order // 4, wanted, MIN_FETCH), MAX_FETCH)  # a quarter: little is fetched in vain
        stop = min(self.position + size, self.file.size)
        self.start = self.position
        self.held = self.file.read(self.position, stop) if self.position < stop else b""
        self.in_order += len(self.held)


def find(url: str) -> tuple[RemoteFile | None, bytes]:
    """Return the file at an address and its first bytes; None instead of the file if its server has no byte ranges.

    Raises InputError if it cannot be read, and MissingExtra.
    """
    address.check(url)
    open_store(url)
    try:
        result, head = repeat(lambda: _get(url, 0, HEAD_BYTES))
        return RemoteFile(url, result.meta["size"], _version(result.meta)), head
    except NoRanges:
        return None, b""
    except OSError as error:
        return _find_empty(url, error), b""


def _find_empty(url: str, error: OSError) -> RemoteFile:
    """Return the file at an address if it is empty, which has no byte range; raises InputError if it is not."""
    import obstore

    try:
        meta = obstore.head(*open_store(url))
    except Exception:
        meta = None
    if meta is None or meta["size"]:
        raise InputError(f"input {address.show(url)!r} cannot be read: {error_message(error)}") from None
    return RemoteFile(url, 0, _version(meta))


def download(url: str, size: int | None) -> Path:
    """Return a copy of the file at an address, removed at the end of the program; raises InputError.

    For kinds that are read at random (zip, Parquet, Arrow), and for servers without byte ranges.
    """
    folder = tempfile.mkdtemp(prefix="curate-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, re.sub(r"[^\w.-]", "_", address.name_of(url)) or "input")
    try:
        save(url, path, size)
    except OSError as error:
        raise InputError(f"input {address.show(url)!r} cannot be read: {error_message(error)}") from None
    return path


def save(url: str, path: Path, size: int | None) -> None:
    """Write the file at an address, of this size if it is known, to a path; raises OSError."""
    repeat(lambda: _download(url, path, size))


def describe(url: str) -> tuple[str, int]:
    """Return what tells one state of the file at an address from another, and its size; raises OSError."""
    import obstore

    meta = repeat(lambda: obstore.head(*open_store(url)))
    return _version(meta), meta["size"]


def read_whole(url: str) -> bytes:
    """Return the bytes of a small file at an address; raises OSError."""
    import obstore

    store, path = open_store(url)
    data: bytes = repeat(lambda: bytes(obstore.get(store, path).bytes()))
    return data


def _download(url: str, path: Path, size: int | None) -> None:
    import obstore

    result = obstore.get(*open_store(url))
    total = result.meta["size"]
    if size is not None and total != size:
        raise Changed("it has changed while it was read; run the command again")
    with path.open("wb") as file, stage("downloading", total, BYTES) as current:
        for block in result.stream():
            file.write(block)
            current.done += len(block)
        if file.tell() != total:
            raise ConnectionError(f"the server sent {file.tell()} bytes instead of {total}")


def _get(url: str, start: int, stop: int) -> tuple[Any, bytes]:
    import obstore

    result = obstore.get(*open_store(url), options={"range": (start, stop)})
    return result, bytes(result.bytes())


def _version(meta: Any) -> str:
    """Return what tells one state of a file from another, as far as its server says."""
    return str(meta["e_tag"] or meta["last_modified"])


def repeat(ask: Callable[[], Any]) -> Any:
    """Return what `ask` returns, asked again if an answer breaks off; raises OSError, and NoRanges.

    The message is one line, without the address.
    """
    from obstore import exceptions

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except (exceptions.GenericError, ConnectionError) as error:
            if attempt == ATTEMPTS or "status" in str(error):
                raise OSError(_describe(error)) from None
            time.sleep(0.1 * 4 ** (attempt - 1))
        except exceptions.NotSupportedError:
            raise NoRanges("its server has no byte ranges") from None
        except (exceptions.NotFoundError, FileNotFoundError):
            raise FileNotFoundError("there is no such file") from None
        except (exceptions.BaseError, PermissionError) as error:
            raise OSError(_describe(error)) from None
    raise AssertionError


def _describe(error: Exception) -> str:
    """Return the cause of an error in a few words, without the address, whose query may be secret."""
    from obstore import exceptions

    denied = exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError
    if isinstance(error, denied):
        return "access is denied; credentials are read from the environment"
    text = QUERY.sub("", str(error).strip().partition("\n")[0])
    return REQUEST.sub("", text)[:300].rstrip(": ")
