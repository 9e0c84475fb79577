"""One thread for each model: requests wait, join the batch where there is room, and leave it when they end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from torch import nn

from curate.inference.answers import AnswerReader, Part
from curate.inference.batch import Batch, Generation, Row, ScoredToken
from curate.inference.grammar import GrammarError

Deliver = Callable[["Part | Exception"], None]


class QueueFull(Exception):
    """More answers wait than are allowed."""


class Job:
    """An answer to generate; `deliver` is called in the worker's thread with its parts, or with one error."""

    def __init__(self, generation: Generation, reader: AnswerReader, deliver: Deliver) -> None:
        self.generation = generation
        self.reader = reader
        self.deliver = deliver
        self.cancelled = False

    def take(self, token: ScoredToken | GrammarError) -> bool:
        """Read a token and deliver what it adds; return whether the answer goes on."""
        if isinstance(token, GrammarError):
            raise token
        part = self.reader.add(token)
        if part.text or part.tokens or part.ending:
            self.deliver(part)
        return part.ending is None


class Worker:
    """Generates the answers of one model, at most `rows` together; `waiting` more may wait."""

    def __init__(self, model: nn.Module, *, rows: int, waiting: int) -> None:
        self._batch = Batch(model)
        self.rows = rows if self._batch.shares else 1
        self.max_waiting = waiting
        self._waiting: deque[Job] = deque()
        self._running: dict[Row, Job] = {}  # changed by the thread alone
        self._condition = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="curate-model", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue answers, all or none; raises QueueFull."""
        with self._condition:
            if self._stopped or len(self._waiting) + len(jobs) > self.max_waiting + self.rows:
                raise QueueFull
            self._waiting.extend(jobs)
            self._condition.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop generating answers that nobody waits for; those that ended already are unaffected."""
        with self._condition:
            for job in jobs:
                job.cancelled = True
            self._condition.notify()

    def stop(self) -> None:
        """End the thread after its current step."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        self._thread.join()

    @property
    def load(self) -> tuple[int, int]:
        """How many answers are being generated, and how many wait."""
        return len(self._running), len(self._waiting)

    # ---- in the thread

    def _run(self) -> None:
        while self._wait():
            self._drop_cancelled()
            self._admit()
            self._step()

    def _wait(self) -> bool:
        """Wait for something to do; return false when stopped."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or self._waiting or self._running)
            return not self._stopped

    def _drop_cancelled(self) -> None:
        with self._condition:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        for row in [row for row, job in self._running.items() if job.cancelled]:
            self._end(row)

    def _end(self, row: Row) -> None:
        self._batch.leave(row)
        del self._running[row]

    def _admit(self) -> None:
        """Compute the prompt of one waiting request, so that the answers under way are held up by one only."""
        with self._condition:
            job = self._waiting.popleft() if self._waiting and len(self._running) < self.rows else None
        if job is None:
            return
        try:
            row, token = self._batch.join(job.generation)
        except Exception as error:  # out of memory, or a fault of the model: of this request alone
            job.deliver(error)
            return
        self._running[row] = job
        self._read(row, token)

    def _step(self) -> None:
        try:
            tokens = self._batch.step()
        except Exception as error:  # the cache is no longer that of the rows
            for job in self._running.values():
                job.deliver(error)
            self._running.clear()
            self._batch.clear()
            return
        for row, token in tokens:
            self._read(row, token)

    def _read(self, row: Row, token: ScoredToken | GrammarError) -> None:
        """Read a row's new token; the row leaves after the last one. An error in reading ends this answer alone."""
        job = self._running[row]
        try:
            goes_on = job.take(token)
        except Exception as error:
            job.deliver(error)
            goes_on = False
        if not goes_on:
            self._end(row)
