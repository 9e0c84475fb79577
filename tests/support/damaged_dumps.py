"""Dumps in containers of several parts, and what can be trusted of them after damage in one place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zstandard

from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from tests.support.raw_dumps import row

PARTS = 8
WORDS = ["model", "text", "careful", "answer", "ask", "why", "long", "matters", "“quoted”", '{"id":', "\n"]


def part(number: int) -> list[dict[str, Any]]:
    """Return 12 rows; their keys come in two orders."""
    draw = random.Random(number)
    rows = [row(100 * number + at, " ".join(draw.choices(WORDS, k=60))) for at in range(12)]
    return [each if at % 3 else dict(reversed(each.items())) for at, each in enumerate(rows)]


ROWS = [part(number) for number in range(PARTS)]
TEXTS = [b"".join(json.dumps(each).encode() + b"\n" for each in rows) for rows in ROWS]
ALL = {each["id"]: each for rows in ROWS for each in rows}


def zstd(data: bytes, *, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(data)


def zipped(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for number, text in enumerate(TEXTS):
            archive.writestr(f"part-{number}.jsonl", text)
    return buffer.getvalue()


def tarred(texts: Sequence[bytes] = TEXTS) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, text in enumerate(texts):
            info = tarfile.TarInfo(f"part-{number}.jsonl")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return buffer.getvalue()


def tarred_zip() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (("a.zip", zipped(zipfile.ZIP_DEFLATED)), ("note.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def frames_of(data: bytes) -> list[bytes]:
    """Return the bytes in PARTS pieces, whose ends are no ends of a tar's members."""
    size = -(-len(data) // PARTS)
    return [data[start : start + size] for start in range(0, len(data), size)]


CONTAINERS: dict[str, tuple[str, bytes]] = {
    "gzip of one member": ("dump.jsonl.gz", gzip.compress(b"".join(TEXTS))),
    "gzip of members": ("dump.jsonl.gz", b"".join(map(gzip.compress, TEXTS))),
    "zstd of one frame": ("dump.jsonl.zst", zstd(b"".join(TEXTS))),
    "zstd of frames": ("dump.jsonl.zst", b"".join(map(zstd, TEXTS))),
    "zip, stored": ("dump.zip", zipped(zipfile.ZIP_STORED)),
    "zip, deflated": ("dump.zip", zipped(zipfile.ZIP_DEFLATED)),
    "zip, bzip2": ("dump.zip", zipped(zipfile.ZIP_BZIP2)),
    "zip, LZMA": ("dump.zip", zipped(zipfile.ZIP_LZMA)),
    "bzip2 of one stream": ("dump.jsonl.bz2", bz2.compress(b"".join(TEXTS))),
    "bzip2 of streams": ("dump.jsonl.bz2", b"".join(map(bz2.compress, TEXTS))),
    "xz of one stream": ("dump.jsonl.xz", lzma.compress(b"".join(TEXTS))),
    "xz of streams": ("dump.jsonl.xz", b"".join(map(lzma.compress, TEXTS))),
    "tar in gzip of one member": ("dump.tar.gz", gzip.compress(tarred())),
    "tar in gzip of members": ("dump.tar.gz", b"".join(map(gzip.compress, frames_of(tarred())))),
    "tar in zstd of frames": ("dump.tar.zst", b"".join(map(zstd, frames_of(tarred())))),
    "zip in a tar in xz of one stream": ("dump.tar.xz", lzma.compress(tarred_zip())),
}


def corrupt(data: bytes, seed: int, *, cut_off: bool = True) -> bytes:
    """Damage one place: flip a bit, overwrite, zero, delete, insert, or cut the file off there."""
    draw = random.Random(seed)
    at = draw.randrange(len(data))
    length = draw.choice((1, 16, 64, 512))
    rest = data[at + length :]
    match draw.randrange(5 + cut_off):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case 1:
            return (data[:at] + draw.randbytes(length) + rest)[: len(data)]
        case 2:
            return (data[:at] + bytes(length) + rest)[: len(data)]
        case 3:
            return data[:at] + rest
        case 4:
            return data[:at] + draw.randbytes(length) + data[at:]
        case _:
            return data[:at]


def trusted(path: Path, chunk_bytes: int = 4 << 20) -> list[dict[str, Any]]:
    """Return the conversations that are whole, and not from a stream that failed its checksum."""
    reader = Reader(open_inputs([path]), chunk_bytes=chunk_bytes)
    records = [(chunk.source_file, record) for chunk in reader for record in decode_records(chunk)]
    assert len(records) == reader.records_read
    doubtful = {(each.source_file, at) for each in reader.damaged_records for at in range(each.first, each.stop)}
    return [
        record.value
        for file, record in records
        if record.problem is None and (file, record.index) not in doubtful and _is_chat(record.value)
    ]


def _is_chat(value: object) -> bool:
    return isinstance(value, dict) and {"id", "conversations"} <= value.keys()


def damage(name: str, seed: int, folder: Path) -> Path:
    """Write a copy of a container that is damaged in one place."""
    file, data = CONTAINERS[name]
    path = folder / file
    path.write_bytes(corrupt(data, seed))
    return path


def damage_places(name: str, seed: int, folder: Path, places: int) -> Path:
    """Write a copy that is damaged in several places, and not cut off: a missing checksum would show none of them."""
    file, data = CONTAINERS[name]
    for place in range(places):
        data = corrupt(data, places * seed + place, cut_off=False)
    path = folder / file
    path.write_bytes(data)
    return path
