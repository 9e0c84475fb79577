"""Outputs elsewhere: written to a local folder, and uploaded when they are complete."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from curate import files
from curate.dataset import manifest as manifests
from curate.dataset.manifest import FILES, MANIFEST, Manifest
from curate.errors import SetError, error_message
from curate.ingest.kinds import by_name
from curate.ingest.remote.address import is_remote, name_of, show
from curate.remote import listing, uploads
from curate.remote.listing import CHECKSUMS

SCHEMES = ("s3://", "gs://")


@dataclass(frozen=True)
class SetTarget:
    """Where a set elsewhere is made first, and the set that it would replace; see `set_target`."""

    address: str
    folder: Path
    earlier: Manifest | None


def check_address(url: str) -> str:
    """Return an address without a slash at its end; raises InputError or SetError if nothing can be written there."""
    if not url.lower().startswith(SCHEMES):
        raise SetError(
            f"cannot write {show(url)!r}: outputs are folders on this machine, or of object storage: "
            f"{' or '.join(f'{scheme}BUCKET/NAME' for scheme in SCHEMES)}"
        )
    if show(url) != url:
        raise SetError(
            f"cannot write {show(url)!r} with a query or a password; credentials are read from the environment"
        )
    url = url.rstrip("/")
    if not urlsplit(url).path:
        raise SetError(f"cannot write {url!r}: give the name of a folder in the bucket: {url}/NAME")
    return url


@contextmanager
def set_target(url: str, *, force: bool = False) -> Iterator[SetTarget]:
    """Yield where to make the set of an address: in a hidden folder of the current one. Upload it after the block.

    The folder is named after the address, so that the same command goes on after a kill or a failed upload; it is
    removed after the upload. `force`: whatever set is there is replaced. Raises SetError if something else is at the
    address, or another run is writing there.
    """
    url = check_address(url)
    if by_name(name_of(url)) is not None:
        raise SetError(f"cannot write {url!r}: a set elsewhere is a folder; give s3://BUCKET/NAME, then curate convert")
    earlier = _read_earlier(url, force)
    name = name_of(url)
    staging = Path.cwd() / f".{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.upload"
    busy = SetError(f"another run is writing {url!r}; wait for it, or give another -o")
    files.refuse_links(staging)
    with files.lock(staging.with_suffix(".lock"), busy):
        staging.mkdir(exist_ok=True)
        try:
            yield SetTarget(url, staging / name, earlier)
        except BaseException:
            files.remove(staging, staging.parent, only_empty=True)
            raise
        _upload(staging / name, url)
        files.remove(staging, staging.parent)


def _read_earlier(url: str, force: bool) -> Manifest | None:
    """Return the manifest of the set at an address; None if nothing is there, or what a killed upload left."""
    names = uploads.list_names(url)
    if MANIFEST in names:
        data = None if force else listing.read_manifest(url)
        return None if data is None else manifests.parse(data, url)
    if names - {*FILES, CHECKSUMS}:
        raise SetError(f"{url!r} contains files and is not a curated set; nothing was written; give another -o")
    return None


def _upload(folder: Path, url: str) -> None:
    try:
        uploads.upload_set(folder, url)
    except OSError as error:
        raise SetError(
            f"the set is complete in {str(folder)!r}, but is not uploaded: {error_message(error)}; "
            "the same command goes on with the upload"
        ) from None
    except KeyboardInterrupt as stop:
        stop.args = (f"the set is complete in {str(folder)!r}, but is not uploaded; the same command goes on",)
        raise


@contextmanager
def file_target(target: str | Path) -> Iterator[Path]:
    """Yield the path to write a file to: the target, or for one elsewhere a path in a temporary folder.

    What is in that folder after the block is uploaded, the target itself last. Raises SetError.
    """
    if not is_remote(target):
        yield Path(target)
        return
    url = check_address(str(target))
    with tempfile.TemporaryDirectory(prefix="curate-") as folder:
        path = Path(folder, name_of(url))
        yield path
        paths = sorted(Path(folder).iterdir(), key=lambda each: (each == path, each.name))
        try:
            uploads.upload_files(paths, url.rpartition("/")[0])
        except OSError as error:
            raise SetError(f"cannot write {url!r}: {error_message(error)}") from None
