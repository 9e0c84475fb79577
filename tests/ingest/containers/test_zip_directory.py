"""A zip without its central directory keeps its complete members, and the start of a truncated one."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import InputError
from curate.ingest.containers import zip_directory
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from tests.support.raw_dumps import LINES, ROWS, Dump, good, reads, rules, values

MEMBERS = {"2023/a.jsonl": LINES, "readme.txt": b"not a dump", "b.json": json.dumps(ROWS).encode(), "c.jsonl": LINES}


class Pipe(io.BytesIO):
    """A target that cannot seek, like a pipe: each member's sizes are then written after its data."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError("a pipe")

    def tell(self) -> int:
        raise OSError("a pipe")


def packed(kind: str = "plain", members: dict[str, bytes] = MEMBERS) -> bytes:
    buffer = Pipe() if kind.startswith("piped") else io.BytesIO()
    method = zipfile.ZIP_STORED if kind.endswith("stored") else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            with archive.open(name, "w", force_zip64="64" in kind) as member:
                member.write(data)
    return buffer.getvalue()


KINDS = ["plain", "stored", "zip64", "piped", "piped zip64", "piped stored"]


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    return reads(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zip_without_its_central_directory_is_read_in_full_with_a_warning(dump: Dump, kind: str) -> None:
    data = packed(kind)
    data = data[: data.index(b"PK\x01\x02")]
    records, reader = dump(data, "dump.zip")
    assert values(records) == ROWS * 3
    assert reader.inputs[0].bytes == len(data)
    (warning,) = reader.warnings
    assert warning.source_file == "dump.zip"
    assert f"cut off at byte {len(data):,}" in warning.text and "4 members found" in warning.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_zip_truncated_inside_a_member_keeps_earlier_members_and_reports_the_loss(dump: Dump, kind: str) -> None:
    data = packed(kind)
    data = data[: data.rindex(b"c.jsonl", 0, data.index(b"PK\x01\x02")) + 120]
    records, reader = dump(data, "dump.zip")
    assert good(records)[:26] == ROWS * 2
    assert set(rules(records)) <= {"unreadable"}
    listed, cut = reader.warnings[0], reader.warnings[1]
    assert listed.source_file == "dump.zip"
    assert cut.source_file == "dump.zip/c.jsonl"
    assert f"cut off at byte {len(data)} of the file" in cut.text
    assert ("the rest is lost" in cut.text) == kind.startswith("piped")


def test_damage_inside_a_member_loses_only_what_follows_it_in_that_member(dump: Dump) -> None:
    data = bytearray(packed())
    offset = data.index(b"b.json") + 60
    data[offset : offset + 4] = b"\xff\xff\xff\xff"
    records, reader = dump(bytes(data[:-200]), "dump.zip")
    assert good(records)[:13] == good(records)[-13:] == ROWS
    assert any("dump.zip/b.json: the zip member is damaged" in damage.text for damage in reader.warnings)


def test_a_wrong_checksum_is_reported(dump: Dump) -> None:
    data = bytearray(packed("stored"))
    data[data.index(b"hello")] = ord("j")
    _, reader = dump(bytes(data[:-200]), "dump.zip")
    assert any("checksum does not match" in damage.text for damage in reader.warnings)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (packed()[:40], "no member can be recovered"),
        (packed()[:140], "cut off"),
        (packed(members={"a.html": b"<html>" * 9, "b.html": b"<p>" * 9})[:-100], "has no dump"),
    ],
)
def test_a_zip_with_nothing_to_recover_gets_one_clear_line(dump: Dump, data: bytes, text: str) -> None:
    with pytest.raises(InputError) as caught:
        dump(data, "dump.zip")
    assert text in str(caught.value)


def without_directory(data: bytearray) -> bytes:
    return bytes(data[: data.index(b"PK\x01\x02")])


def test_an_encrypted_or_unsupported_member_is_named_and_the_others_are_read(dump: Dump) -> None:
    encrypted, odd = bytearray(packed()), bytearray(packed())
    encrypted[6] |= zip_directory.ENCRYPTED
    odd[8] = 97
    for data, reason in ((encrypted, "it is encrypted"), (odd, "its compression method 97 is not supported")):
        records, reader = dump(without_directory(data), "dump.zip")
        assert values(records) == ROWS * 2
        assert f"dump.zip/2023/a.jsonl: the zip member cannot be read: {reason}" in reader.warnings[1].text
        (unread,) = [file for file in reader.unread if file.name != "dump.zip/readme.txt"]
        assert unread.name == "dump.zip/2023/a.jsonl"
        assert unread.reason.startswith(f"cannot be read: {reason}")


def test_a_member_that_lost_its_name_is_not_named_as_the_zip(tmp_path: Path) -> None:
    data = bytearray(packed())
    data[26] = 0  # the size of the first member's name
    (tmp_path / "dump.zip").write_bytes(without_directory(data))
    (unread,) = [source for source in open_inputs([tmp_path / "dump.zip"]) if source.problem]
    assert unread.name == "dump.zip/a member without a name"


def test_a_zip_of_one_encrypted_member_gets_one_clear_line(dump: Dump) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    data = bytearray(buffer.getvalue())
    data[6] |= zip_directory.ENCRYPTED
    with pytest.raises(InputError, match="encrypted"):
        dump(without_directory(data), "dump.zip")


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), share=st.floats(0.3, 1))
def test_any_truncation_keeps_the_records_before_it_in_order(
    tmp_path_factory: pytest.TempPathFactory, kind: str, share: float
) -> None:
    data = packed(kind)
    cut = data[: int(len(data) * share)]
    records, reader = reads(tmp_path_factory.mktemp("zip"))(cut, "dump.zip")
    kept = [value for value in good(records) if "conversations" in value]  # parts of a truncated record may parse too
    assert kept == (ROWS * 3)[: len(kept)]
    assert reader.warnings or len(kept) == 39


def test_an_unreadable_member_loses_no_other_member(dump: Dump) -> None:
    data = bytearray(packed())
    offset = data.index(b"b.json") + 6
    data[offset : offset + 8] = b"\xff" * 8
    records, reader = dump(bytes(data), "dump.zip")
    assert good(records) == ROWS * 2
    assert any("dump.zip/b.json: the zip member is damaged" in damage.text for damage in reader.warnings)


NAMES = ("mark", "version", "flags", "method", "checksum", "packed", "size", "name", "extra", "offset")
FIELDS = [
    *((b"PK\x03\x04", "header", *field) for field in zip(NAMES, (0, 4, 6, 8, 14, 18, 22, 26, 28), strict=False)),
    *((b"PK\x01\x02", "entry", *field) for field in zip(NAMES, (0, 6, 8, 10, 16, 20, 24, 28, 30, 42), strict=True)),
]


@pytest.mark.parametrize("kind", ["plain", "stored", "piped"])
@pytest.mark.parametrize("member", [0, 2, 3])
@pytest.mark.parametrize(("mark", "place", "field", "at"), FIELDS, ids=str)
def test_a_damaged_field_loses_no_member_since_the_other_description_has_it(
    dump: Dump, kind: str, member: int, mark: bytes, place: str, field: str, at: int
) -> None:
    data = bytearray(packed(kind))
    start = -1
    for _ in range(member + 1):
        start = data.index(mark, start + 1)
    data[start + at] = {"version": 99, "flags": 1, "method": 99}.get(field, data[start + at] ^ 0x55)
    records, reader = dump(bytes(data), "dump.zip")
    assert values(records) == ROWS * 3
    assert reader.damaged_records == []


def test_an_end_of_the_directory_that_counts_too_few_loses_no_member(dump: Dump) -> None:
    data = bytearray(packed())
    end = data.index(b"PK\x05\x06")
    data[end + 12] ^= 0x20  # the directory's size
    records, _ = dump(bytes(data), "dump.zip")
    assert values(records) == ROWS * 3


def test_members_are_looked_up_once(tmp_path: Path) -> None:
    """The listing has a member's place, so that a zip of many members takes linear time."""
    with zipfile.ZipFile(tmp_path / "dump.zip", "w") as archive:
        for number in range(3000):
            archive.writestr(f"{number}.jsonl", json.dumps(ROWS[0]))
    sources = open_inputs([tmp_path / "dump.zip"])
    assert [source.member.header_at for source in sources if source.member] == sorted(
        {source.member.header_at for source in sources if source.member}
    )
    assert sum(chunk.count for chunk in Reader(sources)) == 3000
