"""A function whose patterns stay compiled has its own thread, raises its own errors, and works in a forked process."""

from __future__ import annotations

import os
import threading

import polars as pl
import pytest

from curate.pattern_cache import keep_patterns


@keep_patterns
def find(texts: pl.Series, pattern: str) -> tuple[int, list[bool]]:
    return threading.get_ident(), texts.str.contains(pattern).to_list()


def test_each_function_has_one_thread_of_its_own() -> None:
    texts = pl.Series(["a1", "b"])
    first, found = find(texts, "[0-9]")
    assert found == [True, False]
    assert find(texts, "b") == (first, [False, True])
    assert keep_patterns(lambda: threading.get_ident())() not in (first, threading.get_ident())


def test_an_error_is_that_of_the_function() -> None:
    with pytest.raises(pl.exceptions.ComputeError, match="unclosed"):
        find(pl.Series(["a"]), "(")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_a_thread_of_its_own() -> None:
    assert count() == 1  # its thread is not in the fork
    child = os.fork()
    if child == 0:
        os._exit(0 if count() == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@keep_patterns
def count() -> int:
    return 1
