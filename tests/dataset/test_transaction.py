"""Writing a set never opens, moves or removes anything outside its own folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import curate
from curate import files
from curate.errors import SetError, UnsafePathError
from tests.support import ROOT

EXAMPLE = ROOT / "examples" / "sharegpt_dump.json"


def contents(folder: Path) -> dict[str, bytes | str]:
    """Return every file below a folder with its bytes, every link with its target."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", [".set.partial", "set.previous", ".set.lock"])
def test_a_link_at_a_name_next_to_the_set_is_refused_and_its_target_stays(
    name: str, first: bool, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    curate.clean(EXAMPLE, other, limit=3)
    (other / "notes.md").write_text("mine")
    (other / files.SET_ASIDE).touch()
    work = tmp_path / "work"
    work.mkdir()
    if not first:
        curate.clean(EXAMPLE, work / "set", limit=2)
    (work / name).symlink_to("../other/notes.md" if name.endswith("lock") else "../other")
    before = contents(tmp_path)
    with pytest.raises(UnsafePathError, match=f"{name}' is a link"):
        curate.clean(EXAMPLE, work / "set", limit=1)
    assert contents(tmp_path) == before


def test_links_inside_an_earlier_set_are_replaced_and_their_targets_stay(tmp_path: Path) -> None:
    curate.clean(EXAMPLE, tmp_path / "set", limit=1)
    (tmp_path / "elsewhere").mkdir()
    for name in ("conversations.parquet", "report.html"):
        (tmp_path / "set" / name).rename(tmp_path / "elsewhere" / name)
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "set" / "mine").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    curate.clean(EXAMPLE, tmp_path / "set", limit=3)
    assert contents(tmp_path / "elsewhere") == before
    assert not (tmp_path / "set" / "report.html").is_symlink()
    assert (tmp_path / "set" / "mine").is_symlink()


def test_a_folder_of_the_users_that_is_named_like_a_table_stays(tmp_path: Path) -> None:
    curate.clean(EXAMPLE, tmp_path / "set", limit=2)
    (tmp_path / "set" / "originals.parquet").unlink()
    (tmp_path / "set" / "originals.parquet").mkdir()
    (tmp_path / "set" / "originals.parquet" / "mine").write_text("notes")
    curate.clean(EXAMPLE, tmp_path / "set", limit=1, force=True)
    assert [path.read_text() for path in tmp_path.rglob("mine")] == ["notes"]


@pytest.mark.parametrize("kind", ["file", "pipe", "folder"])
def test_what_is_not_curates_at_the_temporary_name_is_named_and_stays(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ".set.partial"
    if kind == "file":
        path.write_text("mine")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
        (path / "mine").touch()
    for _ in range(2):
        with pytest.raises(SetError, match=r"set\.partial' is not curate's"):
            curate.clean(EXAMPLE, tmp_path / "set", limit=1)
    assert path.exists()


def test_a_pipe_instead_of_a_manifest_is_not_waited_for(tmp_path: Path) -> None:
    curate.clean(EXAMPLE, tmp_path / "set", limit=1)
    (tmp_path / "set" / "manifest.json").unlink()
    os.mkfifo(tmp_path / "set" / "manifest.json")
    with pytest.raises(SetError, match="not a curated set"):
        curate.stats(tmp_path / "set")


def test_a_folder_or_a_link_is_not_replaced_by_a_page_or_a_file(tmp_path: Path) -> None:
    curate.clean(EXAMPLE, tmp_path / "set.jsonl", limit=2)
    (tmp_path / "page.html").mkdir()
    with pytest.raises(UnsafePathError, match="not a regular file"):
        curate.stats(tmp_path / "set", html=tmp_path / "page.html")
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "set.jsonl").unlink()
    (tmp_path / "set.jsonl").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePathError, match="is a link"):
        curate.clean(EXAMPLE, tmp_path / "set.jsonl", limit=2)
    assert (tmp_path / "outside").read_text() == "mine"
