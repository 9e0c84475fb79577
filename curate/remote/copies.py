"""Copies of sets elsewhere: in the user's cache, verified, and taken again as long as the set there is the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from curate import files
from curate.dataset.manifest import FILES, MANIFEST, ORIGINALS, REPORT
from curate.errors import InputError, SetError, error_message
from curate.ingest.kinds import is_dump_name
from curate.ingest.remote import remote_file
from curate.ingest.remote.address import is_remote, name_of, show
from curate.remote import listing
from curate.remote.listing import FileFacts, Listing

STATE = "copied.json"  # what each file of a copy was when it was copied
OPTIONAL = (ORIGINALS, REPORT)


def find_copy(path: str) -> str | Path:
    """Return what `curate.remote.sets.find_set` does."""
    if not is_remote(path) or is_dump_name(name_of(path)):
        return path
    url = path.rstrip("/")
    try:
        manifest = listing.read_manifest(url)
    except (SetError, InputError):
        return path  # may be a dump that can be read; if not, reading it says why
    return path if manifest is None else _copy(url, manifest)


def fetch_copy(path: str) -> str | Path:
    """Return what `curate.remote.sets.fetch_set` does."""
    if not is_remote(path):
        return path
    url = path.rstrip("/")
    manifest = listing.read_manifest(url)
    if manifest is None:
        raise SetError(f"no curated set at {show(url)!r}: it has no {MANIFEST}")
    return _copy(url, manifest)


def _copy(url: str, manifest: bytes) -> Path:
    """Return the folder of a copy, whose files are those of the set there."""
    found = listing.read_listing(url)
    if found is not None:
        _check_manifest(url, manifest, found)
    try:
        place = files.cache_folder() / "sets" / hashlib.sha256(url.encode()).hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
        busy = SetError(f"another command is copying {show(url)!r}; wait for it")
        with files.lock(place / ".lock", busy):
            return _update(url, manifest, found, place)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        raise SetError(
            f"{show(url)!r} cannot be copied to curate's cache: {error_message(error)}; "
            "a folder for it is named by: export XDG_CACHE_HOME=FOLDER"
        ) from None


def _check_manifest(url: str, manifest: bytes, found: Listing) -> None:
    own = found.files.get(MANIFEST)
    if own is None or own != FileFacts(len(manifest), hashlib.sha256(manifest).hexdigest()) or not _named(found):
        raise SetError(
            f"{show(url)!r} is not whole: {listing.CHECKSUMS} is of another set than {MANIFEST}; "
            "if no run is uploading it, upload the set again"
        )


def _named(found: Listing) -> bool:
    return found.files.keys() <= set(FILES) and set(FILES) - {*OPTIONAL} <= found.files.keys()


def _update(url: str, manifest: bytes, found: Listing | None, place: Path) -> Path:
    folder = place / (name_of(url) or "set")
    folder.mkdir(exist_ok=True)
    known = _read_state(place)
    state: dict[str, tuple[str, int]] = {}
    names = [name for name in FILES if name != MANIFEST and (found is None or name in found.files)]
    for name in names:
        version = _version(url, name, found)
        if version is None:
            continue
        if known.get(name) != version or _size(folder / name) != version[1]:
            files.remove(folder / MANIFEST, folder)  # until all files are those of one set
            _fetch(f"{url}/{name}", folder / name, found.files[name] if found else None, version[1])
        state[name] = version
    for name in set(FILES) - state.keys() - {MANIFEST}:
        files.remove(folder / name, folder)
    files.write_bytes(place / STATE, msgspec.json.encode(state))
    files.write_bytes(folder / MANIFEST, manifest)
    return folder


def _read_state(place: Path) -> dict[str, tuple[str, int]]:
    try:
        return msgspec.json.decode((place / STATE).read_bytes(), type=dict[str, tuple[str, int]])
    except (OSError, ValueError):
        return {}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _version(url: str, name: str, found: Listing | None) -> tuple[str, int] | None:
    """Return what tells one state of a file from another, and its size; None for an optional file that is absent."""
    if found is not None:
        return found.files[name].sha256, found.files[name].bytes
    try:
        return remote_file.describe(f"{url}/{name}")
    except FileNotFoundError:
        if name in OPTIONAL:
            return None
        raise SetError(f"{show(url)!r} is not whole: {name} is missing; upload the set again") from None


def _fetch(url: str, path: Path, facts: FileFacts | None, size: int) -> None:
    """Copy a file; raises SetError if it is not what was uploaded."""
    with files.replacing(path) as partial:
        remote_file.save(url, partial, size)
        if facts is not None:
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != facts.sha256:
                raise SetError(f"{show(url)!r} is not what was uploaded (its SHA-256 differs); upload the set again")
