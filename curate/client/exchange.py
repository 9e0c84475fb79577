"""What is asked of a server, and what it replied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

CHAT, COMPLETION = "chat/completions", "completions"
BYTES_PER_TOKEN = 3  # fewer than texts have, so that an estimate is rather too high


@dataclass(frozen=True)
class Request:
    """One request: a key that is unique in its run, the path of the API, and the body."""

    key: str
    path: str
    body: Mapping[str, Any]

    @cached_property
    def hash(self) -> str:
        """The hash of what is asked."""
        text = json.dumps([self.path, self.body], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def most_tokens(self) -> int:
        """At most about so many tokens are read and written for it."""
        asked = self.body.get("prompt") or [message["content"] for message in self.body.get("messages", ())]
        texts = [asked] if isinstance(asked, str) else asked
        prompt = sum(estimate_tokens(text) for text in texts)
        return prompt + self.most_written * int(self.body.get("n") or 1)

    @property
    def most_written(self) -> int:
        """The tokens that a reply may have, by either name that servers know."""
        return int(self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 0)


@dataclass(frozen=True)
class Reply:
    """A reply: its text, why it ended (`stop`, `length`, …) and its tokens. With an `error`, the request failed."""

    text: str
    finish: str = "stop"
    model: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    error: str | None = None
    from_journal: bool = False

    @property
    def tokens(self) -> int:
        """The tokens read and written."""
        return self.prompt_tokens + self.answer_tokens


def estimate_tokens(text: str) -> int:
    """Return about the most tokens that a text has."""
    return len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN + 4


def read_reply(request: Request, body: Any, *, from_journal: bool = False) -> Reply:
    """Return the reply in the body of a response; raises ValueError for what is not one."""
    try:
        choice = body["choices"][0]
        text = choice["message"]["content"] if request.path == CHAT else choice["text"]
        finish, model, usage = choice.get("finish_reason"), body.get("model"), body.get("usage")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the reply has no choices with a text") from None
    if text is None:  # a refusal, or calls of tools
        text = ""
    if not isinstance(text, str):
        raise ValueError("the text of the reply is not a text")
    read, written = _usage(usage)
    if read is None:
        read = max(1, request.most_tokens - request.most_written)
    written = estimate_tokens(text) if written is None else written
    return Reply(text, str(finish or "stop"), str(model or ""), read, written, from_journal=from_journal)


def _usage(usage: Any) -> tuple[int | None, int | None]:
    """Return the tokens read and written by a server's count, None for what it does not say."""
    values = [usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "completion_tokens")]
    read, written = (value if type(value) is int and value >= 0 else None for value in values)
    return read, written
