"""Records that are costly to clean: time and memory grow with their size, and not faster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs

PROGRAM = """
import sys
from curate.cli import cli
cli(sys.argv[1:], standalone_mode=False)
print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def clean(path: Path) -> float:
    """Clean a dump in a process of its own; return its peak memory in MiB.

    The kernel counts the peak of the process that started it into `ru_maxrss`, so that is not used.
    """
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "clean",
        str(path),
        "-o",
        str(path.with_name("set")),
        "--workers",
        "1",
        "-q",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-2]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_edits_take_no_memory_for_each_piece(tmp_path: Path) -> None:
    turns = [{"from": name, "value": "a question or an answer"} for name in ("user", "chatgpt")] * 24_000
    (tmp_path / "dump.json").write_text(json.dumps([{"id": "x", "conversations": turns}]))  # each role is an edit
    assert clean(tmp_path / "dump.json") < 700  # 1,000 when the edits were joined to each piece


def test_a_key_that_occurs_twice_is_found_among_many(tmp_path: Path) -> None:
    keys = ", ".join(f'"key{number}": 1' for number in range(60_000))  # compared one by one, they take a minute
    (tmp_path / "dump.jsonl").write_text(f'{{"a": 1}}\n{{{keys}, "key59999": 2}}\n')
    records = [record for chunk in Reader(open_inputs([tmp_path / "dump.jsonl"])) for record in decode_records(chunk)]
    problem = records[1].problem
    assert problem is not None
    assert (problem.rule, problem.reason) == ("duplicate_keys", "the key 'key59999' occurs 2 times in one object")
    assert problem.evidence == "[1, 2]"
