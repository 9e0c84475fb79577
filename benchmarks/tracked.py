"""A command with all processes that it starts, also those that outlive it or leave its session, as Ray's do."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import ROOT, _pss_kib

MARK = "CURATE_BENCHMARK"  # a variable that children inherit
SECONDS = 0.05  # between two looks: what a process does after the last one is not counted
TICKS = os.sysconf("SC_CLK_TCK")


class Tracked:
    """Runs a command; `cpu` has the CPU seconds, `peak_mib` the highest sum of PSS if `memory` is set."""

    def __init__(self, command: Sequence[str], *, memory: bool = False) -> None:
        self.token = f"{MARK}={uuid.uuid4().hex}".encode()
        name, _, value = self.token.decode().partition("=")
        self.memory, self.peak_mib = memory, 0.0
        self.ticks: dict[tuple[int, str], int] = {}  # by process and its start
        self.own: dict[tuple[int, str], bool] = {}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, name: value},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes so far."""
        return sum(self.ticks.values()) / TICKS

    def kill(self) -> None:
        """Kill the command's own process."""
        self.process.send_signal(signal.SIGKILL)

    def wait(self) -> float:
        """Wait for the end of the command and of what it started; return the wall seconds of the command."""
        self.process.wait()
        seconds = time.monotonic() - self.began
        while list(self._living()):
            time.sleep(SECONDS)
        self.ended.set()
        self.watcher.join()
        return seconds

    def _watch(self) -> None:
        while not self.ended.is_set():
            living = list(self._living())
            for key, ticks in living:
                self.ticks[key] = ticks
            if self.memory:
                self.peak_mib = max(self.peak_mib, sum(_pss_kib(process) for (process, _), _ in living) / 1024)
            time.sleep(SECONDS)

    def _living(self) -> Iterator[tuple[tuple[int, str], int]]:
        """Yield the processes of the command that are no zombies, with the CPU time that each used itself."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
                key = int(entry.name), fields[19]
                if key not in self.own:
                    self.own[key] = self.token in (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended, or is somebody else's
            if self.own[key] and fields[0] != "Z":
                yield key, int(fields[11]) + int(fields[12])
