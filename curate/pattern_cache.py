"""Keep the regular expressions of Polars compiled from one batch of texts to the next.

Polars keeps the 32 patterns that a thread used last, and all rules together have more: each would be compiled again for
every batch, which takes longer than the search (20 ms for the grammar of flat answers).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def keep_patterns(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that runs in a thread of its own, whose patterns stay compiled; there are at most 32."""
    executor = functools.cache(lambda: ThreadPoolExecutor(1, thread_name_prefix=function.__name__))
    os.register_at_fork(after_in_child=executor.cache_clear)  # a fork has no threads but its own

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return executor().submit(function, *args, **kwargs).result()

    return run
