"""What methods exchange with the run: prompts, drops, and what is asked of the model for which purpose."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from curate.client.exchange import CHAT, COMPLETION, Reply, Request

Message = Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """A prompt, given or generated, with the asking that made it, and an answer if it came with one.

    `instruction` is what is compared with other prompts: the text without its input. `root` names the given prompt
    that it descends from; a prompt is not compared with its own line of ancestors.
    """

    text: str
    instruction: str
    source: str  # what made it: the key of a request, or the place of a given prompt
    parents: tuple[str, ...] = ()
    system: str = ""
    language: str = ""
    answer: str | None = None
    made_by: Request | None = None
    model: str = ""  # that made it, by the server's own words
    depth: int = 0  # rewritings since the given prompt


@dataclass(frozen=True)
class Drop:
    """What does not become part of the dump: the rule, the reason, the text, and the request that it came from."""

    rule: str
    reason: str
    text: str
    source: str
    prompt: str = ""  # that the text answers
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A request, and what its reply is for."""

    request: Request
    context: Any = None


@dataclass(frozen=True)
class Sampling:
    """How a reply is sampled."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class Asker:
    """Makes requests to one model, each with a seed of its own, which depends on its key only."""

    model: str
    seed: int
    more: Mapping[str, Any] = field(default_factory=dict)  # for the body; null takes a key out

    def chat(self, key: str, messages: Sequence[Message], sampling: Sampling) -> Request:
        """Return a request for the next message of a chat."""
        return Request(key, CHAT, {"messages": list(messages), **self._body(key, sampling)})

    def complete(self, key: str, prompt: str, stop: Sequence[str], sampling: Sampling) -> Request:
        """Return a request to continue a raw prompt."""
        return Request(key, COMPLETION, {"prompt": prompt, "stop": list(stop), **self._body(key, sampling)})

    def _body(self, key: str, sampling: Sampling) -> dict[str, Any]:
        body = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": (self.seed + zlib.crc32(key.encode())) % 2**31,
            **self.more,
        }
        return {name: value for name, value in body.items() if value is not None}


class Method(Protocol):
    """Where prompts come from.

    `next` returns what to ask next, or a prompt that needs no asking, or None: nothing now. `read` returns the prompts
    in a reply, and what is dropped of it. `check` says why a prompt is dropped. `accept` gets each one that is
    kept, with its name. All are called in the order of the requests.
    """

    expected: float  # prompts that one request yields, before anything is known
    window: int  # requests under way at most, which decides what later requests can be made of

    def next(self) -> Ask | Prompt | None: ...

    def read(self, ask: Ask, reply: Reply) -> Sequence[Prompt | Drop]: ...

    def check(self, prompt: Prompt) -> Drop | None: ...

    def accept(self, prompt: Prompt, name: str) -> None: ...


def problem(reply: Reply) -> tuple[str, str] | None:
    """Return the rule and reason by which a whole reply cannot be used, None if it can."""
    if reply.error is not None:
        return "failed", f"the request failed: {reply.error}"
    if reply.finish == "length":
        return "cut_off", f"cut off after {reply.answer_tokens:,} tokens; raise --reply-tokens"
    if reply.finish == "content_filter":
        return "withheld", "the server's content filter withheld the reply"
    if not reply.text.strip():
        return "empty", "the reply has no text"
    return None
