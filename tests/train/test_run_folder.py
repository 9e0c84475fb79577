"""The folder of a run: nothing outside it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curate.errors import UnsafePathError
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
