"""The files of a part: written whole, with checksums, and verified before they are used again.

A part's rows are in files named by its number. `<number>.json`, written last, is its record: what the part was made of
(`key`, `digest`), its counts, and the size and CRC-32 of each file; a last line has its own CRC-32. A part of which
anything differs is made again.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import polars as pl

from curate import files
from curate.errors import UnsafePathError
from curate.ingest.ranges.text_range import Bounds
from curate.pipeline.frames import part_file
from curate.pipeline.steps import Part
from curate.tokenization.tokenizer import TokenizerInfo

MARKER = "parts-of-curate"  # an empty file in a folder of parts
SUMMARY = "summary"
TABLES = {"kept", "originals", "rejected", SUMMARY, "shingles", "prompts"}  # of a part
T = TypeVar("T")


@dataclass(frozen=True)
class PartRecord:
    """A part on disk: what it was made of, and its counts (see `Part`).

    `key`: the hash of the version, the recipe and the place in the input; `recipe`: without the place.
    `digest`: the SHA-256 of the bytes.
    `bounds` are those of a byte range, in a text of `size` bytes. `files`: size and CRC-32 of each, by its table.
    """

    number: int
    key: str
    digest: str
    read: int
    rejected: dict[str, int]
    alone: dict[str, int]
    seconds: dict[str, float]
    tokenizer: TokenizerInfo | None
    branches: int = 0
    bounds: Bounds | None = None
    records: int = 0  # of the input, whose conversations are `read`
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    reused: bool = False
    recipe: str = ""

    def to_part(self, folder: Path, first: int = 0) -> Part:
        """Return the part; `first` is the index of its range's first record in the source."""
        counts = Counter(self.rejected), Counter(self.alone)
        summary = pl.scan_ipc(part_file(folder, self.number, SUMMARY))
        return Part(self.number, self.read, *counts, summary, self.seconds, self.tokenizer, self.branches, first=first)


def record_path(folder: Path, number: int) -> Path:
    """Return the path of a part's record."""
    return folder / f"{number:06d}.json"


def write_sealed(path: Path, values: object) -> None:
    """Write JSON, and on a line after it its CRC-32."""
    data = msgspec.json.encode(values)
    path.write_bytes(b"%b\n%08x\n" % (data, zlib.crc32(data)))


def read_sealed(path: Path, kind: type[T]) -> T | None:
    """Return what `write_sealed` wrote; None if the file is missing, damaged, a link or of another kind."""
    try:
        with files.open_own(path) as file:
            data, _, seal = file.read().partition(b"\n")
        return msgspec.json.decode(data, type=kind) if seal == b"%08x\n" % zlib.crc32(data) else None
    except (OSError, UnsafePathError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def read_record(folder: Path, number: int) -> PartRecord | None:
    """Return a part's record; None if it is missing, damaged, or not of this part."""
    record = read_sealed(record_path(folder, number), PartRecord)
    is_own = record is not None and record.number == number and {SUMMARY} <= record.files.keys() <= TABLES
    return record if is_own else None


def are_whole(folder: Path, record: PartRecord) -> bool:
    """Return whether all files of a part are as they were written."""
    try:
        return all(_check(part_file(folder, record.number, name)) == tuple(of) for name, of in record.files.items())
    except (OSError, UnsafePathError):
        return False


def _check(path: Path) -> tuple[int, int]:
    """Return the size and CRC-32 of a file."""
    size = crc = 0
    with files.open_own(path) as file:
        while block := file.read(1 << 20):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc


def write_part(folder: Path, staging: Path, record: PartRecord, *, durable: bool) -> PartRecord:
    """Move a part's files from `staging` into the folder, then write its record; `durable` flushes them to the disk."""
    files.remove(record_path(folder, record.number), inside=folder)
    checks = {}
    for path in sorted(staging.iterdir()):
        checks[path.name.split(".")[1]] = _check(path)
        if durable:
            files.sync_path(path)
        path.replace(folder / path.name)
    record = replace(record, files=checks)
    written = staging / "record"
    write_sealed(written, record)
    if durable:
        files.sync_path(written)
    written.replace(record_path(folder, record.number))
    if durable:
        files.sync_path(folder)
    return record


def write_tables(folder: Path, number: int, tables: Mapping[str, pl.DataFrame]) -> None:
    """Write the tables of a part."""
    for name, table in tables.items():
        table.write_ipc(part_file(folder, number, name), compression="uncompressed")


def folder_of(target: Path) -> Path:
    """Return the folder of the parts of a set: hidden, next to it."""
    target = target.resolve()
    return target.with_name(f".{target.name}.parts")


@contextmanager
def keeping(
    folder: Path, note: Callable[[str], None], *, fresh: bool, keep: tuple[type[BaseException], ...], is_planned: bool
) -> Iterator[bool]:
    """Make the folder of a run's parts, or take that of a run which ended early; yield whether it has parts.

    It is removed afterwards, unless the run ended by one of the errors in `keep`. That of a plan stays after any error.
    `fresh` removes what is there. Raises UnsafePathError if something else has its name.
    """
    open_folder(folder, fresh=fresh)
    try:
        yield has_parts(folder)
    except BaseException as error:
        if isinstance(error, keep) and has_parts(folder):
            note(f"what was cleaned so far stays in {str(folder)!r}; the same command goes on from there")
        elif not is_planned:
            remove_folder(folder)
        raise
    remove_folder(folder)


def open_folder(folder: Path, *, fresh: bool = False) -> None:
    """Make the folder of parts, or keep it with those of an earlier run unless `fresh`.

    Raises UnsafePathError if something else has its name.
    """
    files.refuse_links(folder)
    if folder.exists() and not (folder / MARKER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UnsafePathError(f"{str(folder)!r} is not curate's, and is where parts are written; move it")
    if fresh and folder.exists():
        remove_folder(folder)
    folder.mkdir(exist_ok=True, parents=True)
    (folder / MARKER).touch()


def remove_folder(folder: Path) -> None:
    """Remove the folder of parts; its mark goes last, so that after a kill at any moment the folder is still known."""
    for path in folder.iterdir():
        if path.name != MARKER:
            files.remove(path, folder)
    files.remove(folder, folder.parent)


def has_parts(folder: Path) -> bool:
    """Return whether a folder of parts has a whole one."""
    return any(path.suffix == ".json" and path.name[0].isdigit() for path in folder.iterdir())


def make_staging(folder: Path) -> Path:
    """Return an empty folder for the files that this process is writing."""
    return files.scratch_folder(folder / f"new-{os.uname().nodename}-{os.getpid()}")
