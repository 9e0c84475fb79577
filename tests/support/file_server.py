"""A web server of files for tests: with byte ranges or without, and with the faults that real ones have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.support.local_server import running


@dataclass
class Served:
    """The files by their path, and how they are served; `asked` has the ranges that were asked for."""

    files: dict[str, bytes]
    ranges: bool = True
    breaks: int = 0  # answers that end after half of their bytes
    fails: int = 0  # requests that are answered with 503
    changes_after: int | None = None  # requests after which every file has another ETag
    secret: str = ""  # that a request must have in its query or its headers
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    endpoint: str = ""


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    protocol_version = "HTTP/1.1"
    served: Served

    def do_GET(self) -> None:
        served = self.served
        served.asked.append((self.path, self.headers.get("Range")))
        name, _, query = self.path.partition("?")
        data = served.files.get(name)
        if served.fails:
            served.fails -= 1
            self._answer(503, b"")
        elif served.secret and served.secret not in query + str(self.headers.get("Authorization")):
            self._answer(403, b"")
        elif data is None:
            self._answer(404, b"")
        else:
            self._answer_file(data)

    do_HEAD = do_GET

    def _answer_file(self, data: bytes) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if match is None or not self.served.ranges:
            self._answer(200, data)
            return
        start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
        if start >= len(data):
            self._answer(416, b"")
        else:
            self._answer(206, data[start:stop], f"bytes {start}-{stop - 1}/{len(data)}")

    def _answer(self, code: int, data: bytes, content_range: str = "") -> None:
        served = self.served
        changed = served.changes_after is not None and len(served.asked) > served.changes_after
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"second"' if changed else '"first"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command == "HEAD":
            return
        if served.breaks and len(data) > 1:
            served.breaks -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serving(files: dict[str, bytes], **how: object) -> Iterator[Served]:
    """Serve files by their paths, such as `/dump.json`."""
    served = Served(files, **how)  # type: ignore[arg-type]
    with running(Handler, served=served) as endpoint:
        served.endpoint = endpoint
        yield served
