"""Files and folders are written whole or not at all: links, failures, leftovers of killed processes, locks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from curate import files
from curate.errors import CurateError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_replaced_and_surrogates_are_escaped(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("old")
    files.write_text(file, "é \udc80")
    assert file.read_text("utf-8") == "é \\udc80"
    assert names(tmp_path) == ["page.html"]


@pytest.mark.parametrize("sync", [False, True])
def test_a_folder_replaces_an_earlier_one(sync: bool, tmp_path: Path) -> None:
    target = tmp_path / "set"
    for text in ("first", "second"):
        with files.replacing(target, sync=sync) as partial:
            (partial / "inner").mkdir(parents=True)
            (partial / "inner" / text).write_text(text)
    assert [path.name for path in target.rglob("*")] == ["inner", "second"]
    assert names(tmp_path) == ["set"]


def test_a_block_that_raises_or_writes_nothing_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ValueError, match="stop"), files.replacing(target) as partial:
        partial.write_text("half")
        raise ValueError("stop")
    with files.replacing(target):
        pass
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_link_is_kept_and_its_target_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("real/file")
    files.write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"


def test_removing_a_link_keeps_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "missing")
    assert names(tmp_path) == ["real"]


KILLED = """
import os, sys
from pathlib import Path
from curate import files
with files.replacing(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "half").write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_leftovers_of_a_killed_writer_are_removed_by_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "set"
    with files.replacing(target) as partial:
        partial.mkdir()
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)]).returncode == -9
    assert names(tmp_path) == [".set.partial", "set"]
    assert names(target) == []
    with files.replacing(target) as partial:
        partial.mkdir()
        (partial / "whole").touch()
    assert names(tmp_path) == ["set"]
    assert names(target) == ["whole"]


def test_a_folder_renamed_away_by_a_killed_swap_is_restored(tmp_path: Path) -> None:
    (tmp_path / ".set.old").mkdir()
    (tmp_path / ".set.old" / "earlier").touch()
    with pytest.raises(ValueError, match="stop"), files.replacing(tmp_path / "set"):
        raise ValueError("stop")
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["earlier"]


HOLDER = """
import sys
from pathlib import Path
from curate import files
from curate.errors import CurateError
with files.lock(Path(sys.argv[1]), CurateError("busy")):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_lock_is_refused_while_another_process_holds_it(killed: bool, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(CurateError, match="in use"), files.lock(path, CurateError("in use")):
            pass
        assert path.exists()
        if killed:
            holder.kill()
        holder.communicate()
    assert path.exists() == killed
    with files.lock(path, CurateError("in use")):
        assert path.exists()
    assert not path.exists()


def test_a_lock_file_is_kept_on_request(tmp_path: Path) -> None:
    with files.lock(tmp_path / ".lock", CurateError("in use"), keep=True):
        pass
    assert names(tmp_path) == [".lock"]
