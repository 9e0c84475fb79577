"""Find the inputs: files, folders, zip members and standard input, checked and named before any is read."""

from __future__ import annotations

import codecs
import itertools
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from curate.errors import InputError
from curate.ingest import zip_directory
from curate.ingest.zip_members import Member

TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson", ".gz", ".zst")
SUFFIXES = (*TEXT_SUFFIXES, ".zip", ".parquet")

FOREIGN = (  # first bytes of files that cannot have records, and their types
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"BZh", "bzip2-compressed (unpack it first)"),
    (b"\xfd7zXZ", "xz-compressed (unpack it first)"),
    (b"7z\xbc\xaf", "a 7-Zip archive (unpack it first)"),
    (b"Rar!", "a RAR archive (unpack it first)"),
    (b"SQLite format 3", "an SQLite database"),
    (b"ARROW1", "an Arrow file (save it as parquet first)"),
    (b"\x7fELF", "a program"),
)


@dataclass(frozen=True)
class Source:
    """One stream of records."""

    path: Path | None  # None: standard input
    file: str  # the name of the file: its path relative to the argument
    bytes: int | None  # size on disk; None where it is unknown (a pipe)
    kind: str = "text"  # text (compressed or not) | parquet | zip
    member_name: str = ""  # of a zip's member
    member: Member | None = field(default=None, repr=False)  # of a zip
    damage: str = ""  # of a zip whose directory is lost or damaged: a description
    optional: bool = False  # one of several members of a zip: it is no error if damage leaves it without a record
    base: str = field(default="", repr=False)  # the folder that `file` is relative to

    @property
    def name(self) -> str:
        """The `source_file` of its records."""
        return f"{self.file}/{self.member_name}" if self.member_name else self.file


def open_inputs(arguments: Sequence[str | Path]) -> list[Source]:
    """Find the sources in files, folders and `-` (standard input); a file given twice is read once.

    Raises InputError for an input that is missing, unreadable, empty or of another file type.
    """
    if not arguments:
        raise InputError("no input given; name files or folders, or - for standard input")
    return _rename_duplicates(list(_deduplicate(source for argument in arguments for source in _sources(argument))))


def _sources(argument: str | Path) -> list[Source]:
    if str(argument) == "-":
        return [Source(None, "stdin", None)]
    path = Path(argument)
    if not stat.S_ISDIR(_mode(path)):
        return _file_sources(path, path.name)
    if _is_curated_set(path):  # named explicitly, so its conversations are read
        return _file_sources(path / "conversations.parquet", "conversations.parquet")
    files = sorted(_find_dumps(path), key=lambda file: file.relative_to(path).as_posix())
    if not files:
        raise InputError(f"folder {str(path)!r} has no dump: none of its files ends in {' '.join(SUFFIXES)}")
    return [source for file in files for source in _file_sources(file, file.relative_to(path).as_posix())]


def _mode(path: Path) -> int:
    """Return a path's file type and permissions; raises InputError if there is no such file."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"input {str(path)!r} does not exist; check the name, or give a folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"input {str(path)!r} cannot be read: {error_message(error)}") from None


def _is_curated_set(folder: Path) -> bool:
    """Return whether a folder is a curated set, which is not a dump although it has Parquet files."""
    return (folder / "manifest.json").is_file() and (folder / "conversations.parquet").is_file()


def _find_dumps(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"folder {error.filename!r} cannot be read: {error_message(error)}") from None

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_curated_set(Path(parent, name))]
        for name in files:
            path = Path(parent, name)
            # Hidden files are not dumps (macOS writes `._name` next to each file); reading a pipe would block forever.
            if not name.startswith(".") and name.lower().endswith(SUFFIXES) and path.is_file():
                yield path


def _file_sources(path: Path, name: str) -> list[Source]:
    name = os.fsencode(name).decode("utf-8", "replace")  # Parquet text must be UTF-8
    base = os.fspath(path.absolute().parents[len(PurePosixPath(name).parts) - 1])
    if not path.is_file():
        return [Source(path, name, None, base=base)]  # a pipe can be read only once, so its content is not checked here
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"input {str(path)!r} cannot be read: {error_message(error)}") from None
    if not head:
        raise InputError(f"input {str(path)!r} is empty (0 bytes); give a dump that has records")
    if (file_type := foreign_file_type(head)) is not None:
        raise InputError(f"input {str(path)!r} is {file_type}, not JSON; give a .json, .jsonl or .parquet dump")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or (name.lower().endswith(".zip") and zipfile.is_zipfile(path)):
        return _zip_sources(path, name, size, base)
    return [Source(path, name, size, "parquet" if head.startswith(b"PAR1") else "text", base=base)]


def _zip_sources(path: Path, name: str, size: int, base: str) -> list[Source]:
    try:
        listing = zip_directory.list_members(path)
    except OSError as error:
        raise InputError(f"input {str(path)!r} cannot be read: {error_message(error)}") from None
    if listing.damage and not listing.members:
        raise InputError(f"input {str(path)!r} is a damaged zip: its directory is lost, and no member can be recovered")
    sources: list[Source] = []
    counts: Counter[str] = Counter()  # of members by name
    for member in listing.members:
        full_name = next((each for each in member.names if _is_dump_name(each)), None)
        if full_name is not None:
            member_name = _safe_name(full_name)
            counts[member_name] += 1
            member_name += f"#{counts[member_name]}" if counts[member_name] > 1 else ""
            sources.append(Source(path, name, size, "zip", member_name, member, listing.damage, base=base))
    if not sources:
        count = len(listing.members)
        raise InputError(f"zip {str(path)!r} has no dump: none of its {count} members ends in .json or .jsonl")
    return [replace(source, optional=len(sources) > 1) for source in sources]


def _is_dump_name(name: str) -> bool:
    """Return whether a zip's member of this name is a dump, and not one of the files that macOS adds."""
    return name.lower().endswith(TEXT_SUFFIXES) and not name.startswith("__MACOSX/")


def _safe_name(member: str) -> str:
    """Return a member's path without parts that leave its folder. It is only shown, never written to."""
    parts = member.replace("\\", "/").split("/")
    safe = "/".join(part for part in parts if part not in ("", ".", ".."))
    return safe.encode("utf-8", "replace").decode()


def _deduplicate(sources: Iterable[Source]) -> Iterator[Source]:
    """Drop the sources that an earlier argument already named: the same member of the same file."""
    keys = set()
    for source in sources:
        key = (source.path and source.path.absolute(), source.member and source.member.header_at)
        if key not in keys:
            keys.add(key)
            yield source


def _rename_duplicates(sources: list[Source]) -> list[Source]:
    """Give files of the same name different names, with as many parent folders as needed."""
    files = {source.path: source for source in sources}
    names = {path: source.file for path, source in files.items()}
    for level in itertools.count(1):
        counts = Counter(names.values())
        longer = {path: _with_parents(files[path], level) if counts[name] > 1 else name for path, name in names.items()}
        if longer == names:
            break
        names = longer
    return [replace(source, file=names[source.path]) for source in sources]


def _with_parents(source: Source, level: int) -> str:
    """Return a file's name with up to `level` more parent folders."""
    return PurePosixPath(*PurePosixPath(source.base).parts[1:][-level:], source.file).as_posix()


def foreign_file_type(head: bytes) -> str | None:
    """Name the type of a file that cannot have records, from its first bytes; None if it may be a dump."""
    for magic, file_type in FOREIGN:
        if head.startswith(magic):
            return file_type
    if head[257:262] == b"ustar":
        return "a tar archive (unpack it first)"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith(b"<"):
        return "an HTML page" if b"<!doctype html" in text or b"<html" in text else "XML or HTML"
    return None


def describe(head: bytes) -> str:
    """Describe the first bytes of a text, for an error message."""
    if (file_type := foreign_file_type(head)) is not None:
        return file_type
    text = head.decode("utf-8", "replace")[:40]
    if b"\x00" in head or text.count("�") > len(text) // 4:
        return f"binary data that begins with 0x{head[:8].hex()}"
    return f"text that begins with {text.strip()[:30]!r}"


def error_message(error: BaseException) -> str:
    """Return the message of an error, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
