"""Dumps are read from files, folders, archives, Parquet and pipes; anything else gets one clear line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import os
import random
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import InputError
from curate.ingest.containers import compression
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from tests.support.raw_dumps import ARRAY, LINES, ROWS, Dump, good, read, reads, row, values


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    """Write bytes to a file and read them as a dump."""
    return reads(tmp_path)


# ── containers and archives ───────────────────────────────────────────────────────────────────────────────────────


def packed_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def packed_times(count: int, pack: Callable[[bytes], bytes], data: bytes) -> bytes:
    return pack(packed_times(count - 1, pack, data)) if count else data


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(gzip.compress, id="gzip"),
        pytest.param(bz2.compress, id="bzip2"),
        pytest.param(lambda data: bz2.compress(data[:999]) + bz2.compress(data[999:]), id="bzip2 of two streams"),
        pytest.param(lzma.compress, id="xz"),
        pytest.param(lambda data: lzma.compress(data[:999]) + bytes(8) + lzma.compress(data[999:]), id="xz, padded"),
        pytest.param(lambda data: lzma.compress(data, lzma.FORMAT_ALONE), id="LZMA"),
        pytest.param(lambda data: gzip.compress(zstandard.compress(bz2.compress(data))), id="three times"),
        pytest.param(lambda data: gzip.compress(packed_zip({"a.json": data})), id="zip in gzip"),
        pytest.param(lambda data: packed_times(3, lambda inner: packed_zip({"a": inner}), data), id="nested zips"),
        pytest.param(lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]), id="gzip of two members"),
        pytest.param(lambda data: gzip.compress(data) + bytes(1000), id="gzip with padding"),
        pytest.param(zstandard.compress, id="zstd"),
        pytest.param(
            lambda data: zstandard.compress(data[:999]) + zstandard.compress(data[999:]), id="zstd of two frames"
        ),
        pytest.param(lambda data: packed_zip({"dump.json": data}), id="zip"),
        pytest.param(lambda data: packed_zip({"dump.json.gz": gzip.compress(data)}), id="gzip in a zip"),
    ],
)
@pytest.mark.parametrize("name", ["dump.json.gz", "dump.bin"])
def test_compression_is_detected_from_the_bytes(dump: Dump, pack: Callable[[bytes], bytes], name: str) -> None:
    data = pack(ARRAY)
    records, reader = dump(data, name)
    assert values(records) == ROWS
    assert reader.warnings == []
    (file,) = reader.inputs
    assert (file.name, file.bytes, file.sha256) == (name, len(data), sha256(data).hexdigest())
    assert 0 < reader.bytes_read <= len(data) == reader.bytes_total
    assert reader.bytes_unpacked == len(ARRAY)


@pytest.mark.parametrize("pack", [pytest.param(gzip.compress, id="gzip"), pytest.param(zstandard.compress, id="zstd")])
@pytest.mark.parametrize("harm", ["cut off", "overwritten"])
def test_a_damaged_archive_keeps_what_could_be_expanded(dump: Dump, pack: Callable[[bytes], bytes], harm: str) -> None:
    rows = [row(number, os.urandom(300).hex()) for number in range(1000)]
    data = pack(json.dumps(rows).encode())
    half = len(data) // 2
    data = data[:half] if harm == "cut off" else data[:half] + b"\xff" * 4000 + data[half + 4000 :]
    records, reader = dump(data, "dump.json.x")
    complete = good(records)
    assert 200 < len(complete) < 999
    assert complete == rows[: len(complete)] or harm == "overwritten"
    assert any("stream is" in damage.text for damage in reader.warnings)
    assert reader.inputs[0].bytes == len(data)


def test_a_damaged_zip_member_keeps_what_could_be_expanded(dump: Dump) -> None:
    rows = [row(number, random.Random(number).randbytes(300).hex()) for number in range(1000)]
    data = bytearray(packed_zip({"a.json": json.dumps(rows).encode()}))
    data[len(data) // 2] ^= 0xFF
    records, reader = dump(bytes(data), "dump.zip")
    assert len(good(records)) > 400
    assert "zip member is damaged" in reader.warnings[0].text


def test_zip_member_names_are_never_used_as_paths(tmp_path: Path) -> None:
    inside = {
        "../../etc/a.json": ARRAY,
        "b/c.jsonl": LINES,
        "readme.txt": b"no",
        "__MACOSX/._c.jsonl": b"no",
        "a": b"x",
    }
    (tmp_path / "dump.zip").write_bytes(packed_zip(inside))
    sources = open_inputs([tmp_path / "dump.zip"])
    assert [source.name for source in sources if not source.problem] == ["dump.zip/etc/a.json", "dump.zip/b/c.jsonl"]
    assert sum(chunk.count for chunk in Reader(sources)) == 26
    assert [path.name for path in tmp_path.iterdir()] == ["dump.zip"]


BOMB = bytes(1 << 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda size: gzip.compress(BOMB * size), id="gzip"),
        pytest.param(lambda size: zstandard.compress(BOMB * size), id="zstd"),
        pytest.param(lambda size: packed_zip({"a.json": BOMB * size}), id="zip"),
        pytest.param(lambda size: packed_zip({"a.json.gz": gzip.compress(BOMB * size)}), id="gzip in a zip"),
    ],
)
def test_a_zip_bomb_is_stopped_by_the_limits(dump: Dump, pack: Callable[[int], bytes]) -> None:
    with pytest.raises(InputError, match=r"expands past the limit of 3,000,000 bytes"):
        dump(pack(4), "bomb.json.gz", max_expanded_bytes=3_000_000)
    with pytest.raises(InputError, match=r"expands [\d,]+ times .* past the limit of 500"):
        dump(pack(80), "bomb.json.gz", max_expansion=500)


def test_parquet_rows_become_records(tmp_path: Path) -> None:
    rows = [each | {"score": float(n), "when": None} for n, each in enumerate(ROWS)]
    frame = pl.DataFrame([*rows, {"id": "x", "conversations": None, "score": math.nan, "when": None}])
    frame.write_parquet(tmp_path / "a.parquet")
    records, reader = read(tmp_path / "a.parquet")
    assert values(records) == [*rows, {"id": "x", "conversations": None, "score": None, "when": None}]
    assert reader.inputs[0].bytes == (tmp_path / "a.parquet").stat().st_size
    assert reader.inputs[0].sha256 == sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()


def test_parquet_types_without_a_json_form_become_text(tmp_path: Path) -> None:
    columns = {"d": ["2024-01-02"], "b": [b"\xff"], "big": [2**100]}
    frame = pl.DataFrame(columns, schema_overrides={"big": pl.Int128}).with_columns(pl.col("d").str.to_datetime())
    frame.write_parquet(tmp_path / "a.parquet")
    (record,) = read(tmp_path / "a.parquet")[0]
    assert record.value["d"].startswith("2024-01-02")
    assert record.value["big"] == 2**100


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=3000), size=st.sampled_from([1, 7, 1 << 17]))
def test_a_truncated_gzip_keeps_a_prefix(data: bytes, size: int) -> None:
    compressed = gzip.compress(data)
    truncated = compressed[: len(compressed) * 2 // 3]
    notes: list[str] = []
    blocks = (truncated[start : start + size] for start in range(0, len(truncated), size))
    expanded = compression.expand(compression.FORMATS["gzip"], blocks, lambda _offset, _lost, note: notes.append(note))
    out = b"".join(block for block in expanded if isinstance(block, bytes))
    assert data.startswith(out)
    assert notes


# ── inputs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_dumps_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.json", "a/b/c.ndjson", "notes.txt", ".hidden.json", "._b.jsonl", ".git/x.json"):
        path = tmp_path / "dumps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"Notes." if name == "notes.txt" else LINES)
    sources = open_inputs([tmp_path / "dumps"])
    assert [source.name for source in sources] == ["a/b/c.ndjson", "a/z.json", "b.jsonl", "notes.txt"]
    assert [source.name for source in sources if source.problem] == ["notes.txt"]
    chunks = list(Reader(sources))
    assert [(chunk.source_file, chunk.first, chunk.count) for chunk in chunks] == [
        ("a/b/c.ndjson", 0, 13),
        ("a/z.json", 0, 13),
        ("b.jsonl", 0, 13),
    ]


def test_files_with_the_same_name_are_distinguished_and_repeated_files_read_once(tmp_path: Path) -> None:
    for name in ("x/2023/a.json", "x/2024/a.json", "y/2024/a.json", "b.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(ARRAY)
    arguments = [tmp_path / "x/2023/a.json", tmp_path / "x/2024", tmp_path / "y/2024/a.json", tmp_path / "b.json"]
    names = [source.name for source in open_inputs([*arguments, tmp_path / "x"])]
    assert names == ["2023/a.json", "x/2024/a.json", "y/2024/a.json", "b.json"]
    assert sorted(names) == sorted(source.name for source in open_inputs(arguments[::-1]))


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("empty.json", b"", "is empty"),
        ("space.json", b" \n\n ", "only white space"),
        ("page.html", b"<!DOCTYPE html><html><body>Not found</body></html>", "an HTML page"),
        ("doc.pdf", b"%PDF-1.7 ...", "a PDF document"),
        ("dump.json.xz", b"\xfd7zXZ\x00\x00", "the xz stream is cut off"),
        ("dump.json.bz2", b"BZh9 and no more", "the bzip2 stream is damaged"),
        ("text.json", b"Dear all,\nthis is a letter.\n", "text that begins with 'Dear all"),
        ("binary.json", bytes(range(128, 256)) * 9, "binary data that begins with 0x8081"),
        ("cut.json", ARRAY[:80], "has no complete JSON record"),
        ("numbers.txt", b"1 2 3\n4 5 6\n", "has no complete JSON record"),
        ("page.json.gz", gzip.compress(b"<html>" * 50), "an HTML page"),
        ("cut.json.gz", gzip.compress(ARRAY)[:12], "the gzip stream is cut off"),
        ("empty.json.gz", gzip.compress(b""), "only white space"),
        ("onion.json.gz", packed_times(6, gzip.compress, ARRAY), "is inside 5 archives or compressed files; unpack it"),
        ("broken.zip", b"PK\x03\x04 and no more", "is a damaged zip"),
        ("none.zip", packed_zip({"a.txt": b"x"}), "has no dump"),
        ("broken.parquet", b"PAR1 and no more", "a Parquet file that cannot be read"),
        ("none.json", b"[]", "no record in 'none.json'"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_file_that_is_not_a_dump_gets_one_clear_line(dump: Dump, name: str, data: bytes, text: str) -> None:
    with pytest.raises(InputError) as caught:
        dump(data, name)
    assert text in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(lambda path: path, "does not exist", id="missing"),
        pytest.param(lambda path: path.mkdir() or path, "has no dump", id="empty folder"),
        pytest.param(lambda path: path.parent / "nul\0l", "cannot be read", id="a name that cannot be"),
    ],
)
def test_a_missing_input_gets_one_clear_line(tmp_path: Path, make: Callable[[Path], Path], text: str) -> None:
    with pytest.raises(InputError, match=text):
        open_inputs([make(tmp_path / "x.json")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_gets_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(ARRAY)
    (tmp_path / "a.json").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        open_inputs([tmp_path / "a.json"])


def test_an_empty_list_of_inputs_is_refused() -> None:
    with pytest.raises(InputError, match="no input given"):
        open_inputs([])


def test_an_empty_array_among_other_dumps_is_only_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[]")
    (tmp_path / "b.json").write_bytes(ARRAY)
    reader = Reader(open_inputs([tmp_path]))
    assert sum(chunk.count for chunk in reader) == 13
    assert [damage.text for damage in reader.warnings] == ["a.json: an empty array, no record"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_standard_input_is_read_through_a_pipe(pack: Callable[[bytes], bytes]) -> None:
    code = (
        "from curate.ingest.decode import decode_records as records\n"
        "from curate.ingest.reader import Reader\n"
        "from curate.ingest.sources import open_inputs\n"
        "r = Reader(open_inputs(['-']), chunk_bytes=100)\n"
        "print([x.value['id'] for c in r for x in records(c)], r.inputs[0].sha256, r.bytes_total)"
    )
    data = pack(ARRAY)
    ran = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    expected = f"{[each['id'] for each in ROWS]} {sha256(data).hexdigest()} None"
    assert ran.stdout.decode().strip() == expected


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(LINES,))
    writer.start()
    assert values(read(tmp_path / "pipe")[0]) == ROWS
    writer.join()
