"""What lm-eval and datasets print: warnings become messages, bars are not drawn beside ours."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from tqdm import tqdm

from curate.model.files import OnMessage

LOG = logging.getLogger("lm_eval")


@contextmanager
def without_log() -> Iterator[None]:
    """Print errors only."""
    level = LOG.level
    LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOG.setLevel(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """Draw no bars of `tqdm`: lm-eval has no setting for some of its own."""
    original: Any = tqdm.__init__
    tqdm.__init__ = functools.partialmethod(original, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = original


@contextmanager
def without_dataset_bars() -> Iterator[None]:
    """Draw no bars of `datasets`; those of downloads from the Hub stay."""
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()


@contextmanager
def reported_warnings(say: OnMessage) -> Iterator[None]:
    """Pass on lm-eval's warnings, each once."""
    seen: set[str] = set()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())[:300]
            if text not in seen:
                seen.add(text)
                say(f"lm-eval: {text}")

    handler, before, passes = Handler(logging.WARNING), LOG.level, LOG.propagate
    LOG.addHandler(handler)
    LOG.setLevel(logging.WARNING)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before)
        LOG.propagate = passes
