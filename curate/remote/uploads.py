"""Upload files and sets to object storage; each file is verified there.

Bytes are compared by the ETag where it is an MD5, as Amazon's S3 and most servers of its protocol give it: of the
whole file, or of the MD5s of its parts. Where it is not, the file is read back.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from curate.dataset.manifest import FILES, MANIFEST
from curate.errors import SetError
from curate.ingest.remote.address import show
from curate.ingest.remote.remote_file import repeat
from curate.ingest.remote.store import open_store
from curate.progress import BYTES, Stage, stage
from curate.remote.listing import CHECKSUMS, FileFacts, Listing

PART_BYTES = 16 << 20  # of an upload in parts; a smaller file is uploaded in one request
MAX_PARTS = 9_000  # S3 has 10,000
AT_ONCE = 4  # parts: each is in memory
BLOCK = 1 << 20


def list_names(url: str) -> set[str]:
    """Return the names of the files and folders in the folder at an address; raises SetError."""
    import obstore

    try:
        store, path = open_store(f"{url}/")
        found = repeat(lambda: obstore.list_with_delimiter(store, path))
    except OSError as error:
        why = "there is no such bucket" if "404" in str(error) else error
        raise SetError(f"{show(url)!r} cannot be listed: {why}") from None
    paths = [*(each["path"] for each in found["objects"]), *found["common_prefixes"]]
    return {each.rstrip("/").rpartition("/")[2] for each in paths}


def upload_set(folder: Path, url: str) -> None:
    """Upload a set; while it is not whole, there is no manifest. Files that are there already are left as they are.

    Other files at the address stay. Raises OSError in one line.
    """
    paths = [folder / name for name in FILES if (folder / name).exists()]
    with _uploading(paths) as current:
        contents = {path.name: _read_contents(path) for path in paths}
        listing = msgspec.json.format(
            msgspec.json.encode(Listing({name: each.facts for name, each in contents.items()})), indent=1
        )
        if _is_there(f"{url}/{CHECKSUMS}", _hash(listing)) and _is_there(f"{url}/{MANIFEST}", contents[MANIFEST]):
            return
        stale = [name for name in FILES if name not in contents]
        for name in (MANIFEST, CHECKSUMS, *stale):
            _delete(f"{url}/{name}")
        for path in paths:
            if path.name != MANIFEST:
                _upload(path, f"{url}/{path.name}", contents[path.name], current)
        _upload(listing, f"{url}/{CHECKSUMS}", _hash(listing), current)
        _upload(folder / MANIFEST, f"{url}/{MANIFEST}", contents[MANIFEST], current)


def upload_files(paths: Sequence[Path], url: str) -> None:
    """Upload files into the folder at an address, in this order; raises OSError in one line."""
    with _uploading(paths) as current:
        for path in paths:
            _upload(path, f"{url}/{path.name}", _read_contents(path), current)


def _uploading(paths: Sequence[Path]) -> Any:
    return stage("uploading", sum(path.stat().st_size for path in paths), BYTES)


@dataclass(frozen=True)
class _Contents:
    """What is known of a file's bytes: size and SHA-256, and the ETag that S3 gives them."""

    facts: FileFacts
    tag: str
    part_bytes: int


def _read_contents(path: Path) -> _Contents:
    with path.open("rb") as file:
        return _hash(file, path.stat().st_size)


def _hash(source: bytes | io.BufferedReader, size: int | None = None) -> _Contents:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    size = len(source) if isinstance(source, bytes) else int(size or 0)
    part_bytes = max(PART_BYTES, -(-size // MAX_PARTS // BLOCK) * BLOCK)
    whole, parts = hashlib.sha256(), [(hashlib.md5(usedforsecurity=False), 0)]
    while block := file.read(BLOCK):
        if parts[-1][1] == part_bytes:
            parts.append((hashlib.md5(usedforsecurity=False), 0))
        digest, done = parts[-1]
        digest.update(block)
        whole.update(block)
        parts[-1] = digest, done + len(block)
    digests = [digest.digest() for digest, _ in parts]
    joined = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    tag = f"{joined}-{len(parts)}" if size > part_bytes else "".join(each.hex() for each in digests)
    return _Contents(FileFacts(size, whole.hexdigest()), tag, part_bytes)


def _is_there(url: str, contents: _Contents) -> bool:
    """Return whether the file at an address has these bytes; False if it is absent."""
    import obstore

    store, path = open_store(url)
    try:
        meta = repeat(lambda: obstore.head(store, path))
    except FileNotFoundError:
        return False
    if meta["size"] != contents.facts.bytes:
        return False
    return (meta["e_tag"] or "").strip('"') == contents.tag or _read_back(store, path) == contents.facts.sha256


def _read_back(store: Any, path: str) -> str:
    import obstore

    def read() -> str:
        digest = hashlib.sha256()
        for block in obstore.get(store, path).stream():
            digest.update(block)
        return digest.hexdigest()

    found: str = repeat(read)
    return found


def _upload(source: Path | bytes, url: str, contents: _Contents, current: Stage) -> None:
    """Upload a file that is not there, and verify it; raises OSError."""
    import obstore

    before = current.done
    store, path = open_store(url)
    if not _is_there(url, contents):
        parts = {"chunk_size": contents.part_bytes, "use_multipart": contents.facts.bytes > contents.part_bytes}

        def put() -> None:
            current.done = before
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
                obstore.put(store, path, _Counted(file, current), max_concurrency=AT_ONCE, **parts)

        repeat(put)
        if not _is_there(url, contents):
            raise OSError(f"{show(url)!r} is not there as it was sent; run the command again")
    current.done = before + contents.facts.bytes


class _Counted(io.RawIOBase):
    """A file that counts what is read of it."""

    def __init__(self, file: Any, current: Stage) -> None:
        self.file, self.current = file, current

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        block: bytes = self.file.read(size)
        self.current.done += len(block)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a place."""
        return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        """Return the place."""
        return int(self.file.tell())


def _delete(url: str) -> None:
    import obstore

    store, path = open_store(url)
    with suppress(FileNotFoundError):
        repeat(lambda: obstore.delete(store, path))
