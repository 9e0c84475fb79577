"""Workers return results in order, pass on errors, and leave no process behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curate.engine import base, local, pool
from curate.errors import CurateError, InputError, MissingExtra, RecordError
from tests.support import ROOT


class Square:
    """A step that the worker creates by calling the class."""

    def __call__(self, task: int, /) -> tuple[int, int]:
        time.sleep(0.02 * (task % 3))
        return task * task, os.getpid()


class Refuse:
    def __call__(self, task: int, /) -> int:
        if task == 2:
            raise InputError("the third task is refused")
        return task


class Fail:
    def __call__(self, task: str, /) -> int:
        raise ValueError(f"no {task}")


class Full:
    def __call__(self, task: int, /) -> int:
        with open("/dev/full", "w") as file:  # noqa: PTH123
            file.write(str(task))
        return task


class Die:
    def __call__(self, task: int, /) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return task


class Toil:
    """Works on after its first task, long after a test."""

    def __call__(self, task: int, /) -> int:
        deadline = time.monotonic() + 60 * (task > 1)
        while time.monotonic() < deadline:
            sum(range(1000))
        return os.getpid()


class NeverMade:
    def __init__(self) -> None:
        raise MissingExtra("a step", "step")

    def __call__(self, task: int, /) -> int:
        return task


def test_results_come_in_the_order_of_the_tasks() -> None:
    results = list(pool.run(Square, range(20), 3))
    assert [square for square, _ in results] == [n * n for n in range(20)]
    assert 1 < len({process for _, process in results}) <= 3
    assert os.getpid() not in {process for _, process in results}


def test_one_worker_is_this_process() -> None:
    assert list(pool.run(Square, range(3), 1)) == [(0, os.getpid()), (1, os.getpid()), (4, os.getpid())]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pool_keeps_its_workers_and_can_make_other_calls(workers: int) -> None:
    with local.WorkerPool(Square, workers) as pool:
        first = {process for _, process in pool.map(range(6))}
        calls = [base.Call(os.getpid), base.Call(divmod, (7, 3))]
        process, divided = pool.map(calls)
        assert process in first and divided == (2, 1)
        assert [square for square, _ in pool.map([3, 4])] == [9, 16]


def test_without_tasks_no_worker_starts() -> None:
    assert list(pool.run(Square, [], 4)) == []


def test_a_curate_error_is_raised_unchanged() -> None:
    with pytest.raises(InputError, match="the third task is refused"):
        list(pool.run(Refuse, range(5), 2))


def test_a_bug_shows_where_it_was_raised() -> None:
    with pytest.raises(RuntimeError, match="a worker failed") as caught:
        list(pool.run(Fail, ["at all"] * 2, 2))
    assert str(caught.value) == "a worker failed: ValueError: no at all"  # the one line that the command prints
    assert "in __call__" in caught.value.__notes__[0]


def test_a_full_disk_in_a_worker_is_raised_in_the_parent() -> None:
    with pytest.raises(OSError, match="No space left"):
        list(pool.run(Full, range(5), 2))


def test_a_step_that_cannot_be_created_gives_the_reason() -> None:
    with pytest.raises(MissingExtra, match=r"the extra \[step\]: pip install -e .*\[step\]"):
        list(pool.run(NeverMade, range(3), 2))


def test_a_killed_worker_gets_one_clear_line() -> None:
    with pytest.raises(CurateError, match=r"killed by signal 9.*--workers 1"):
        list(pool.run(Die, range(3), 2))


def test_busy_workers_end_within_two_seconds_of_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "from curate.engine import pool\nfrom test_engine import Toil\n"
        "for process in pool.run(Toil, range(10**9), 2):\n    print(process, flush=True)\n"
    )
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    run = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert run.stdout is not None
    workers = {int(run.stdout.readline()) for _ in range(2)}
    time.sleep(0.1)
    assert all(_is_alive(worker) for worker in workers)
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 2
    while any(_is_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if _is_alive(worker)]


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("error", [RecordError("rule", "reason", "evidence"), MissingExtra("this", "that")])
def test_errors_can_be_pickled(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
