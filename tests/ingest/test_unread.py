"""A file that cannot be read costs itself, and everything that was not read is named."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.cli import cli
from curate.dataset import manifest
from curate.errors import InputError
from curate.ingest.reader import Reader
from curate.ingest.sources import Source, open_inputs
from curate.ingest.unread import is_negligible
from tests.support.raw_dumps import ARRAY, LINES, ROWS

BAD = {
    "empty.json": b"",
    "space.json": b" \n",
    "page.json": b"<!DOCTYPE html><html></html>",
    "document.jsonl": b"%PDF-1.7 ...",
    "picture.json": b"\x89PNG\r\n",
    "letter.json": b"Dear all,\nthis is a letter.\n",
    "numbers.jsonl": b"1 2 3\n4 5 6\n",
    "cut.json": ARRAY[:80],
    "cut.json.gz": gzip.compress(ARRAY)[:12],
    "pointer.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:abab\nsize 12345\n",
    "broken.zip": b"PK\x03\x04 and no more",
    "broken.parquet": b"PAR1 and no more",
}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def drain(reader: Reader) -> Reader:
    for _ in reader:
        pass
    return reader


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", ["folder", "arguments"])
def test_a_bad_file_among_others_costs_itself(tmp_path: Path, name: str, place: str) -> None:
    write(tmp_path / "x", {"a.json": ARRAY, name: BAD[name], "z.jsonl": LINES})
    arguments = [tmp_path / "x"] if place == "folder" else sorted((tmp_path / "x").iterdir())
    reader = drain(Reader(open_inputs(arguments)))
    assert reader.records_read == 2 * len(ROWS)
    assert [file.name for file in reader.unread] == [name]
    assert any(damage.text.startswith(f"{name} is not read: it ") for damage in reader.warnings)
    assert {file.name for file in reader.inputs} >= {"a.json", "z.jsonl"}


def test_all_bad_files_together_cost_themselves(tmp_path: Path) -> None:
    reader = drain(Reader(open_inputs([write(tmp_path / "x", BAD | {"a.json": ARRAY})])))
    assert reader.records_read == len(ROWS)
    assert {file.name for file in reader.unread} == set(BAD)


def test_only_bad_files_are_an_error_with_the_causes(tmp_path: Path) -> None:
    write(tmp_path / "x", {name: BAD[name] for name in ("empty.json", "letter.json", "cut.json", "page.json")})
    with pytest.raises(InputError, match=r"none of 4 inputs has a record: .*empty \(0 bytes\).*; and 1 more"):
        drain(Reader(open_inputs([tmp_path / "x"])))


def test_a_missing_argument_is_an_error_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"a.json": ARRAY})
    with pytest.raises(InputError, match="does not exist"):
        open_inputs([tmp_path / "a.json", tmp_path / "typo.json"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_costs_itself(tmp_path: Path) -> None:
    write(tmp_path / "x", {"a.json": ARRAY, "b.json": ARRAY})
    (tmp_path / "x/b.json").chmod(0)
    reader = drain(Reader(open_inputs([tmp_path / "x"])))
    assert "Permission denied" in reader.warnings[0].text


def test_links_and_pipes_of_a_folder_are_named_and_never_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"a.json": ARRAY})
    write(tmp_path / "y", {"b.json": ARRAY})
    (folder / "broken.json").symlink_to("nowhere.json")
    (folder / "linked").symlink_to(tmp_path / "y")
    os.mkfifo(folder / "pipe.json")
    reader = drain(Reader(open_inputs([folder])))
    assert {file.name: file.reason for file in reader.unread} == {
        "broken.json": "is a broken link",
        "linked": "is a link to a folder, which is not followed",
        "pipe.json": "is not a regular file",
    }


BESIDE = ["chats.txt", "no_ending", "chats.json.1", "chat.html", "notes.md", "book.docx", "code.ipynb", "x.yaml"]
NEGLIGIBLE = [
    "README",
    "README.md",
    "LICENSE.txt",
    "load.py",
    "a/picture.PNG",
    "a.json.sha256",
    "._a.json",
    ".DS_Store",
]


def test_what_is_beside_dumps_is_named_once_for_each_folder_and_zip(tmp_path: Path) -> None:
    files = dict.fromkeys([*BESIDE, *NEGLIGIBLE, "__MACOSX/._a.txt"], b"x")
    folder = write(tmp_path / "x", files | {"a.json": ARRAY})
    (folder / "b.zip").write_bytes(zipped(files | {"b.json": ARRAY, "c.json": ARRAY}))
    reader = drain(Reader(open_inputs([folder])))
    assert reader.records_read == 3 * len(ROWS)
    assert {damage.source_file for damage in reader.warnings} == {"x", "b.zip"} and len(reader.warnings) == 2
    for damage in reader.warnings:
        assert damage.text.partition(" files are")[0].endswith(": 8")
        assert all(name in damage.text for name in BESIDE)
    assert {file.name for file in reader.unread} == {*BESIDE, *(f"b.zip/{name}" for name in BESIDE)}


def test_many_files_beside_dumps_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"a.json": ARRAY} | {f"{number:02}.doc": b"x" for number in range(33)})
    (damage,) = drain(Reader(open_inputs([folder]))).warnings
    assert "33 files are not read" in damage.text and "19.doc, and 13 more; " in damage.text


def test_a_folder_without_a_dump_among_others_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x", {"a.doc": b"x"})
    write(tmp_path / "y", {"a.json": ARRAY})
    reader = drain(Reader(open_inputs([tmp_path / "x", tmp_path / "y"])))
    assert [file.name for file in reader.unread] == ["a.doc", "x"]
    with pytest.raises(InputError, match="is a folder that has no dump"):
        open_inputs([tmp_path / "x"])


@settings(max_examples=60, deadline=None)
@given(kinds=st.lists(st.sampled_from(["good", "bad", "beside", "negligible", "hidden"]), min_size=1, max_size=8))
def test_every_file_is_read_or_named_or_negligible(tmp_path_factory: pytest.TempPathFactory, kinds: list[str]) -> None:
    folder = tmp_path_factory.mktemp("mixed")
    names = {"good": "{}.json", "bad": "{}.jsonl", "beside": "{}.doc", "negligible": "{}.png", "hidden": ".{}.json"}
    data = {"good": ARRAY, "bad": b"Dear all,"}
    files = {names[kind].format(number): (kind, data.get(kind, b"x")) for number, kind in enumerate(kinds)}
    write(folder, {name: content for name, (_, content) in files.items()})
    if "good" not in kinds:
        with pytest.raises(InputError):
            drain(Reader(open_inputs([folder])))
        return
    reader = drain(Reader(open_inputs([folder])))
    assert {file.name for file in reader.unread} == {n for n, (kind, _) in files.items() if kind in ("bad", "beside")}
    assert reader.records_read == kinds.count("good") * len(ROWS)


@pytest.mark.parametrize(
    "name", ["chats.md", "conversations.yaml", "a.txt", "a.tar", "a", "a.html", "readmes.csv", "data.js"]
)
def test_what_could_hold_chats_is_never_negligible(name: str) -> None:
    assert not is_negligible(name)


def test_progress_of_many_files_takes_one_look_at_each(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.json" for number in range(50)]
    for path in paths:
        path.write_bytes(LINES)
    reader = Reader(open_inputs([tmp_path]))
    read = [(reader.bytes_read, reader.bytes_unpacked) for _ in reader]
    assert read == [(len(LINES) * number, len(LINES) * number) for number in range(1, 51)]
    assert reader.bytes_total == 50 * len(LINES)


def test_a_source_of_its_own_can_still_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(ARRAY)
    assert drain(Reader([Source(tmp_path / "a.json", "a.json", len(ARRAY))])).records_read == len(ROWS)


# ── commands ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_clean_names_what_it_did_not_read_in_a_warning_and_the_manifest_and_strict_fails(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"a.json": ARRAY, "b.doc": b"x", "empty.json": b""})
    arguments = ["clean", str(folder), "-o", str(tmp_path / "set"), "--workers", "1"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert "warning: x: 1 file is not read: it does not look like a dump: b.doc" in result.stderr
    unread = manifest.read(tmp_path / "set")[1].unread
    assert [(file.name, file.reason) for file in unread] == [
        ("b.doc", "does not look like a dump"),
        ("empty.json", "is empty (0 bytes)"),
    ]
    (folder / "a.json").write_bytes(LINES * 2)
    strict = CliRunner().invoke(cli, [*arguments, "--strict"])
    assert strict.exit_code == 1
    assert "2 files cannot be read, and strict is set: 'b.doc' does not look like a dump; 'empty.json'" in strict.stderr
    assert manifest.read(tmp_path / "set")[1].counts.read == len(ROWS)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_strict_fails_on_a_member_that_is_found_while_reading_and_keeps_the_earlier_set(
    tmp_path: Path, name: str
) -> None:
    members = {"a.json": ARRAY, "b.json": b"Dear all"}
    (tmp_path / name).write_bytes(zipped(members) if name == "x.zip" else gzip.compress(tarred(members)))
    arguments = ["clean", str(tmp_path / name), "-o", str(tmp_path / "set"), "--workers", "1", "--strict"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert f"1 file cannot be read, and strict is set: '{name}/b.json' has no complete JSON record" in result.stderr
    assert not (tmp_path / "set").exists()


def test_stats_and_convert_name_what_they_did_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"a.json": ARRAY, "empty.json": b""})
    for arguments in (["stats", str(folder)], ["convert", str(folder), str(tmp_path / "o.jsonl"), "--to", "jsonl"]):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0
        assert "empty.json is not read: it is empty" in result.stderr


def test_convert_keeps_the_other_row_groups_of_a_damaged_parquet_file(tmp_path: Path) -> None:
    pl.DataFrame(ROWS * 10).write_parquet(tmp_path / "a.parquet", row_group_size=13)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:20] = b"\xff" * 16
    (tmp_path / "a.parquet").write_bytes(data)
    arguments = ["convert", str(tmp_path / "a.parquet"), str(tmp_path / "o.jsonl"), "--to", "jsonl"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert len([json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]) == 9 * len(ROWS)
    assert "about 13 records from number 0 on cannot be read" in result.stderr


EXPORT = {
    "conversations-000.json": ARRAY,
    "user.json": b'{"id": "user-1", "email": "a@b.example"}',
    "message_feedback.json": b'[{"id": "m", "rating": "thumbs_up"}]',
    "chat.html": b"<html></html>",
    "file-AbC123-data.csv": b"a,b\n1,2\n",
    "textdocs/t1.json": b'[{"title": "t"}]',
}


@pytest.mark.parametrize("place", ["", "export/"])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_parts_of_an_export_without_chats_are_named_and_are_no_damage(tmp_path: Path, form: str, place: str) -> None:
    source = tmp_path / ("in" if form == "folder" else "in.zip")
    members = {f"{place}{name}": data for name, data in EXPORT.items()}
    if form == "zip":
        source.write_bytes(zipped(members))
    for name, data in members.items() if form == "folder" else ():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    reader = Reader(open_inputs([source]))
    assert sum(chunk.count for chunk in reader) == len(ROWS)
    assert not reader.warnings
    assert {file.reason for file in reader.unread} == {"is a part of an export that holds no chats"}
    assert len(reader.unread) == len(EXPORT) - 1


def test_the_same_names_without_conversations_are_dumps(tmp_path: Path) -> None:
    for name in ("user.json", "users.json", "conversations_old.json"):
        (tmp_path / name).write_bytes(ARRAY)
    reader = Reader(open_inputs([tmp_path]))
    assert sum(chunk.count for chunk in reader) == 3 * len(ROWS) and not reader.unread


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (b"[2024-01-02 10:11:12] User: hi\n[2024-01-02 10:11:13] Bot: hello\n", "remove the times"),
        (b"[10:11] alice: hi\n[10:12] bob: hello\n", "remove the times"),
        (b"Frage;Antwort\r\nWie?;So.\r\n", "a name that ends in .csv"),
    ],
)
def test_a_text_of_another_kind_is_named_with_what_to_do(tmp_path: Path, text: bytes, advice: str) -> None:
    path = tmp_path / "chats.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=advice):
        list(Reader(open_inputs([path])))
