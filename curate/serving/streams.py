"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

from starlette.types import Receive, Scope, Send

from curate.serving.errors import ApiError
from curate.serving.exchange import Exchange

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy must not hold parts back
]
DONE = b"data: [DONE]\n\n"


async def until_gone(receive: Receive) -> None:
    """Wait until the client has closed the connection; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A response that streams an exchange; the places in the batch are freed as soon as the client is gone."""

    def __init__(self, exchange: Exchange, counts: Any) -> None:
        self._exchange = exchange
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, or stop when the client goes away."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            gone.cancel()
            self._exchange.close(self._counts)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        with suppress(OSError):  # the client went away while a part was sent
            try:
                async for chunk in self._exchange.chunks():
                    await _send_part(send, to_event(chunk))
            except ApiError as error:  # too late for a status
                self._counts.error = error.__cause__ or error
                await _send_part(send, b"data: " + error.body() + b"\n\n")
            await _send_part(send, DONE)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def to_event(value: object) -> bytes:
    """Return an object as a server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"
