"""An OpenAI-compatible server whose replies a test scripts: good ones, errors, cut, slow and malformed ones."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.support import local_server

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the server sends: with `cut`, fewer bytes than it announces; after `delay` seconds."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    delay: float = 0.0


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    path: str
    body: Body
    headers: Mapping[str, str]


def reply(text: str | None, *, finish: str = "stop", chat: bool = True, tokens: tuple[int, int] = (10, 5)) -> Answer:
    """Return a good reply."""
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    body = {"model": "stub-1", "choices": [{"index": 0, "finish_reason": finish, **content}], "usage": usage}
    return Answer(json.dumps(body).encode())


def error(status: int, message: str = "no", **headers: str) -> Answer:
    """Return an error in OpenAI's shape; a header's underscores become hyphens."""
    body = json.dumps({"error": {"message": message, "type": "error"}}).encode()
    return Answer(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Callable[[int, Asked], Answer]
    asked: list[Asked]
    guard: threading.Lock

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.guard:
            asked = Asked(self.path, body, dict(self.headers))
            self.asked.append(asked)
            answer = type(self).script(len(self.asked) - 1, asked)
        time.sleep(answer.delay)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # a client that has read enough
            self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)
        self.close_connection = answer.cut

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def serving(script: Callable[[int, Asked], Answer]) -> Iterator[tuple[str, list[Asked]]]:
    """Answer each request by the script, from its number and what it asks; yield the URL and the requests so far."""
    asked: list[Asked] = []
    with local_server.running(_Handler, script=staticmethod(script), asked=asked, guard=threading.Lock()) as url:
        yield url, asked
