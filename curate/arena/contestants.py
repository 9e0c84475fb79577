"""What answers in a battle: a model of a server, a file of answers, or a model that is loaded here (`local`)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from curate.arena.prompts import Chat, Turns
from curate.client.endpoint import Endpoint

Messages = Sequence[Mapping[str, str]]  # {role, content}
TIMEOUT = 300.0  # seconds without a sign from a server
EXCERPT = 300  # characters of a server's error


class AnswerFailed(Exception):
    """A contestant gave no answer; the message is for whoever runs the page, not for the voter."""


@dataclass(frozen=True)
class AskSettings:
    """How answers are sampled."""

    temperature: float = 0.7
    max_tokens: int = 1024
    system: str = ""


@dataclass(frozen=True)
class Piece:
    """A part of an answer; `cut` is set where the answer ended because it was too long."""

    text: str
    cut: bool = False


class Contestant(Protocol):
    """A name that votes are for, and where its answers come from."""

    name: str
    origin: Mapping[str, str]
    sampled: bool  # whether answers are made now, by the settings

    def stream(self, messages: Messages, settings: AskSettings) -> AsyncIterator[Piece]:
        """Yield the next answer of a chat as it is generated; raises AnswerFailed."""
        ...


class Server:
    """A model of a server with OpenAI's API."""

    sampled = True

    def __init__(self, name: str, endpoint: Endpoint, model: str) -> None:
        self.name = name
        self.origin: Mapping[str, str] = {"server": endpoint.url, "model": model}
        self._endpoint = endpoint
        self._model = model

    async def stream(self, messages: Messages, settings: AskSettings) -> AsyncIterator[Piece]:
        """Yield the next answer; raises AnswerFailed for whatever else the server sends."""
        sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        body = {"model": self._model, "messages": list(messages), "stream": True, **sampling}
        secure = self._endpoint.url.startswith("https:")  # without it, no certificates are loaded
        url = f"{self._endpoint.url}/chat/completions"
        try:
            async with (
                httpx.AsyncClient(headers=self._endpoint.headers, timeout=TIMEOUT, verify=secure) as client,
                client.stream("POST", url, json=body) as response,
            ):
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")
                    raise AnswerFailed(self._describe(f"{response.status_code}: {text}"))
                async for piece in self._pieces(response):
                    yield piece
        except httpx.HTTPError as error:
            raise AnswerFailed(self._describe(f"{type(error).__name__}: {error}")) from None

    async def _pieces(self, response: httpx.Response) -> AsyncIterator[Piece]:
        """Yield the parts in a stream of events, which must end as the API says."""
        async for line in response.aiter_lines():
            kind, _, data = line.partition(":")
            if kind != "data" or not data.strip():
                continue
            if data.strip() == "[DONE]":
                return
            try:
                chunk = json.loads(data)
            except (ValueError, RecursionError):
                raise AnswerFailed(self._describe(f"an event is not JSON: {data}")) from None
            if isinstance(chunk, dict) and "error" in chunk:
                raise AnswerFailed(self._describe(str(chunk["error"])))
            if piece := read_chunk(chunk):
                yield piece
        raise AnswerFailed("the stream was cut off")

    def _describe(self, text: str) -> str:
        return str(self._endpoint.hide_key(" ".join(text.split())))[:EXCERPT]


class AnswerFile:
    """The answers in a file, by the prompts before them."""

    sampled = False

    def __init__(self, name: str, path: Path, chats: Sequence[Chat]) -> None:
        self.name = name
        self.origin: Mapping[str, str] = {"file": str(path)}
        self.prompts = [chat.prompt for chat in chats]
        self._answers: dict[Turns, str] = {}  # by the user's messages so far
        for chat in chats:
            for count, answer in enumerate(chat.answers, 1):
                self._answers.setdefault(chat.prompt.turns[:count], answer)

    async def stream(self, messages: Messages, settings: AskSettings) -> AsyncIterator[Piece]:
        """Yield the answer to the user's messages so far, whole; raises AnswerFailed if the file has none."""
        answer = self._answers.get(tuple(each["content"] for each in messages if each["role"] == "user"))
        if answer is None:
            raise AnswerFailed(f"{self.origin['file']} has no answer to this prompt")
        yield Piece(answer)


def read_chunk(chunk: Any) -> Piece | None:
    """Return what a chunk of a streamed answer adds, None if nothing; raises AnswerFailed for what is no chunk."""
    try:
        choices = chunk["choices"]
        if not choices:
            return None  # the counts of tokens
        text = choices[0].get("delta", {}).get("content") or ""
        cut = choices[0].get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError):
        raise AnswerFailed("an event has no choices") from None
    if not isinstance(text, str):
        raise AnswerFailed("the text of an event is not a text")
    return Piece(text, cut) if text or cut else None
