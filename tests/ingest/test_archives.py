"""Tars, nested archives and files of no known name are read member by member; damage costs what it hits."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curate.errors import InputError
from curate.ingest.containers.tar import Tar
from curate.ingest.damage import Block, Failed, Gap, Verified
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from tests.ingest.test_unread import tarred, write, zipped
from tests.support.raw_dumps import ARRAY, LINES, ROWS, Dump, good, reads, row, values

Members = dict[str, bytes]


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    """Write bytes to a file and read them as a dump."""
    return reads(tmp_path)


def parquet() -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(buffer)
    return buffer.getvalue()


def counts(reader: Reader) -> dict[str, int]:
    """Read everything; return the number of records of each source."""
    found: dict[str, int] = {}
    for chunk in reader:
        found[chunk.source_file] = found.get(chunk.source_file, 0) + chunk.count
    return found


PACKS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": zstandard.compress,
    "": gzip.compress,
}
PARTS = {
    "part.json": ARRAY,
    "deep/er/part.jsonl": LINES,
    "part.jsonl.gz": gzip.compress(LINES),
    "part.parquet": parquet(),
}


@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_of_a_tar_is_read_in_order(tmp_path: Path, suffix: str, form: int) -> None:
    (tmp_path / f"dump{suffix}").write_bytes(PACKS[suffix](tarred(PARTS, form)))
    reader = Reader(open_inputs([tmp_path / f"dump{suffix}"]))
    assert list(counts(reader).items()) == [(f"dump{suffix}/{name}", len(ROWS)) for name in PARTS]
    assert (reader.unread, reader.warnings, reader.damaged_records) == ([], [], [])
    assert reader.inputs[0].bytes == (tmp_path / f"dump{suffix}").stat().st_size
    assert reader.inputs[0].sha256 is not None


def test_archives_in_archives_and_parquet_in_them_are_read(dump: Dump) -> None:
    inner = zipped({"a.json": ARRAY, "b.parquet": parquet(), "c.tar.xz": lzma.compress(tarred({"d": LINES}))})
    members = {"x.json": ARRAY, "in/inner.zip": inner, "y.json.zst": zstandard.compress(ARRAY)}
    records, reader = dump(gzip.compress(tarred(members)), "o.tgz")
    assert values(records) == ROWS * 5
    assert (reader.unread, reader.warnings) == ([], [])


def test_an_archive_that_is_too_deep_is_named_and_the_others_are_read(dump: Dump) -> None:
    data = ARRAY
    for _ in range(6):
        data = zipped({"inner.zip": data} if data is not ARRAY else {"a.json": data})
    records, reader = dump(zipped({"a.json": ARRAY, "deep.zip": data}), "dump.zip")
    assert values(records) == ROWS
    (unread,) = reader.unread
    assert unread.name.startswith("dump.zip/deep.zip/inner.zip/inner.zip/")
    assert unread.reason == "is inside 5 archives or compressed files; unpack it first"


@pytest.mark.parametrize("name", ["i", "j.json.1", "k.bak", "l.txt", "m.parq", "n.old", "o"])
def test_a_dump_of_any_name_is_recognised_by_its_content(tmp_path: Path, name: str) -> None:
    data = {"k.bak": bz2.compress(LINES), "m.parq": parquet(), "n.old": tarred({"x": ARRAY}), "o": "﻿[".encode("utf-16")}
    content = data.get(name, LINES) if name != "o" else ARRAY.decode().encode("utf-16")
    folder = write(tmp_path / "x", {name: content, "README": b"{}", "a.png": ARRAY, "notes": b"Dear all"})
    (folder / "b.zip").write_bytes(zipped({name: content, "README": b"{}", "a.png": ARRAY, "notes": b"Dear all"}))
    (folder / "c.tar").write_bytes(tarred({name: content, "README": b"{}", "a.png": ARRAY, "notes": b"Dear all"}))
    reader = Reader(open_inputs([folder]))
    assert sum(counts(reader).values()) == 3 * len(ROWS)
    assert {file.name for file in reader.unread} == {"notes", "b.zip/notes", "c.tar/notes"}
    assert len(reader.warnings) == 3


def special_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in [("folder", tarfile.DIRTYPE), ("d.json", tarfile.CHRTYPE), ("p.json", tarfile.FIFOTYPE)]:
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
        for name, kind in [("h.json", tarfile.LNKTYPE), ("s.json", tarfile.SYMTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in (
            "/abs/a.json",
            "../../up.json",
            "a" * 300 + ".json",
            "same.json",
            "same.json",
            "._x.json",
            ".DS_Store",
        ):
            info = tarfile.TarInfo(name)
            info.size = len(LINES)
            archive.addfile(info, io.BytesIO(LINES))
    return buffer.getvalue()


def test_links_devices_and_names_in_a_tar_lead_nowhere(dump: Dump, tmp_path: Path) -> None:
    records, reader = dump(special_tar(), "x.tar")
    assert values(records) == ROWS * 5
    assert {file.name: file.reason for file in reader.unread} == {
        "x.tar/d.json": "is a device",
        "x.tar/p.json": "is a pipe",
        "x.tar/h.json": "is a link to '/etc/passwd', which is not followed",
        "x.tar/s.json": "is a link to '/etc/passwd', which is not followed",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def lines(part: int) -> bytes:
    return b"".join(json.dumps(row(100 * part + number)).encode() + b"\n" for number in range(12))


def encrypted() -> bytes:
    data = bytearray(zipped({"a.json": ARRAY}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


WORKBOOK = zipped(
    {"xl/workbook.xml": b'<sheets><sheet name="Chats &amp; more" sheetId="1"/><sheet name="B"/></sheets>'}
)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abab\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "data", "unread", "reason"),
    [
        ("x.zip", encrypted(), "x.zip/a.json", "cannot be read: it is encrypted"),
        ("x.zip", b"", "x.zip", "has no record: only white space"),
        ("x.zip", b"no", "x.zip", "is a damaged zip"),
        ("x.zip", zipped({}), "x.zip", "is a zip that has no dump"),
        ("x.tar", tarred({"a": b"x"}), "x.tar/a", "does not look like a dump"),
        ("x.parquet", b"PAR1 and no more", "x.parquet", "is a Parquet file that cannot be read"),
        ("x.json.gz", b"", "x.json.gz", "has no record: only white space"),
        ("x.jsonl", b"Dear all", "x.jsonl", "has no complete JSON record; it is text that begins with 'Dear all'"),
        ("book.xlsx", WORKBOOK, "book.xlsx", "is a workbook; save each of its sheets as .csv"),
        ("lfs", POINTER, "lfs", "is a Git LFS pointer; get the file itself: git lfs pull"),
        ("model.bin", zipped({"data.pkl": b"x"}), "model.bin", "does not look like a dump"),
    ],
)
def test_a_bad_member_of_an_archive_costs_itself_and_is_named(
    tmp_path: Path, name: str, data: bytes, unread: str, reason: str
) -> None:
    members = {"a.json": ARRAY, name: data, "z.json": LINES}
    nested = zipped({"o.tar": tarred(members)})
    for outer, archive in (("o.tar", tarred(members)), ("o.zip", zipped(members)), ("p.zip", nested)):
        (tmp_path / outer).write_bytes(archive)
        reader = Reader(open_inputs([tmp_path / outer]))
        assert sum(counts(reader).values()) == 2 * len(ROWS)
        found = {file.name: file.reason for file in reader.unread}
        place = outer if outer != "p.zip" else "p.zip/o.tar"
        assert found[f"{place}/{unread}"].startswith(reason)
        assert any(unread.rpartition("/")[2] in damage.text for damage in reader.warnings)


def test_a_workbook_is_named_with_its_sheets(tmp_path: Path) -> None:
    (tmp_path / "chats.xlsx").write_bytes(WORKBOOK)
    with pytest.raises(InputError, match=r"is a workbook; save each of its sheets as .csv \('Chats & more', 'B'\)"):
        open_inputs([tmp_path / "chats.xlsx"])


def test_a_member_that_is_read_at_random_is_in_the_scratch_folder_only_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({"a.parquet": parquet(), "b.json": ARRAY}))
    reader = Reader(open_inputs([tmp_path / "x.zip"]), chunk_bytes=100)
    reader.scratch = tmp_path / "scratch"
    reader.scratch.mkdir()
    present = [len(list(reader.scratch.iterdir())) for _ in reader]
    assert present[0] == 1 and present[-1] == 0
    stopped = Reader(open_inputs([tmp_path / "x.zip"]), limit=1)
    stopped.scratch = reader.scratch
    assert stopped.records_read == 0 and sum(chunk.count for chunk in stopped) == 1
    assert list(reader.scratch.iterdir()) == []


@pytest.mark.parametrize(
    "data", [gzip.compress(tarred(PARTS)), zipped(PARTS), parquet()], ids=["tar", "zip", "parquet"]
)
def test_archives_are_read_from_standard_input(data: bytes) -> None:
    code = "from tests.ingest.test_archives import Reader, counts, open_inputs\n"
    code += "print(sum(counts(Reader(open_inputs(['-']))).values()))"
    ran = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert int(ran.stdout) == len(ROWS) * (1 if data.startswith(b"PAR1") else len(PARTS))


TEXTS = {f"part-{part}.jsonl": lines(part) for part in range(8)}
WHOLE = tarred(TEXTS, tarfile.USTAR_FORMAT)
TWICE = WHOLE + tarred({f"more/{name}": text for name, text in TEXTS.items()})
HEADERS = [at for at in range(0, len(WHOLE), 512) if WHOLE[at : at + 5] == b"part-"]
EACH = 12


def at(part: int, offset: int) -> int:
    return HEADERS[part] + offset


@pytest.mark.parametrize(
    ("data", "least"),
    [
        pytest.param(WHOLE[: at(5, 700)], 5 * EACH + 1, id="cut off in a member"),
        pytest.param(WHOLE[: at(5, 100)], 5 * EACH, id="cut off in a header"),
        pytest.param(WHOLE[: at(3, 0)] + b"garbage" + WHOLE[at(3, 7) :], 8 * EACH, id="a header's name"),
        pytest.param(WHOLE[: at(3, 124)] + b"9" * 11 + WHOLE[at(3, 135) :], 8 * EACH, id="a header's size"),
        pytest.param(WHOLE[: at(3, 0)] + bytes(512) + WHOLE[at(3, 512) :], 8 * EACH, id="a header of zeros"),
        pytest.param(WHOLE[: at(3, 700)] + WHOLE[at(3, 733) :], 8 * EACH - 2, id="bytes deleted"),
        pytest.param(WHOLE[: at(3, 700)] + WHOLE[at(5, 733) :], 6 * EACH - 2, id="members deleted"),
        pytest.param(WHOLE[: at(3, 700)] + b"x" * 100 + WHOLE[at(3, 700) :], 8 * EACH - 2, id="bytes inserted"),
        pytest.param(WHOLE[: at(3, 0)] + WHOLE[at(3, 30) :], 8 * EACH - 1, id="bytes of a header deleted"),
        pytest.param(TWICE, 16 * EACH, id="two tars, one after the other"),
        pytest.param(WHOLE + b"garbage" * 30, 8 * EACH, id="garbage at the end"),
        pytest.param(WHOLE.rstrip(b"\0"), 8 * EACH, id="its end is missing"),
    ],
)
def test_a_damaged_tar_keeps_its_whole_members(dump: Dump, data: bytes, least: int) -> None:
    records, reader = dump(data, "x.tar")
    kept = good(records)
    whole = {json.dumps(json.loads(line)) for text in TEXTS.values() for line in text.splitlines()}
    assert len([record for record in kept if json.dumps(record) in whole]) >= least
    assert bool(reader.warnings) == (data not in (WHOLE.rstrip(b"\0"), TWICE))


def test_members_before_a_failed_checksum_are_in_doubt_and_those_before_the_last_good_one_are_not(dump: Dump) -> None:
    texts = {f"p{at}.jsonl": json.dumps(row(at, random.Random(at).randbytes(900).hex())).encode() for at in range(6)}
    data = tarred(texts)
    half = data.index(b"p3.jsonl")
    second = bytearray(gzip.compress(data[half:]))
    second[-8] ^= 1  # of the checksum
    records, reader = dump(gzip.compress(data[:half]) + bytes(second), "x.tar.gz")
    assert len(good(records)) == 6
    assert [(each.source_file, each.first, each.stop) for each in reader.damaged_records] == [
        (f"x.tar.gz/p{at}.jsonl", 0, 1) for at in (3, 4, 5)
    ]


def test_a_member_with_a_good_checksum_of_its_own_is_not_in_doubt(dump: Dump) -> None:
    members = {"a.json": ARRAY, "b.json.gz": gzip.compress(ARRAY), "c.parquet": parquet()}
    data = bytearray(gzip.compress(tarred(members)))
    data[-8] ^= 1
    _, reader = dump(bytes(data), "x.tgz")
    assert {each.source_file for each in reader.damaged_records} == {"x.tgz/a.json", "x.tgz/c.parquet"}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(tarred({}), id="empty"),
        pytest.param(tarred({"a.html": b"<html>", "b.txt": b"x"}), id="no dump"),
        pytest.param(gzip.compress(tarred({"a.json": b"Dear all"})), id="text"),
        pytest.param(tarred({"a.json": b""}), id="an empty member"),
        pytest.param(lzma.compress(bytes(10240)), id="zeros"),
    ],
)
def test_a_tar_without_a_record_gets_one_clear_line(dump: Dump, data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        dump(data, "x.tar")
    assert "x.tar" in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=80, deadline=None)
@given(
    members=st.lists(st.binary(max_size=2000), max_size=5),
    cuts=st.lists(st.integers(0, 12_000), max_size=6),
    marks=st.lists(st.sampled_from([Verified(), Failed("bad")]), max_size=6),
)
def test_the_members_do_not_depend_on_the_blocks_of_a_stream(
    members: list[bytes], cuts: list[int], marks: list[Block]
) -> None:
    data = tarred({f"m{number}": content for number, content in enumerate(members)})
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    blocks: list[Block] = []
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        blocks += [data[start:stop], *marks[number : number + 1]]
    seen: list[Block] = []
    tar = Tar(iter(blocks), lambda *_: None, seen.append)
    found = [b"".join(block for block in member.blocks if isinstance(block, bytes)) for member in tar]
    assert found == members
    assert seen == marks[: len(edges) - 1]


@settings(max_examples=150, deadline=None)
@example(part=5, offset=0, lost=0, junk=b"\x01", stop=0)  # the next header begins in a block read while searching
@given(
    part=st.integers(0, 7),
    offset=st.integers(0, 1500),
    lost=st.integers(0, 1500),
    junk=st.binary(max_size=600),
    stop=st.integers(0, len(WHOLE)),
)
def test_any_damage_to_a_tar_ends_and_leaves_other_members_whole(
    part: int, offset: int, lost: int, junk: bytes, stop: int
) -> None:
    place = min(at(part, offset), len(WHOLE))
    for data in (WHOLE[:place] + junk + WHOLE[place + lost :], (WHOLE[:place] + junk + WHOLE[place + lost :])[:stop]):
        tar = Tar(iter([data[: len(data) // 2], data[len(data) // 2 :]]), lambda *_: None, lambda _: None)
        texts = [b"".join(block for block in member.blocks if isinstance(block, bytes)) for member in tar]
        if len(data) > stop:  # the one that is not cut off
            assert len(set(TEXTS.values()) - set(texts)) <= 2 + lost // 1000


def test_a_tar_with_a_gap_goes_on_at_the_next_header() -> None:
    reports: list[str] = []
    blocks: list[Block] = [WHOLE[: at(2, 800)], Failed("bad"), Gap(), WHOLE[at(4, 900) :]]
    tar = Tar(iter(blocks), lambda *note: reports.append(note[2]), lambda _: None)
    names = [(member.name, b"".join(block for block in member.blocks if isinstance(block, bytes))) for member in tar]
    assert [name for name, _ in names] == [f"part-{part}.jsonl" for part in (0, 1, 2, 5, 6, 7)]
    assert all(TEXTS[name] == text for name, text in names if name != "part-2.jsonl")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_many_damaged_places_are_named_up_to_twenty_and_then_counted(
    dump: Dump, pack: Callable[[bytes], bytes]
) -> None:
    texts = [random.Random(number).randbytes(2000).hex() for number in range(90)]
    parts = [pack(json.dumps(row(number, text)).encode()) for number, text in enumerate(texts)]
    damaged = [part[:90] + b"?" * 9 + part[99:] if number % 3 == 1 else part for number, part in enumerate(parts)]
    records, reader = dump(b"".join(damaged), "x.json")
    assert len(good(records)) >= 60
    assert len(reader.warnings) == 21
    assert re.fullmatch(r"x.json: \d+ more places are damaged; they take [\d,]+ bytes", reader.warnings[-1].text)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"BZh91AY&SY" * 20_000, "the bzip2 stream is damaged"),
        (lzma.compress(LINES)[:12] * 20_000, "the xz stream is damaged"),
        (b"\x5d" + b"\xff" * 12 + bytes(99), "its dictionary takes more than 257 MiB of memory"),
        (tarred({"a.json": b"ustar" * 100_000}), "has no complete JSON record"),
    ],
    ids=["bzip2 headers", "xz headers", "a huge dictionary", "marks of tar headers"],
)
def test_a_hostile_file_ends_soon_with_one_clear_line(dump: Dump, data: bytes, text: str) -> None:
    with pytest.raises(InputError, match=text):
        dump(data, "x.json.lzma")


BOMB = bytes(70 << 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda: bz2.compress(BOMB), id="bzip2"),
        pytest.param(lambda: lzma.compress(BOMB, preset=0), id="xz"),
        pytest.param(lambda: gzip.compress(tarred({"a.json": BOMB})), id="tar"),
        pytest.param(lambda: gzip.compress(tarred({"notes.txt": BOMB, "a.json": ARRAY})), id="a tar's unread member"),
        pytest.param(lambda: zipped({"a.parquet.gz": gzip.compress(b"PAR1" + BOMB)}), id="a file in an archive"),
        pytest.param(lambda: zipped({"a.zip": gzip.compress(zipped({"b.json": BOMB}))}), id="nested"),
    ],
)
def test_an_archive_bomb_is_stopped_in_the_layer_in_which_it_expands(dump: Dump, pack: Callable[[], bytes]) -> None:
    with pytest.raises(InputError, match=r"expands [\d,]+ times .* past the limit of 100"):
        dump(pack(), "bomb", max_expansion=100)
