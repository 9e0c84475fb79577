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
from curate.ingest.containers import zip_directory
from curate.ingest.containers.zip_members import Member
from curate.ingest.unread import is_hidden, is_negligible

DELIMITED_SUFFIXES = (".csv", ".tsv", ".tab")
TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson", *DELIMITED_SUFFIXES, ".gz", ".zst")
MAX_CAUSES = 3  # named in one error
SUFFIXES = (*TEXT_SUFFIXES, ".zip", ".parquet")
NO_NAME = "a member without a name"
NOT_A_DUMP = "has another ending than a dump"

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
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file (fetch it with git lfs pull)"),
)


@dataclass(frozen=True)
class Source:
    """One stream of records."""

    path: Path | None  # None: standard input
    file: str  # the name of the file: its path relative to the argument
    bytes: int | None  # size on disk; None where it is unknown (a pipe)
    kind: str = "text"  # text (compressed or not) | parquet | zip | unread
    member_name: str = ""  # of a zip's member
    member: Member | None = field(default=None, repr=False)  # of a zip
    damage: str = ""  # of a zip whose directory is lost or damaged: a description
    optional: bool = False  # one of several members of a zip: it is no error if damage leaves it without a record
    problem: str = ""  # of kind unread: why it is not read, to be read after its name
    skipped_in: str = ""  # the folder or zip in which it is not read because of its name
    base: str = field(default="", repr=False)  # the folder that `file` is relative to

    @property
    def name(self) -> str:
        """The `source_file` of its records."""
        return f"{self.file}/{self.member_name}" if self.member_name else self.file

    @property
    def is_delimited(self) -> bool:
        """Whether its name is that of a CSV or TSV file, compressed or not."""
        return self.name.lower().removesuffix(".gz").removesuffix(".zst").endswith(DELIMITED_SUFFIXES)


def open_inputs(arguments: Sequence[str | Path]) -> list[Source]:
    """Find the sources in files, folders and `-` (standard input); a file given twice is read once.

    What cannot be read is a source with a `problem`. Raises InputError for an argument that does not exist, and if
    nothing can be read.
    """
    if not arguments:
        raise InputError("no input given; name files or folders, or - for standard input")
    sources = list(_deduplicate(source for argument in arguments for source in _sources(argument)))
    if all(source.problem for source in sources):
        raise no_record([f"input {str(source.path)!r} {source.problem}" for source in sources if not source.skipped_in])
    return _rename_duplicates(sources)


def no_record(causes: Sequence[str]) -> InputError:
    """Return the error that no input has a record, for these causes."""
    if len(causes) == 1:
        return InputError(causes[0])
    more = f"; and {len(causes) - MAX_CAUSES} more" if len(causes) > MAX_CAUSES else ""
    return InputError(f"none of {len(causes)} inputs has a record: {'; '.join(causes[:MAX_CAUSES])}{more}")


def _sources(argument: str | Path) -> list[Source]:
    if str(argument) == "-":
        return [Source(None, "stdin", None)]
    path = Path(argument)
    if not stat.S_ISDIR(_mode(path)):
        return _file_sources(path, path.name)
    if _is_curated_set(path):  # named explicitly, so its conversations are read
        return _file_sources(path / "conversations.parquet", "conversations.parquet")
    sources = [source for file, problem in _walk(path) for source in _folder_sources(path, file, problem)]
    if all(source.skipped_in for source in sources):
        problem = f"is a folder that has no dump: none of its files ends in {' '.join(SUFFIXES)}"
        sources.append(_unread(path, path.name or str(path), problem))
    return sources


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


def _walk(folder: Path) -> list[tuple[Path, str]]:
    """Return the files below a folder in order, and the problem with each that cannot be read."""
    files: list[tuple[Path, str]] = []

    def note(error: OSError) -> None:
        files.append((Path(error.filename), f"is a folder that cannot be read: {error_message(error)}"))

    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not is_hidden(name) and not _is_curated_set(Path(parent, name))]
        links = [path for name in folders if (path := Path(parent, name)).is_symlink()]
        files += [(path, "is a link to a folder, which is not followed") for path in links]
        files += [(Path(parent, name), "") for name in names if not is_hidden(name)]
    return sorted(files, key=lambda file: file[0].relative_to(folder).as_posix())


def _folder_sources(folder: Path, path: Path, problem: str) -> list[Source]:
    """Return the sources in one file of a folder; none if the file need not be named."""
    name = path.relative_to(folder).as_posix()
    if problem:
        return [_unread(path, name, problem)]
    if not name.lower().endswith(SUFFIXES):
        return [] if is_negligible(name) else [_unread(path, name, NOT_A_DUMP, _utf8(folder.name or str(folder)))]
    if not path.is_file():  # reading a pipe would block forever
        return [_unread(path, name, "is a broken link" if path.is_symlink() else "is not a regular file")]
    return _file_sources(path, name)


def _unread(path: Path, name: str, problem: str, skipped_in: str = "") -> Source:
    name = _utf8(name)
    return Source(path, name, None, "unread", problem=problem, skipped_in=skipped_in, base=_base(path, name))


def _utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")  # Parquet text must be UTF-8


def _base(path: Path, name: str) -> str:
    """Return the folder that the name is relative to."""
    parents = path.absolute().parents
    depth = min(len(PurePosixPath(name).parts), len(parents))
    return os.fspath(parents[depth - 1]) if depth else "/"


def _file_sources(path: Path, name: str) -> list[Source]:
    name = _utf8(name)
    base = _base(path, name)
    if not path.is_file():
        return [Source(path, name, None, base=base)]  # a pipe can be read only once, so its content is not checked here
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
        is_zip = head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
        if is_zip or (name.lower().endswith(".zip") and zipfile.is_zipfile(path)):  # its first bytes are damaged
            return _zip_sources(path, name, size, base)
    except OSError as error:
        return [_unread(path, name, f"cannot be read: {error_message(error)}")]
    if not head:
        return [_unread(path, name, "is empty (0 bytes)")]
    if (file_type := foreign_file_type(head)) is not None:
        return [_unread(path, name, f"is {file_type}, not a .json, .jsonl or .parquet dump")]
    return [Source(path, name, size, "parquet" if head.startswith(b"PAR1") else "text", base=base)]


def _zip_sources(path: Path, name: str, size: int, base: str) -> list[Source]:
    listing = zip_directory.list_members(path)
    if listing.damage and not listing.members:
        return [_unread(path, name, "is a damaged zip: its directory is lost, and no member can be recovered")]
    sources: list[Source] = []
    counts: Counter[str] = Counter()  # of members by name
    for member in listing.members:
        # The directory and the member's own header may differ in the name, where one of them is damaged.
        full_name = next(filter(_is_dump_name, member.names), member.names[0])
        if full_name.endswith("/") or _need_not_be_named(full_name):
            continue
        member_name = _safe_name(full_name) or NO_NAME
        counts[member_name] += 1
        member_name += f"#{counts[member_name]}" if counts[member_name] > 1 else ""
        source = Source(path, name, size, "zip", member_name, member, listing.damage, base=base)
        is_dump = _is_dump_name(full_name)
        sources.append(source if is_dump else replace(source, kind="unread", problem=NOT_A_DUMP, skipped_in=name))
    dumps = sum(not source.problem for source in sources)
    if not dumps:
        count = len(listing.members)
        problem = f"is a zip that has no dump: none of its {count} members ends in {' '.join(TEXT_SUFFIXES)}"
        sources.append(_unread(path, name, problem))
    return [replace(source, optional=dumps > 1) for source in sources]


def _is_dump_name(name: str) -> bool:
    """Return whether a zip's member of this name is a dump, and not one of the files that macOS adds."""
    return name.lower().endswith(TEXT_SUFFIXES) and not _is_of_macos(name)


def _is_of_macos(name: str) -> bool:
    return "__MACOSX" in name.split("/") or name.rpartition("/")[2].startswith("._")


def _need_not_be_named(name: str) -> bool:
    """Return whether a member of a zip is not read and not named either."""
    return not _is_dump_name(name) and (is_hidden(name) or is_negligible(name))


def _safe_name(member: str) -> str:
    """Return a member's path without parts that leave its folder. It is only shown, never written to."""
    parts = member.replace("\\", "/").split("/")
    safe = "/".join(part for part in parts if part not in ("", ".", ".."))
    return safe.encode("utf-8", "replace").decode()


def _deduplicate(sources: Iterable[Source]) -> Iterator[Source]:
    """Drop the sources that an earlier argument already named: the same member of the same file."""
    keys = set()
    for source in sources:
        key = (source.path and source.path.absolute(), source.member_name, source.member and source.member.header_at)
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
