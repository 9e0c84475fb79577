"""Which inputs there are: files, folders, zip members and standard input, checked and named before any is read."""

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
from curate.ingest import zip_recovery

TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson", ".gz", ".zst")
SUFFIXES = (*TEXT_SUFFIXES, ".zip", ".parquet")

FOREIGN = (
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
    """One stream of records. `path` null: standard input. `bytes` on disk, null where it cannot be known (a pipe)."""

    path: Path | None
    file: str  # what the file is called: its path relative to the argument given
    bytes: int | None
    kind: str = "text"  # text (compressed or not) | parquet | zip
    inside: str = ""  # what a member of a zip is called
    member: int = 0  # its place in the zip's list; or, of a zip without one, the byte at which its header stands
    trouble: str = ""  # what is wrong with the zip: its list is lost
    spare: bool = False  # a zip's member beside others: where damage left nothing of it, they are read all the same
    base: str = field(default="", repr=False)  # the folder that `file` is relative to

    @property
    def name(self) -> str:
        """Return the `source_file` of its records."""
        return f"{self.file}/{self.inside}" if self.inside else self.file


def open_inputs(arguments: Sequence[str | Path]) -> list[Source]:
    """Find the streams behind files, folders and `-` (standard input); a file given twice is read once.

    Raises InputError for what is missing, unreadable, empty or plainly no dump.
    """
    if not arguments:
        raise InputError("no input given: name files or folders, or - for standard input")
    return _distinct(list(_once(source for argument in arguments for source in _sources(argument))))


def _sources(argument: str | Path) -> list[Source]:
    if str(argument) == "-":
        return [Source(None, "stdin", None)]
    path = Path(argument)
    if not stat.S_ISDIR(_mode(path)):
        return _file_sources(path, path.name)
    if _is_set(path):  # given by name, a set is read for its conversations
        return _file_sources(path / "conversations.parquet", "conversations.parquet")
    files = sorted(_walk(path), key=lambda file: file.relative_to(path).as_posix())
    if not files:
        raise InputError(f"folder {str(path)!r} holds no dump: none of its files ends in {' '.join(SUFFIXES)}")
    return [source for file in files for source in _file_sources(file, file.relative_to(path).as_posix())]


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"input {str(path)!r} does not exist: check the name, or give a folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"input {str(path)!r} cannot be read: {words(error)}") from None


def _is_set(folder: Path) -> bool:
    """Tell whether a folder is a curated set: what came out of dumps is not taken for one of them."""
    return (folder / "manifest.json").is_file() and (folder / "conversations.parquet").is_file()


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"folder {error.filename!r} cannot be read: {words(error)}") from None

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_set(Path(parent, name))]
        for name in files:
            path = Path(parent, name)
            # Hidden files hold no dumps (macOS lays `._name` beside each file); a pipe would block for ever.
            if not name.startswith(".") and name.lower().endswith(SUFFIXES) and path.is_file():
                yield path


def _file_sources(path: Path, name: str) -> list[Source]:
    name = os.fsencode(name).decode("utf-8", "replace")  # a name that is no UTF-8 could not be stored
    base = os.fspath(path.absolute().parents[len(PurePosixPath(name).parts) - 1])
    if not path.is_file():
        return [Source(path, name, None, base=base)]  # a pipe: it can be looked into only once
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"input {str(path)!r} cannot be read: {words(error)}") from None
    if not head:
        raise InputError(f"input {str(path)!r} is empty (0 bytes): give a dump that holds records")
    if (what := foreign(head)) is not None:
        raise InputError(f"input {str(path)!r} is {what}, not JSON: give a .json, .jsonl or .parquet dump")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _members(path, name, size, base)
    return [Source(path, name, size, "parquet" if head.startswith(b"PAR1") else "text", base=base)]


def _members(path: Path, name: str, size: int, base: str) -> list[Source]:
    trouble = ""
    try:
        try:
            with zipfile.ZipFile(path) as archive:
                listed = [(entry.filename, place) for place, entry in enumerate(archive.infolist())]
        except (zipfile.BadZipFile, ValueError) as error:
            listed = [(member.name, member.at) for member in zip_recovery.walk(path)]
            trouble = _list_lost(size, len(listed), words(error))
    except OSError as error:
        raise InputError(f"input {str(path)!r} cannot be read: {words(error)}") from None
    if trouble and not listed:
        raise InputError(f"input {str(path)!r} is a damaged zip: it has no list of its members, and not one is left")
    found: list[Source] = []
    seen: Counter[str] = Counter()
    for full, place in listed:
        if full.lower().endswith(TEXT_SUFFIXES) and not full.startswith("__MACOSX/"):
            inside = _plain(full)
            seen[inside] += 1
            inside += f"#{seen[inside]}" if seen[inside] > 1 else ""
            found.append(Source(path, name, size, "zip", inside, place, trouble, base=base))
    if not found:
        raise InputError(f"zip {str(path)!r} holds no dump: none of its {len(listed)} members ends in .json or .jsonl")
    return [replace(source, spare=len(found) > 1) for source in found]


def _list_lost(size: int, count: int, why: str) -> str:
    return (
        f"the zip has lost the list of its members, which stands at its end ({why}): it is cut off at byte {size:,}, "
        f"or damaged; {count} of them {'was' if count == 1 else 'were'} found by their own headers, and what came "
        f"after is lost"
    )


def _plain(member: str) -> str:
    """Return a member's path without what could climb out of a folder; it is only ever shown, never written to."""
    parts = member.replace("\\", "/").split("/")
    clean = "/".join(part for part in parts if part not in ("", ".", ".."))
    return clean.encode("utf-8", "replace").decode()


def _once(sources: Iterable[Source]) -> Iterator[Source]:
    """Leave out what an earlier argument has given already: the same member of the same file."""
    seen = set()
    for source in sources:
        key = (source.path and source.path.absolute(), source.member)
        if key not in seen:
            seen.add(key)
            yield source


def _distinct(sources: list[Source]) -> list[Source]:
    """Make files of one name differ, by as many parent folders as it takes."""
    files = {source.path: source for source in sources}
    names = {path: source.file for path, source in files.items()}
    for level in itertools.count(1):
        times = Counter(names.values())
        longer = {path: _under(files[path], level) if times[name] > 1 else name for path, name in names.items()}
        if longer == names:
            break
        names = longer
    return [replace(source, file=names[source.path]) for source in sources]


def _under(source: Source, level: int) -> str:
    """Return a file's name below `level` more of its parent folders, if it has them."""
    return PurePosixPath(*PurePosixPath(source.base).parts[1:][-level:], source.file).as_posix()


def foreign(head: bytes) -> str | None:
    """Say what a file is by its first bytes, if it is something known that holds no records."""
    for magic, what in FOREIGN:
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive (unpack it first)"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith(b"<"):
        return "an HTML page" if b"<!doctype html" in text or b"<html" in text else "XML or HTML"
    return None


def describe(head: bytes) -> str:
    """Say what the first bytes of a text look like, for an error message."""
    if (what := foreign(head)) is not None:
        return what
    text = head.decode("utf-8", "replace")[:40]
    if b"\x00" in head or text.count("�") > len(text) // 4:
        return f"binary data that begins with 0x{head[:8].hex()}"
    return f"text that begins with {text.strip()[:30]!r}"


def words(error: BaseException) -> str:
    """Return what an error says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
