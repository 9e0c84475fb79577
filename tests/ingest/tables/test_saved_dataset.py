"""What the datasets library has saved is read with its splits; Arrow files are read wherever dumps are."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.errors import InputError
from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from tests.support.raw_dumps import ROWS, good, read, rules, values


def arrow(rows: list[dict[str, Any]] = ROWS) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(rows).write_ipc_stream(buffer)
    return buffer.getvalue()


def save(folder: Path, files: dict[str, list[dict[str, Any]]], split: str | None = None) -> Path:
    """Write a folder as `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    for name, rows in files.items():
        (folder / name).write_bytes(arrow(rows))
    state = {"_data_files": [{"filename": name} for name in files], "_split": split, "_fingerprint": "x"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"id": {"dtype": "string"}}}))
    return folder


def splits(folder: Path) -> list[str | None]:
    reader = Reader(open_inputs([folder]))
    return [record.value.get("split") for chunk in reader for record in decode_records(chunk)]


def test_a_saved_data_set_is_read_without_its_descriptions(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", {"data-00000-of-00002.arrow": ROWS[:5], "data-00001-of-00002.arrow": ROWS[5:]})
    records, reader = read(folder)
    assert values(records) == ROWS and not reader.warnings and not reader.unread


@pytest.mark.parametrize("form", ["zip", "gztar"])
def test_a_saved_data_set_is_read_in_an_archive(tmp_path: Path, form: str) -> None:
    save(tmp_path / "in" / "set" / "train", {"data-00000-of-00001.arrow": ROWS})
    (tmp_path / "in" / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "in" / "state.json").write_text(json.dumps(ROWS[:1]))  # a dump, whatever its name
    records, reader = read(Path(shutil.make_archive(str(tmp_path / "set"), form, tmp_path / "in")))
    assert len(records) == len(ROWS) + 1 and not rules(records) and not reader.unread


def test_the_split_of_a_row_is_kept(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / "set" / split, {"data-00000-of-00001.arrow": ROWS[:2]})
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert splits(tmp_path / "set") == ["test", "test", "train", "train"]
    assert splits(tmp_path / "set" / "train") == ["train", "train"]
    assert splits(tmp_path / "set" / "train" / "data-00000-of-00001.arrow") == ["train", "train"]
    assert splits(save(tmp_path / "one", {"data.arrow": ROWS[:1]}, split="validation")) == ["validation"]
    own = [{**row, "split": "mine"} for row in ROWS[:1]]
    assert splits(save(tmp_path / "two", {"data.arrow": own}, split="validation")) == ["mine"]


def test_a_cache_beside_the_data_is_named_and_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", {"data-00000-of-00001.arrow": ROWS})
    (folder / "cache-0123456789abcdef.arrow").write_bytes(arrow())
    records, reader = read(folder)
    assert len(records) == len(ROWS)
    assert [file.name for file in reader.unread] == ["cache-0123456789abcdef.arrow"]


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", {"data-00000-of-00002.arrow": ROWS, "data-00001-of-00002.arrow": ROWS})
    (folder / "data-00001-of-00002.arrow").unlink()
    records, reader = read(folder)
    assert len(records) == len(ROWS)
    (damage,) = reader.warnings
    assert damage.text == "data-00001-of-00002.arrow is not read: it is missing, though state.json names it"


@pytest.mark.parametrize("state", ["", "[]", "{", '{"_data_files": 3}', '{"_data_files": [{"filename": 1}, null]}'])
def test_a_damaged_state_does_not_hide_the_data(tmp_path: Path, state: str) -> None:
    folder = save(tmp_path / "set", {"data-00000-of-00001.arrow": ROWS})
    (folder / "state.json").write_text(state)
    assert len(read(folder)[0]) == len(ROWS)


def test_a_state_that_is_no_data_sets_is_a_dump(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(ROWS))
    assert len(read(tmp_path)[0]) == len(ROWS)


def test_what_the_library_saves_is_read(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "eval": data.select(range(2))}).save_to_disk(str(tmp_path / "set"))
    assert splits(tmp_path / "set") == ["eval"] * 2 + ["train"] * len(ROWS)


@pytest.mark.parametrize("name", ["a.arrow", "a.feather", "a.ipc", "a.json", "noending"])
def test_an_arrow_file_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(arrow())
    assert values(read(tmp_path)[0]) == ROWS


def test_arrow_is_read_compressed_and_in_archives(tmp_path: Path) -> None:
    data = arrow()
    (tmp_path / "a.arrow.gz").write_bytes(gzip.compress(data))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("in/b.arrow", data)
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("c.arrow")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    records, reader = read(tmp_path)
    assert values(records) == ROWS * 3 and not reader.warnings


def test_an_arrow_stream_with_a_bad_checksum_is_in_doubt(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(arrow()))
    data[-8] ^= 1
    (tmp_path / "a.arrow.gz").write_bytes(data)
    _, reader = read(tmp_path)
    assert [(doubt.first, doubt.stop) for doubt in reader.damaged_records] == [(0, len(ROWS))]


def test_a_cut_arrow_file_keeps_its_rows_and_names_the_cut(tmp_path: Path) -> None:
    both = arrow(ROWS * 200)
    (tmp_path / "a.arrow").write_bytes(arrow()[:-8] + b"\xff" * 4 + b"\x01\0\0\0")
    records, reader = read(tmp_path / "a.arrow")
    assert good(records) == ROWS and rules(records) == ["unreadable"] and len(reader.warnings) == 1
    (tmp_path / "b.arrow").write_bytes(both[: len(both) // 2])
    with pytest.raises(InputError, match=r"b\.arrow.*cut off"):
        read(tmp_path / "b.arrow")


def test_clean_and_stats_read_a_saved_data_set(tmp_path: Path) -> None:
    turns = [("human", "Name a lake in Peru, please."), ("gpt", "Titicaca lies in part there, {}.")]
    rows = [
        {"id": str(n), "conversations": [{"from": role, "value": text.format(n)} for role, text in turns]}
        for n in range(3)
    ]
    folder = save(tmp_path / "data", {"data.arrow": rows}, split="train")
    assert curate.stats(folder).header.kept == 3
    assert curate.clean(folder, tmp_path / "set").manifest.counts.kept == 3
    assert [file.name for file in curate.clean(folder, tmp_path / "set").manifest.inputs] == ["data.arrow"]
