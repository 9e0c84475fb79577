"""Kinds of files: how each is recognised by its first bytes or its name, and how it is read.

The one table of kinds, `KINDS`, holds for files, folders, archives and standard input alike. A new kind is an entry
here and, if it is read at random, a reader in `curate.ingest.reader.TABLE_READERS`.
"""

from __future__ import annotations

import codecs
import re
import tarfile
from dataclasses import dataclass
from typing import Literal

from curate.ingest.tables.delimited_text import begins_table
from curate.ingest.text.encodings import BOMS, UNMARKED
from curate.schemas.formats.datasets import marked_text

HEAD_BYTES = 4096  # enough to recognise every kind
TAR_BLOCK_BYTES = 512
MAX_SCHEMA_BYTES = 1 << 26
JSON_START = re.compile(r'[\s,]*(?:\[\s*)*(?:\{\s*["}]|"\{)')  # of an object, perhaps in an array, perhaps as text


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    `access`: its records are in a stream of bytes; or it is a file that is read at random; or an archive of others; or
    it is no file.
    `others`: endings of files that begin like this kind, but are no dumps.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...] = ()
    access: Literal["stream", "file", "archive", "remote"] = "stream"
    others: tuple[str, ...] = ()


TEXT = Kind("text", (".json", ".jsonl", ".ndjson"), others=(".ipynb", ".map", ".lock", ".geojson", ".har"))
ZIP = Kind(
    "zip",
    (".zip",),
    (b"PK\x03\x04", b"PK\x05\x06"),
    "archive",
    (
        ".docx",
        ".pptx",
        ".odt",
        ".odp",
        ".epub",
        ".jar",
        ".whl",
        ".egg",
        ".apk",
        ".npz",
        ".pt",
        ".pth",
        ".bin",
        ".keras",
    ),
)
TAR = Kind("tar", (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst"), access="archive", others=(".pt", ".pth", ".gem"))
DELIMITED = Kind("delimited", (".csv", ".tsv", ".tab"))
ARROW = Kind("arrow", (".arrow", ".arrows", ".feather", ".ipc"), (b"ARROW1",))
HUB_PREFIX = "hf:"
HUB = Kind("hub", (), access="remote")  # a data set of the Hugging Face Hub
CHAT = Kind("chat", ())  # a text that is one chat: by its content, and in folders by its name
CHAT_SUFFIXES = (".txt", ".text", ".log", ".md")
KINDS = (TEXT, DELIMITED, ARROW, Kind("parquet", (".parquet", ".parq"), (b"PAR1",), "file"), ZIP, TAR)
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".lzma")
SUFFIXES = (*(suffix for kind in KINDS for suffix in kind.suffixes), *COMPRESSED_SUFFIXES)

NOT_A_DUMP = "does not look like a dump"


@dataclass(frozen=True)
class Foreign:
    """A type of file that has no records, or none that can be read, and what to do."""

    magic: bytes  # its first bytes
    name: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.name}; {self.advice}" if self.advice else f"{self.name}, not a .json, .jsonl or .parquet dump"


FOREIGN = (
    Foreign(b"%PDF", "a PDF document"),
    Foreign(b"\x89PNG", "a PNG image"),
    Foreign(b"\xff\xd8\xff", "a JPEG image"),
    Foreign(b"7z\xbc\xaf", "a 7-Zip archive", "unpack it first"),
    Foreign(b"Rar!", "a RAR archive", "unpack it first"),
    Foreign(b"SQLite format 3", "an SQLite database", "export its tables as .jsonl"),
    Foreign(b"FEA1", "a Feather file of version 1", "save it as Feather 2 or Parquet"),
    Foreign(b"\x7fELF", "a program"),
    Foreign(b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "get the file itself: git lfs pull"),
)
WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".ods")
WORKBOOK = Foreign(ZIP.magic[0], "a workbook", "save each of its sheets as .csv")
HTML, XML = Foreign(b"<html", "an HTML page"), Foreign(b"<", "XML or HTML")


def recognise(head: bytes, name: str = "") -> Kind:
    """Return the kind of a file by its first bytes (not compressed), or else by its name; text if neither tells."""
    if (kind := _by_content(head) or by_name(name) or TEXT) is not TEXT:
        return kind
    if begins_table(_decode_head(head)):
        return DELIMITED
    return CHAT if not _is_json_name(name) and _begins_chat(head) else TEXT


def by_name(name: str) -> Kind | None:
    """Return the kind that a name stands for, whatever its compression; None if it is not the name of a dump."""
    plain = _plain_name(name)
    return next((kind for kind in KINDS if plain.endswith(kind.suffixes)), TEXT if plain != name.lower() else None)


def _plain_name(name: str) -> str:
    """Return a name in lower case, without the suffix of its compression."""
    name = name.lower()
    return name.removesuffix(next((suffix for suffix in COMPRESSED_SUFFIXES if name.endswith(suffix)), ""))


def _is_json_name(name: str) -> bool:
    return _plain_name(name).endswith(TEXT.suffixes)


def is_dump_name(name: str) -> bool:
    """Return whether a file of this name is read whatever its content."""
    return by_name(name) is not None


def looks_like_dump(head: bytes, name: str) -> bool:
    """Return whether a file whose name does not tell its kind is a dump by its first bytes."""
    if compression_name(head) is not None:
        return True
    kind = _by_content(head)
    if kind is None:
        return begins_table(_decode_head(head)) or (name.lower().endswith(CHAT_SUFFIXES) and _begins_chat(head))
    return not name.lower().endswith(kind.others + WORKBOOKS)


def _begins_chat(head: bytes) -> bool:
    """Return whether a text begins with marks of who speaks."""
    return marked_text.begins_chat(_decode_head(head))


def _by_content(head: bytes) -> Kind | None:
    for kind in KINDS:
        if kind.magic and head.startswith(kind.magic):
            return kind
    if is_tar_header(head):
        return TAR
    if _is_arrow_stream(head):
        return ARROW
    return TEXT if JSON_START.match(_decode_head(head)) else None


def _is_arrow_stream(head: bytes) -> bool:
    """Return whether a text begins with a mark, the length of a schema, and that schema, as in Arrow's streams."""
    return head.startswith(b"\xff" * 4) and 0 < int.from_bytes(head[4:8], "little") <= MAX_SCHEMA_BYTES


def _decode_head(head: bytes) -> str:
    mark, encoding = next(((mark, encoding) for mark, encoding in BOMS if head.startswith(mark)), (b"", ""))
    unmarked = next((name for pattern, name in UNMARKED if pattern.match(head)), "utf-8")
    return head[len(mark) :].decode(encoding or unmarked, "replace")


def compression_name(head: bytes) -> str | None:
    """Return the compressed format of a stream by its first bytes."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    # A zstd frame, or a skippable frame: 0x184D2A50 to 0x184D2A5F, little-endian (RFC 8878, section 3.1.2).
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return "zstd"
    if re.match(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", head):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    # LZMA without a container: properties, dictionary size, a size below 1 TiB or none, and a zero (LZMA SDK).
    if re.match(rb"\x5d\x00\x00.{2}(?:\xff{8}|.{5}\x00{3})\x00", head, re.DOTALL):
        return "LZMA"
    return None


def is_tar_header(block: bytes) -> bool:
    """Return whether a block is the header of a tar's member: its checksum is right."""
    if len(block) < TAR_BLOCK_BYTES or not block[0]:
        return False
    try:
        tarfile.TarInfo.frombuf(block[:TAR_BLOCK_BYTES], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def foreign(head: bytes, name: str = "") -> Foreign | None:
    """Return the type of a file that cannot have records, by its first bytes; None if it may be a dump."""
    if head.startswith(ZIP.magic) and name.lower().endswith(WORKBOOKS):
        return WORKBOOK
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith(XML.magic):
        return HTML if b"<!doctype html" in text or HTML.magic in text else XML
    return next((each for each in FOREIGN if head.startswith(each.magic)), None)


def unread_reason(head: bytes, name: str) -> str:
    """Return why a file whose name does not tell its kind is not read, by its first bytes; empty if it is a dump."""
    file_type = foreign(head, name)
    if file_type is not None and file_type.advice:
        return f"is {file_type}"
    return "" if looks_like_dump(head, name) else NOT_A_DUMP


def describe(head: bytes) -> str:
    """Describe the first bytes of a text, for an error message."""
    if (file_type := foreign(head)) is not None:
        return str(file_type) if file_type.advice else file_type.name
    text = head.decode("utf-8", "replace")[:40]
    if b"\x00" in head or text.count("�") > len(text) // 4:
        return f"binary data that begins with 0x{head[:8].hex()}"
    return f"text that begins with {text.strip()[:30]!r}"
