"""What a set elsewhere consists of: its manifest, and the list of its files with their checksums.

The list is uploaded after the files that it names, the manifest last; it is removed first. So where there is a
manifest, there is a whole set.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from curate.dataset.manifest import MANIFEST
from curate.errors import SetError
from curate.ingest.remote import remote_file
from curate.ingest.remote.address import show

CHECKSUMS = "checksums.json"
FORMAT = 1


@dataclass(frozen=True)
class FileFacts:
    """A file of a set: its size, and the SHA-256 of its bytes."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """The files of a set that was uploaded, by name."""

    files: dict[str, FileFacts]
    curate_upload: int = FORMAT


def read_manifest(url: str) -> bytes | None:
    """Return the manifest of the set at an address; None if there is none. Raises SetError if that is not known."""
    return _read(url, MANIFEST)


def read_listing(url: str) -> Listing | None:
    """Return the list of a set's files; None for a set that was copied there by other means. Raises SetError."""
    data = _read(url, CHECKSUMS)
    if data is None:
        return None
    try:
        listing = msgspec.json.decode(data, type=Listing)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise SetError(f"{show(f'{url}/{CHECKSUMS}')!r} is damaged ({error}); upload the set again") from None
    if listing.curate_upload != FORMAT:
        raise SetError(f"{show(f'{url}/{CHECKSUMS}')!r} is of another version of curate; upload the set again")
    return listing


def _read(url: str, name: str) -> bytes | None:
    try:
        return remote_file.read_whole(f"{url}/{name}")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetError(f"{show(f'{url}/{name}')!r} cannot be read: {error}") from None
