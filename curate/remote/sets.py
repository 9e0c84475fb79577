"""Sets by their path or address; only for an address is loaded what reads it."""

from __future__ import annotations

from pathlib import Path

SCHEME = "://"


def find_set(path: str | Path) -> str | Path:
    """Return the folder of a copy of the set at an address; what is no address or no set there, as it is."""
    if SCHEME not in str(path):
        return path
    from curate.remote import copies

    return copies.find_copy(str(path))


def fetch_set(path: str | Path) -> str | Path:
    """Return the folder of a copy of the set at an address, a local path as it is.

    Raises SetError if there is no whole set, or it cannot be read or copied, and MissingExtra.
    """
    if SCHEME not in str(path):
        return path
    from curate.remote import copies

    return copies.fetch_copy(str(path))
