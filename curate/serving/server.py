"""Listen on an address, and serve an application with uvicorn until a signal."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from curate.errors import InputError, error_message
from curate.serving.errors import ApiError

CLOSE = (b"connection", b"close")
LINGER = 2  # seconds that the sender of a request that is refused has to read why
GRACE = 30  # seconds that answers under way have after a signal to stop


class _Protocol(H11Protocol):
    """HTTP as uvicorn's, with errors in OpenAI's shape also where a request cannot be read."""

    _refused = False

    def data_received(self, data: bytes) -> None:
        """Take data; after an error, drop it: closing with data unread would reset the connection at once."""
        if not self._refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is no HTTP, or whose headers are too large, and close."""
        body = ApiError(msg).body()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), CLOSE]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, which may lead anywhere
        return False


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address, which does not listen yet; raises InputError where it is taken or unknown."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot serve on {host!r}: {error_message(error)}; give another address: --host") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        why = error_message(error)
        raise InputError(f"cannot serve on {host}, port {port}: {why}; give another port: --port") from None
    return bound


def url(bound: socket.socket) -> str:
    """Return the address of a socket as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_server(app: Any, on_ready: Callable[[], None]) -> uvicorn.Server:
    """Return the server of an application, for `run(sockets=[bound])`, which ends at SIGINT or SIGTERM.

    The signal is raised again once the answers under way have ended.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
    )
    return _Server(config, on_ready)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets=sockets)
        self._on_ready()
