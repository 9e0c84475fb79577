"""Runs a function on several local gloo ranks, each in its own process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes


def _run(rank: int, work: Callable[..., None], count: int, meeting: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    try:
        work(rank, *arguments)
    finally:
        distributed.destroy_process_group()


def spawn(work: Callable[..., None], count: int, *arguments: Any) -> None:
    """Call `work(rank, *arguments)` on each rank; an error on one of them is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        start_processes(_run, (work, count, meeting, arguments), nprocs=count, start_method="spawn")
