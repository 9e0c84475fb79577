"""The objects of responses, as OpenAI's API has them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from curate._version import __version__
from curate.inference.answers import Part, Placed
from curate.schemas.conversation import Message

FINGERPRINT = f"curate-{__version__}"  # the same settings give the same answer while it is the same
TokenBytes = Callable[[int], bytes]


@dataclass
class Answer:
    """One choice of a response, while its parts arrive."""

    index: int
    text: str = ""
    tokens: list[Placed] = field(default_factory=list)
    ending: str | None = None
    count: int = 0  # tokens without the stop token
    message: Message | None = None  # with the calls of tools, once it has ended

    def add(self, part: Part) -> None:
        """Take the next part."""
        self.text += part.text
        self.tokens += part.tokens
        self.ending = part.ending

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls of tools."""
        calls: list[dict[str, Any]] = (
            json.loads(self.message.tool_calls) if self.message and self.message.tool_calls else []
        )
        return calls

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended."""
        return "tool_calls" if self.calls else self.ending


@dataclass(frozen=True)
class Head:
    """What all objects of one response have in common."""

    model: str
    chat: bool
    prefix: str = ""
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def object(self, choices: Sequence[dict[str, Any]], *, chunk: bool, **more: Any) -> dict[str, Any]:
        """Return a response, or a chunk of a streamed one."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.identity}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": list(choices),
            **more,
        }


def usage(prompt: int, answers: int) -> dict[str, int]:
    """Return the counts of tokens of the prompts and of the answers."""
    return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}


def chat_choice(answer: Answer, scores: dict[str, Any] | None) -> dict[str, Any]:
    """Return a whole answer of a chat."""
    content = answer.message.content if answer.message else answer.text
    calls = {"tool_calls": answer.calls} if answer.calls else {}
    message = {"role": "assistant", "content": (content or None) if calls else content, "refusal": None, **calls}
    return {"index": answer.index, "message": message, "logprobs": scores, "finish_reason": answer.finish_reason}


def chat_delta(
    index: int, delta: dict[str, Any], scores: dict[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    """Return a choice of a chunk of a streamed chat."""
    return {"index": index, "delta": delta, "logprobs": scores, "finish_reason": reason}


def text_choice(index: int, text: str, scores: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
    """Return a completion, or a part of one."""
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": reason}


def call_delta(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return whole calls as a chunk has them."""
    return [{"index": index, **call} for index, call in enumerate(calls)]


# ---- log-probabilities


def chat_scores(tokens: Sequence[Placed], token_bytes: TokenBytes) -> dict[str, Any]:
    """Return the log-probabilities of a chat's tokens."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    content = [
        {**entry(each.token.id, each.token.logprob), "top_logprobs": [entry(*top) for top in each.token.top]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def text_scores(tokens: Sequence[Placed], token_bytes: TokenBytes) -> dict[str, Any]:
    """Return the log-probabilities of a completion's tokens."""

    def name(token: int) -> str:
        return token_bytes(token).decode("utf-8", "replace")

    return {
        "tokens": [name(each.token.id) for each in tokens],
        "token_logprobs": [each.token.logprob for each in tokens],
        "top_logprobs": [{name(token): logprob for token, logprob in each.token.top} for each in tokens],
        "text_offset": [each.start for each in tokens],
    }
