"""The folder of a run: nothing outside it is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from curate.errors import RunError, UnsafePathError
from curate.train.run import folder


@pytest.mark.parametrize("name", sorted(folder.OWN_FILES | folder.OWN_FOLDERS))
def test_a_link_at_a_name_of_the_run_is_refused(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(outside / "new" if "." in name else outside)
    with pytest.raises(UnsafePathError, match=f"{name}' is a link"), folder.lock(tmp_path / "run"):
        pass
    assert list(outside.iterdir()) == []
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


@pytest.mark.parametrize("name", sorted(folder.OWN_FILES))
def test_a_folder_or_a_pipe_at_a_file_of_the_run_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").touch()
    with pytest.raises(UnsafePathError, match=f"{name}' is not a regular file"), folder.lock(tmp_path):
        pass
    assert (tmp_path / name / "mine").exists()
    (tmp_path / name / "mine").unlink()
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UnsafePathError, match=f"{name}' is not a regular file"), folder.lock(tmp_path):
        pass


def test_links_at_a_checkpoint_a_temporary_name_or_a_hard_link_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in (
        "checkpoints/step-000001",
        "checkpoints/.step-000002.partial",
        ".model.partial",
        ".report.html.partial",
    ):
        run = tmp_path / "run" / name.replace("/", "-")
        (run / name).parent.mkdir(parents=True)
        (run / name).symlink_to(outside)
        with pytest.raises(UnsafePathError, match="is a link"), folder.lock(run):
            pass
    run = tmp_path / "hard"
    run.mkdir()
    (outside / "notes").write_text("mine")
    (run / "metrics.jsonl").hardlink_to(outside / "notes")
    with pytest.raises(UnsafePathError, match="hard link"), folder.lock(run):
        pass


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for run, problem in (
        (tmp_path / "file" / "run", "is not a folder"),
        (tmp_path / ("x" * 300) / "run", "File name too long"),
    ):
        with pytest.raises(RunError, match=f"{problem}.*give another --out"):
            folder.require_room(run)
    folder.require_room(tmp_path / "a" / "b" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_told_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(RunError, match=r"is full: 4\.0 KiB are free, and a run needs at least 1\.0 MiB"):
        folder.require_room(tmp_path / "run")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_told(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RunError, match="is read-only to you"):
        folder.require_room(tmp_path / "locked" / "run")


def test_a_folder_on_no_disk_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = shutil.disk_usage(tmp_path)._replace(total=0, free=0)  # as /proc has
    monkeypatch.setattr(shutil, "disk_usage", lambda path: none)
    with pytest.raises(RunError, match="is on no disk"):
        folder.require_room(tmp_path / "run")
