"""Files and folders are written whole or not at all: links, failures, leftovers of killed processes, locks."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from curate import files
from curate.errors import CurateError, UnsafePathError
from tests.support import ROOT


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
        with files.replacing(target, folder=True, sync=sync) as partial:
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


def test_a_link_named_by_the_user_is_kept_and_its_target_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("real/file")
    files.write_text(link, "new", follow_link=True)
    assert link.is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"


def test_removing_a_link_keeps_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    files.remove(tmp_path / "link", tmp_path)
    files.remove(tmp_path / "missing", tmp_path)
    assert names(tmp_path) == ["real"]


@pytest.mark.parametrize("path", ["..", "../other/file", "link/file", ".", "../inside"])
def test_nothing_outside_a_folder_is_removed(path: str, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (tmp_path / "inside" / "link").symlink_to("../other")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafePathError, match=r"nothing was removed|is a link"):
        files.remove(tmp_path / "inside" / path, tmp_path / "inside")
    with pytest.raises(UnsafePathError, match="nothing was removed"):
        files.remove(tmp_path / "other" / "file", tmp_path / "inside")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["set", ".set.partial", ".set.old"])
def test_a_link_at_a_name_of_curates_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / files.SET_ASIDE).touch()
    (tmp_path / name).symlink_to("other")
    with pytest.raises(UnsafePathError, match=name), files.replacing(tmp_path / "set", folder=True) as partial:
        partial.mkdir()
    assert names(tmp_path) == sorted([name, "other"])
    assert names(tmp_path / "other") == [files.SET_ASIDE]


def test_a_lock_that_is_a_link_is_refused_and_one_with_content_is_kept(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    with pytest.raises(UnsafePathError, match="link"), files.lock(tmp_path / "link", CurateError("busy")):
        pass
    assert names(tmp_path) == ["link"]
    (tmp_path / "own").write_text("a user's notes")
    with files.lock(tmp_path / "own", CurateError("busy")):
        pass
    assert (tmp_path / "own").read_text() == "a user's notes"


def test_a_pipe_or_a_link_is_not_opened_as_a_file_of_curates(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    for name in ("pipe", "link"):
        with pytest.raises(UnsafePathError, match=name):
            files.open_own(tmp_path / name)
    with files.open_own(tmp_path / "file") as file:
        assert file.read() == b"text"


def test_only_one_module_removes_files() -> None:
    removals = {"unlink", "rmdir", "rmtree", "remove", "removedirs"}
    elsewhere = []
    for folder in (ROOT / "curate", ROOT / "schemas", ROOT / "filters"):
        for module in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(module.read_text("utf-8"))):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Attribute) and called.attr in removals:
                    owner = called.value.id if isinstance(called.value, ast.Name) else ""
                    if called.attr != "remove" or owner in ("os", "shutil"):
                        elsewhere.append(module.relative_to(ROOT).as_posix())
    assert set(elsewhere) == {"curate/files.py"}


KILLED = """
import os, sys
from pathlib import Path
from curate import files
with files.replacing(Path(sys.argv[1]), folder=True) as partial:
    partial.mkdir()
    (partial / "half").write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_leftovers_of_a_killed_writer_are_removed_by_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "set"
    with files.replacing(target, folder=True) as partial:
        partial.mkdir()
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)]).returncode == -9
    assert names(tmp_path) == [".set.partial", "set"]
    assert names(target) == []
    with files.replacing(target, folder=True) as partial:
        partial.mkdir()
        (partial / "whole").touch()
    assert names(tmp_path) == ["set"]
    assert names(target) == ["whole"]


def test_a_folder_renamed_away_by_a_killed_swap_is_restored(tmp_path: Path) -> None:
    (tmp_path / ".set.old").mkdir()
    (tmp_path / ".set.old" / "earlier").touch()
    (tmp_path / ".set.old" / files.SET_ASIDE).touch()
    with pytest.raises(ValueError, match="stop"), files.replacing(tmp_path / "set", folder=True):
        raise ValueError("stop")
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["earlier"]


def test_a_folder_of_the_users_at_the_set_aside_name_stays(tmp_path: Path) -> None:
    (tmp_path / ".set.old").mkdir()
    (tmp_path / ".set.old" / "notes").touch()
    (tmp_path / "set").mkdir()
    with pytest.raises(UnsafePathError, match="in the way"), files.replacing(tmp_path / "set", folder=True) as partial:
        partial.mkdir()
    assert names(tmp_path) == [".set.old", "set"]
    assert names(tmp_path / ".set.old") == ["notes"]


HOLDER = """
import sys
from pathlib import Path
from curate import files
from curate.errors import CurateError, UnsafePathError
from tests.support import ROOT
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


def test_a_folder_is_never_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path: Path) -> None:
    for name in ("report.html", ".other.html.partial"):
        (tmp_path / name / "mine").mkdir(parents=True)
    for name in ("report.html", "other.html"):
        with pytest.raises(UnsafePathError, match="is not a regular file"):
            files.write_text(tmp_path / name, "new")
    (tmp_path / "set").write_text("mine")
    with pytest.raises(UnsafePathError, match="is not a folder"), files.replacing(tmp_path / "set", folder=True):
        pass
    assert (tmp_path / "report.html" / "mine").exists()
    assert (tmp_path / ".other.html.partial" / "mine").exists()
    assert (tmp_path / "set").read_text() == "mine"


def test_what_is_no_file_or_too_large_is_never_read_whole(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(files.MAX_WHOLE + 1)
    (tmp_path / "small").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "small")
    for name, reason in (("pipe", "not a regular file"), ("device", "not a regular file"), ("large", "more than")):
        with pytest.raises(OSError, match=reason):
            files.read_whole(tmp_path / name)
    assert files.read_whole(tmp_path / "link") == b"{}"
