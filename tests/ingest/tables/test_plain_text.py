"""Text files that are one chat: logs with a name before each turn, and texts with marks."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest

import curate
from curate.errors import InputError
from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs

LOG = "User: Which tea is good?\nAssistant: Assam is good.\n\nUser: And which nut?\nAssistant: Pecans are.\n"


def read(path: Path, **settings: object) -> list[object]:
    reader = Reader(open_inputs([path]), **settings)  # type: ignore[arg-type]
    return [record.value for chunk in reader for record in decode_records(chunk)]


@pytest.mark.parametrize("name", ["chat.txt", "chat.log", "notes.md", "chat", "chat.xyz"])
@pytest.mark.parametrize(
    "text",
    [
        LOG,
        "### Human: a### Assistant: b",
        "[|Human|]a[|AI|]b",
        "Q: a\nA: b\n",
        "\n\nHuman: a\n\nAssistant: b",
        "用户：你好\n助手：好",
    ],
    ids=["log", "guanaco", "baize", "questions", "hh", "Chinese"],
)
def test_a_text_that_begins_as_a_chat_is_one_record(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    assert read(tmp_path / name) == [{"text": text}]


@pytest.mark.parametrize(
    "text",
    [
        "Dear all,\nthis is a letter.\n",
        "Question: who?\n",
        "model: llama\n",
        "me: a letter\n",
        "User guide\n",
        "Ann: hi\nBob: hi\n",
    ],
    ids=repr,
)
def test_other_texts_are_no_chats(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, "utf-8")
    with pytest.raises(InputError, match="no complete JSON record"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize(("name", "text"), [("a.json", LOG), ("a.csv", "Q:,A:\na,b\n")])
def test_a_name_of_another_kind_decides(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    if name == "a.csv":
        assert read(tmp_path / name) == [{"Q:": "a", "A:": "b"}]
    else:
        with pytest.raises(InputError, match="no complete JSON record"):
            read(tmp_path / name)


def test_logs_are_read_in_folders_and_archives(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "a.txt").write_text(LOG, "utf-8")
    (folder / "b.log.gz").write_bytes(gzip.compress(LOG.encode()))
    (folder / "c.yaml").write_text("user: a\nmodel: b\n", "utf-8")
    with zipfile.ZipFile(folder / "d.zip", "w") as archive:
        archive.writestr("d.txt", LOG)
    with tarfile.open(folder / "e.tar", "w") as tar:
        member = tarfile.TarInfo("e.txt")
        member.size = len(LOG.encode())
        tar.addfile(member, io.BytesIO(LOG.encode()))
    reader = Reader(open_inputs([folder]))
    records = [record.value for chunk in reader for record in decode_records(chunk)]
    assert records == [{"text": LOG}] * 4
    assert [file.name for file in reader.unread] == ["c.yaml"]


def test_a_text_in_another_encoding_is_read_if_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("User: Café?\nAssistant: Oui, un café.\n".encode("cp1252"))
    with pytest.raises(InputError, match="not UTF-8"):
        read(file)
    assert read(file, encoding="cp1252") == [{"text": "User: Café?\nAssistant: Oui, un café.\n"}]


def test_a_text_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LOG * 100, "utf-8")
    with pytest.raises(InputError, match="1,000 bytes or more"):
        read(tmp_path / "a.txt", max_record_bytes=1000)


def test_a_log_is_cleaned_into_one_conversation(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LOG.replace("\n", "\r\n"), "utf-8")
    curate.clean(tmp_path / "a.txt", tmp_path / "set", workers=1)
    (messages,) = pl.read_parquet(tmp_path / "set" / "conversations.parquet")["messages"].to_list()
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"] == "Which tea is good?"


def test_a_log_whose_names_do_not_alternate_is_rejected_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "a.txt").write_text("User: a\nUser: b\nAssistant: c\n", "utf-8")
    chat = [{"role": "user", "content": "Which tea is good?"}, {"role": "assistant", "content": "Assam is good."}]
    (folder / "b.jsonl").write_text(json.dumps({"messages": chat}), "utf-8")
    curate.clean(folder, tmp_path / "set", workers=1)
    rejected = pl.read_parquet(tmp_path / "set" / "rejected.parquet")
    assert rejected.select("source_file", "rule").rows() == [("a.txt", "unclear_roles")]
