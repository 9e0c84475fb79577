"""Find the inputs: files, folders, zip members and standard input, checked and named before any is read."""

from __future__ import annotations

import contextlib
import html
import itertools
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from curate.errors import InputError, error_message
from curate.ingest import kinds
from curate.ingest.containers import zip_directory
from curate.ingest.containers.zip_members import Member, member_head
from curate.ingest.kinds import HEAD_BYTES, NOT_A_DUMP, SUFFIXES
from curate.ingest.remote import remote_file
from curate.ingest.remote.address import folder_of, is_remote, name_of, show
from curate.ingest.remote.remote_file import RemoteFile
from curate.ingest.tables import hub, saved_dataset
from curate.ingest.unread import PART_OF_EXPORT, is_hidden, is_negligible, parts_of_exports

MAX_CAUSES = 3  # named in one error
NO_NAME = "a member without a name"
MAX_SHEETS = 10  # named in one message
SHEET = re.compile(rb'<sheet [^>]*?name="([^"]*)"')


@dataclass(frozen=True)
class Source:
    """One stream of records."""

    path: Path | RemoteFile | None  # None: standard input, or a data set of the Hub
    file: str  # the name of the file: its path relative to the argument
    bytes: int | None  # size on disk; None where it is unknown (a pipe)
    kind: str = "text"  # text (compressed or not, or an archive) | a kind that is read at random | zip | unread
    member_name: str = ""  # of a zip's member
    member: Member | None = field(default=None, repr=False)  # of a zip
    damage: str = ""  # of a zip whose directory is lost or damaged: a description
    optional: bool = False  # one of several members of a zip: it is no error if damage leaves it without a record
    problem: str = ""  # of kind unread: why it is not read, to be read after its name
    skipped_in: str = ""  # the folder or zip in which it is not read because of its name
    base: str = field(default="", repr=False)  # the folder that `file` is relative to
    split: str = ""  # of a data set, that the file's rows belong to
    address: str = ""  # where it is read from, without secrets, if that is not on this machine

    @property
    def name(self) -> str:
        """The `source_file` of its records."""
        return f"{self.file}/{self.member_name}" if self.member_name else self.file

    @property
    def local(self) -> Path | None:
        """Its path on this machine, which kinds that are read at random have."""
        return self.path if isinstance(self.path, Path) else None

    @property
    def place(self) -> str:
        """Its absolute path or address; `-` for standard input, and its name for a data set of the Hub."""
        if self.address:
            return self.address
        if self.path is None:
            return self.file if self.kind == kinds.HUB.name else "-"
        return str(self.path.absolute())

    def inside(self, member_name: str) -> Source:
        """Return a member of this archive."""
        outer = f"{self.member_name}/" if self.member_name else ""
        return replace(self, member_name=f"{outer}{member_name}")

    def skip(self, problem: str, archive: Source | None = None) -> Source:
        """Return this source as not read; `archive` is around it."""
        place = archive.name if archive is not None and problem == NOT_A_DUMP else ""
        return replace(self, kind="unread", problem=problem, skipped_in=place)


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


def problem_of(source: Source, error: InputError) -> str:
    """Return what an error says about a source, to be read after its name."""
    return str(error).partition(repr(source.name))[2].strip() or str(error)


def _sources(argument: str | Path) -> list[Source]:
    if str(argument) == "-":
        return [Source(None, "stdin", None)]
    if is_remote(argument):
        return _remote_sources(str(argument))
    if str(argument).startswith(kinds.HUB_PREFIX) and not Path(argument).exists():
        hub.check_name(str(argument))
        return [Source(None, str(argument), None, kinds.HUB.name)]
    path = Path(argument)
    if not stat.S_ISDIR(_mode(path)):
        return _file_sources(path, path.name)
    if _is_curated_set(path):  # named explicitly, so its conversations are read
        return _file_sources(path / "conversations.parquet", "conversations.parquet")
    found = [source for file, problem in _walk(path) for source in _folder_sources(path, file, problem)]
    sources = _skip_parts_of_exports(found)
    if all(source.skipped_in for source in sources):
        problem = f"is a folder that has no dump: none of its files looks like one, by {' '.join(SUFFIXES)} or content"
        sources.append(_unread(path, path.name or str(path), problem))
    return sources


def _remote_sources(url: str) -> list[Source]:
    """Return the sources in a file elsewhere: a text is read by ranges, what is read at random is copied first."""
    file, head = remote_file.find(url)
    name = _utf8(name_of(url))
    if file is not None:
        found = Source(file, name, file.size)
        if (file_type := kinds.foreign(head, name)) is not None:
            found = found.skip(f"is {file_type}")
        elif not file.size:
            found = found.skip("is empty (0 bytes)")
        is_stream = kinds.recognise(head, name).access != "file" or kinds.compression_name(head) is not None
        is_zip = head.startswith(kinds.ZIP.magic) or kinds.by_name(name) is kinds.ZIP
        if found.problem or (is_stream and not is_zip):
            return [replace(found, address=show(url), base=folder_of(url))]
    copy = remote_file.download(url, file.size if file else None)
    return [replace(each, address=show(url), base=folder_of(url)) for each in _file_sources(copy, name)]


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
    is_dump = kinds.is_dump_name(name)
    if not is_dump and is_negligible(name):
        return []
    if saved_dataset.is_about(path):
        absent = saved_dataset.missing_files(path)
        problem = f"is missing, though {path.name} names it"
        return [_unread(path.parent / each, (PurePosixPath(name).parent / each).as_posix(), problem) for each in absent]
    if saved_dataset.is_cache(path):
        return [_unread(path, name, saved_dataset.CACHE)]
    if not path.is_file():  # reading a pipe would block forever
        return [_unread(path, name, "is a broken link" if path.is_symlink() else "is not a regular file")]
    reason = "" if is_dump else _unread_reason(path)
    if reason:
        return [_unread(path, name, reason, _utf8(folder.name or str(folder)) if reason == NOT_A_DUMP else "")]
    return _file_sources(path, name)


def _unread_reason(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        return f"{kinds.unread_reason(head, path.name)}{_sheets(path, head)}"
    return ""  # what is wrong with it is named where it is opened


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
            head = file.read(HEAD_BYTES)
        if (file_type := kinds.foreign(head, name)) is not None:
            return [_unread(path, name, f"is {file_type}{_sheets(path, head)}")]
        # The first bytes of a zip may be damaged.
        if head.startswith(kinds.ZIP.magic) or (kinds.by_name(name) is kinds.ZIP and zipfile.is_zipfile(path)):
            return list_zip(Source(path, name, size, base=base), path)
    except OSError as error:
        return [_unread(path, name, f"cannot be read: {error_message(error)}")]
    if not head:
        return [_unread(path, name, "is empty (0 bytes)")]
    kind = kinds.recognise(head, name)
    plain = kinds.compression_name(head) is None
    split = saved_dataset.split_of(path) if kind is kinds.ARROW else ""
    return [Source(path, name, size, kind.name if kind.access == "file" and plain else "text", base=base, split=split)]


def _sheets(path: Path, head: bytes) -> str:
    """Return the names of a workbook's sheets, to be read after its description."""
    if kinds.foreign(head, path.name) is not kinds.WORKBOOK:
        return ""
    with contextlib.suppress(zipfile.BadZipFile, KeyError, OSError), zipfile.ZipFile(path) as archive:
        with archive.open("xl/workbook.xml") as member:
            names = [html.unescape(name.decode("utf-8", "replace")) for name in SHEET.findall(member.read(1 << 20))]
        more = f" and {len(names) - MAX_SHEETS} more" if len(names) > MAX_SHEETS else ""
        return f" ({', '.join(map(repr, names[:MAX_SHEETS]))}{more})" if names else ""
    return ""


def list_zip(zipped: Source, path: Path) -> list[Source]:
    """Return the members of a zip as sources; `path` is where its bytes are. Raises OSError if they cannot be read."""
    listing = zip_directory.list_members(path)
    if listing.damage and not listing.members:
        problem = "is a damaged zip: its directory is lost, and no member can be recovered"
        return [zipped.skip(problem)]
    sources: list[Source] = []
    counts: Counter[str] = Counter()  # of members by name
    for member in listing.members:
        # The directory and the member's own header may differ in the name, where one of them is damaged.
        full_name = next(filter(is_dump_member, member.names), member.names[0])
        if full_name.endswith("/") or is_negligible_member(full_name):
            continue
        member_name = safe_name(full_name)
        counts[member_name] += 1
        member_name += f"#{counts[member_name]}" if counts[member_name] > 1 else ""
        source = replace(zipped.inside(member_name), path=path, kind="zip", member=member, damage=listing.damage)
        is_dump = is_dump_member(full_name)
        reason = "" if is_dump else kinds.unread_reason(member_head(path, member, HEAD_BYTES), full_name)
        sources.append(source.skip(reason, zipped) if reason else source)
    sources = _skip_parts_of_exports(sources)
    dumps = sum(not source.problem for source in sources)
    if not dumps:
        count = len(listing.members)
        problem = f"is a zip that has no dump: none of its {count} members looks like one"
        sources.append(zipped.skip(problem))
    return [replace(source, optional=dumps > 1) for source in sources]


def _skip_parts_of_exports(sources: Sequence[Source]) -> list[Source]:
    parts = parts_of_exports(source.name for source in sources)
    return [source.skip(PART_OF_EXPORT) if source.name in parts else source for source in sources]


def is_dump_member(name: str) -> bool:
    """Return whether an archive's member of this name is a dump, and not one of the files that macOS adds."""
    return kinds.is_dump_name(name) and not _is_of_macos(name)


def _is_of_macos(name: str) -> bool:
    return "__MACOSX" in name.split("/") or name.rpartition("/")[2].startswith("._")


def is_negligible_member(name: str) -> bool:
    """Return whether a member of an archive is not read and not named either."""
    return not is_dump_member(name) and (is_hidden(name) or is_negligible(name))


def safe_name(member: str) -> str:
    """Return a member's path without parts that leave its folder. It is only shown, never written to."""
    parts = member.replace("\\", "/").split("/")
    safe = "/".join(part for part in parts if part not in ("", ".", ".."))
    return safe.encode("utf-8", "replace").decode() or NO_NAME


def _deduplicate(sources: Iterable[Source]) -> Iterator[Source]:
    """Drop the sources that an earlier argument already named: the same member of the same file."""
    keys = set()
    for source in sources:
        key = (source.place, source.member_name, source.member and source.member.header_at)
        if key not in keys:
            keys.add(key)
            yield source


def _rename_duplicates(sources: list[Source]) -> list[Source]:
    """Give files of the same name different names, with as many parent folders as needed."""
    files = {source.place: source for source in sources}
    names = {place: source.file for place, source in files.items()}
    for level in itertools.count(1):
        counts = Counter(names.values())
        longer = {key: _with_parents(files[key], level) if counts[name] > 1 else name for key, name in names.items()}
        if longer == names:
            break
        names = longer
    return [replace(source, file=names[source.place]) for source in sources]


def _with_parents(source: Source, level: int) -> str:
    """Return a file's name with up to `level` more parent folders."""
    return PurePosixPath(*PurePosixPath(source.base).parts[1:][-level:], source.file).as_posix()
