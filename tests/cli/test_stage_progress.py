"""Progress of commands that may take long: seen on a terminal only, never in what is piped."""

from __future__ import annotations

import os
import pty
import time
from pathlib import Path
from threading import Thread

import pytest

from curate.cli.progress import stages as stage_progress
from curate.cli.progress.bars import print_message
from curate.cli.progress.stages import describe, show_stages
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.progress import BYTES, Stage, stage, watch

STAGES = {
    "nothing done yet": (3, Stage("reading", 10), "3 s"),
    "bytes": (2, Stage("reading", 8_000_000, BYTES, 2_000_000), "25 % · 1.0 MB/s · 6 s left"),
    "bytes of a pipe": (2, Stage("reading", None, BYTES, 2_000_000), "1.0 MB/s"),
    "rows": (100, Stage("reading", 4_000, done=3_000), "75 % · 30 rows/s · 33 s left"),
    "slow": (100, Stage("merging", 40, "layers", 10), "25 % · 0.1 layers/s · 5:00 min left"),
    "an unknown total": (100, Stage("reading", done=3_000), "3,000 rows · 30 rows/s"),
    "more than promised": (100, Stage("reading", 1_000, done=2_000), "100 % · 20 rows/s · 0 s left"),
}


@pytest.mark.parametrize(("seconds", "current", "text"), STAGES.values(), ids=STAGES.keys())
def test_a_stage_shows_share_rate_and_time_left(seconds: float, current: Stage, text: str) -> None:
    assert describe(current, seconds) == text


def test_stages_are_seen_by_whoever_watches_and_only_while_they_run() -> None:
    with stage("unwatched"), watch() as stages:
        assert stages == []
        with stage("outer"), stage("inner", total=3) as inner:
            inner.done = 2
            assert [(each.name, each.total, each.done) for each in stages] == [("outer", None, 0), ("inner", 3, 2)]
        assert stages == []


def test_reading_a_dump_is_a_stage_with_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "dump.jsonl"
    file.write_text('{"conversations": [{"from": "human", "value": "Hello"}]}\n' * 1_000)
    with watch() as stages:
        reader = Reader(open_inputs([file]), chunk_bytes=10_000)
        seen = [(stages[0].name, stages[0].total, stages[0].done) for _ in reader]
    size = file.stat().st_size
    assert len(seen) > 3
    assert {name for name, *_ in seen} == {"reading"}
    assert {total for _, total, _ in seen} == {size}
    assert 0 < seen[-1][2] <= size


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_one_line_that_is_gone_at_the_end(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_progress, "DELAY", 0.0)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    shown: list[bytes] = []
    ours, theirs = pty.openpty()
    reading = Thread(target=_collect, args=(ours, shown))
    reading.start()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with show_stages("working"), stage("converting", total=200) as current:
            current.done = 50
            time.sleep(0.5)
            print_message("said")
    reading.join()
    os.close(ours)
    text = b"".join(shown).decode()
    assert "converting" in text
    assert "25 % · " in text
    assert " left" in text
    assert "\r\x1b[2Ksaid" in text  # above the bar, not behind it
    assert text.rstrip().endswith("\x1b[2K")  # the line is erased


def _collect(terminal: int, shown: list[bytes]) -> None:
    while True:
        try:
            block = os.read(terminal, 1 << 16)
        except OSError:  # on Linux, when the other end is closed
            return
        if not block:
            return
        shown.append(block)


def test_nothing_is_shown_without_a_terminal_or_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with show_stages("working", quiet=quiet), stage("converting"):
            pass
    assert capsys.readouterr() == ("", "")
