"""A run: decides what to ask next, takes replies in the order of the requests, and accounts for all of them.

What a request is made of depends on the replies before it only, never on when they arrived, so a run that was killed
and goes on from its journal ends as one that was not.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from curate.client.exchange import Reply, Request
from curate.errors import ServerError
from curate.generation.similarity import SimilarTexts
from curate.generation.steps import Ask, Drop, Method, Prompt
from curate.generation.talks import Talk, Talks, Turn, to_record

PATIENCE = 50  # requests for prompts in a row that yield nothing, after which a run ends
FAILURES = 20  # requests in a row that failed, after which a run ends


class Sink(Protocol):
    """Where records and drops are written."""

    def add_record(self, record: dict[str, Any]) -> None: ...

    def add_drop(self, drop: Drop) -> None: ...


@dataclass
class State:
    """What a run has done so far."""

    wanted: int | None
    accepted: int = 0  # conversations that are complete
    dropped: Counter[str] = field(default_factory=Counter)  # by rule
    replies: int = 0
    from_journal: int = 0
    under_way: int = 0
    calls: int = 0  # with those of earlier runs
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    prompt: str = ""  # the latest complete exchange
    answer: str = ""
    models: Counter[str] = field(default_factory=Counter)  # that replied, by the server's own words

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """The replies that arrived in a second."""
        return (self.replies - self.from_journal) / max(self.seconds, 1e-9)

    @property
    def left(self) -> float | None:
        """The seconds left at the rate of conversations so far, None if unknown."""
        fresh = self.accepted * (1 - self.from_journal / self.replies) if self.replies else 0.0
        return None if self.wanted is None or fresh < 1 else (self.wanted - self.accepted) * self.seconds / fresh


class Generation:
    """A run of one method. `facts` go into each record."""

    def __init__(
        self,
        method: Method,
        talks: Talks,
        similar: SimilarTexts | None,
        sink: Sink,
        *,
        wanted: int | None,
        facts: dict[str, Any],
        watch: Callable[[State], None] = lambda state: None,
    ) -> None:
        self.method = method
        self.talks = talks
        self.similar = similar
        self.sink = sink
        self.facts = facts
        self.watch = watch
        self.state = State(wanted)
        self._waiting: deque[Ask] = deque()  # to continue talks
        self._spare: deque[Prompt] = deque()  # more than are wanted, in case that talks fail
        self._asks: dict[str, Ask] = {}  # under way, by key
        self._named = 0  # talks begun
        self._open = 0
        self._sources = 0  # requests for prompts under way
        self._sources_read = 0
        self._fruitless = 0
        self._failed = 0

    @property
    def gave_up(self) -> bool:
        """Whether it ended as nothing was accepted any more."""
        return self._fruitless >= PATIENCE

    def next_request(self, under_way: int) -> Request | None:
        """Return the next request, None if there is none at this time."""
        while not self._waiting and self._wants_prompts():
            if self._spare:
                self._judge(self._spare.popleft())
                continue
            step = self.method.next()
            if step is None:
                return None
            if isinstance(step, Prompt):
                self._begin(step)
            else:
                self._sources += 1
                return self._ask(step)
        return self._ask(self._waiting.popleft()) if self._waiting else None

    def _ask(self, ask: Ask) -> Request:
        self._asks[ask.request.key] = ask
        return ask.request

    def _wants_prompts(self) -> bool:
        """Whether the requests under way will, at the yield so far, not bring as many prompts as are wanted."""
        if self.gave_up:
            return False
        if self.state.wanted is None:
            return True
        missing = self.state.wanted - self.state.accepted - self._open
        if missing <= 0 or not self._sources or self._spare:
            return missing > 0
        most = max(PATIENCE - self._fruitless, self._named)  # until there is a yield, few are under way in vain
        return self._sources < min(most, math.ceil(missing / self._yield()))

    def _yield(self) -> float:
        """Return the prompts accepted for each request so far, at first as the method expects."""
        known = min(self._sources_read, 20)  # after 20 requests, only what was seen counts
        seen = self._named / self._sources_read if self._sources_read else 0.0
        return max(0.05, (seen * known + self.method.expected * (20 - known)) / 20)

    # ---- replies

    def take(self, request: Request, reply: Reply) -> None:
        """Take the reply to the oldest request under way."""
        ask = self._asks.pop(request.key)
        self.state.replies += 1
        self.state.from_journal += reply.from_journal
        self.state.under_way = len(self._asks)
        if reply.model:
            self.state.models[reply.model] += 1
        self._count_failure(reply)
        if isinstance(ask.context, Turn):
            self._continue(ask, reply)
        else:
            self._read(ask, reply)
        self.watch(self.state)

    def _count_failure(self, reply: Reply) -> None:
        """Raise ServerError where everything fails, as with a setting that the server does not know."""
        self._failed = 0 if reply.error is None else self._failed + 1
        if self._failed >= FAILURES:
            raise ServerError(
                f"{FAILURES} requests in a row failed: {reply.error}; mend it (see --body), and begin again: --fresh"
            )

    def close(self) -> None:
        """Drop the prompts that were not needed."""
        for prompt in self._spare:
            reason = "enough conversations were complete"
            self.drop(Drop("surplus", reason, prompt.text, prompt.source), prompt.answer)
        self._spare.clear()

    def _read(self, ask: Ask, reply: Reply) -> None:
        """Read the prompts in a reply."""
        self._sources -= 1
        self._sources_read += 1
        before = self._named
        for found in self.method.read(ask, reply):
            if isinstance(found, Drop):
                self.drop(found)
            else:
                self._judge(found)
        self._fruitless = 0 if self._named > before else self._fruitless + 1

    def _judge(self, prompt: Prompt) -> None:
        """Begin a talk with a prompt, or drop it."""
        drop = self.method.check(prompt) or self._compare(prompt)
        wanted = self.state.wanted
        if drop is not None:
            self.drop(drop, prompt.answer)
        elif wanted is not None and self.state.accepted + self._open >= wanted:
            self._spare.append(prompt)
        else:
            self._begin(prompt)

    def _compare(self, prompt: Prompt) -> Drop | None:
        near = self.similar.nearest(prompt.instruction, prompt.parents) if self.similar else None
        if near is None:
            return None
        reason = f"ROUGE-L {near.score:.2f} with {near.name}"
        return Drop(
            "similar", reason, prompt.text, prompt.source, details={"near": near.name, "score": round(near.score, 4)}
        )

    def _begin(self, prompt: Prompt) -> None:
        self._named += 1
        name = f"{self.facts['method']}-{self._named:06d}"
        if self.similar:
            self.similar.add(name, prompt.instruction)
        self.method.accept(prompt, name)
        self._open += 1
        self._go_on(self.talks.start(name, prompt))

    def _continue(self, ask: Ask, reply: Reply) -> None:
        """Add a reply to its talk; one that cannot be used ends the talk."""
        talk: Talk = ask.context.talk
        drop = self.talks.take(ask, reply)
        if drop is None:
            self._go_on(talk)
            return
        self.drop(drop)
        if talk.turns:
            self._finish(talk)
        else:
            self._open -= 1

    def _go_on(self, talk: Talk) -> None:
        ask = self.talks.next(talk)
        if ask is None:
            self._finish(talk)
        else:
            self._waiting.append(ask)

    def _finish(self, talk: Talk) -> None:
        self._open -= 1
        self.state.accepted += 1
        self.state.prompt, self.state.answer = (message["content"] for message in talk.messages[-2:])
        self.sink.add_record(to_record(talk, self.facts))

    def drop(self, drop: Drop, answer: str | None = None) -> None:
        """Count and write what is dropped, with the answer that came with it."""
        self.state.dropped[drop.rule] += 1
        self.sink.add_drop(drop if answer is None else _with_answer(drop, answer))


def _with_answer(drop: Drop, answer: str) -> Drop:
    return Drop(drop.rule, drop.reason, drop.text, drop.source, drop.prompt, {**drop.details, "answer": answer})
