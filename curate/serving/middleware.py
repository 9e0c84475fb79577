"""Around every request: who may send it, a line in the log, and an error in OpenAI's shape whatever happens."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curate.serving.errors import ApiError, failed

Log = Callable[[str], object]
OPEN_PATHS = ("/health",)  # for anyone, also without the token
KNOWN_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health")


def error_response(error: ApiError) -> Response:
    """Return an error as a response."""
    return Response(error.body(), error.status, {"Content-Type": "application/json", **error.headers})


class Guard:
    """Refuses requests without the token, or with a Host header that names another machine.

    A page whose name resolves to 127.0.0.1 (DNS rebinding) sends its own name as Host.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Sequence[str]) -> None:
        self._app = app
        self._token = token
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        headers = Headers(scope=scope)
        if self._hosts and host_name(headers.get("host", "")) not in self._hosts:
            error = ApiError("the Host header does not name this server", status=403, code="wrong_host")
            await error_response(error)(scope, receive, send)
        elif self._token is not None and scope["path"] not in OPEN_PATHS and not self._has_token(headers):
            error = ApiError(
                "send the server's token: Authorization: Bearer TOKEN",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error_response(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        expected = (self._token or "").encode()
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), expected)


def host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


@dataclass
class Counts:
    """What the log says of one request."""

    model: str = "-"
    status: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    endings: tuple[str, ...] = ()
    error: BaseException | None = None

    def line(self, method: str, path: str, seconds: float) -> str:
        """Return the line: never a text of a request or an answer."""
        named = next(
            (known for known in KNOWN_PATHS if path == known or path.startswith(known + "/")), "(unknown path)"
        )
        parts = [time.strftime("%H:%M:%S"), method if method.isalpha() else "?", named, str(self.status)]
        if self.prompt_tokens:
            tokens = f"{self.prompt_tokens} + {self.answer_tokens} tokens"
            parts += [self.model, tokens, ", ".join(dict.fromkeys(self.endings))]
        if self.error is not None:
            parts.append(f"error: {type(self.error).__name__}: {self.error}".partition("\n")[0][:300])
        return "  ".join([*parts, f"{seconds:.2f} s"])


class RequestLog:
    """Logs each request, and answers what no other code has handled."""

    def __init__(self, app: ASGIApp, log: Log) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; log it when its response has been sent."""
        counts = scope["curate"] = Counts()
        start = time.perf_counter()

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                counts.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception as error:
            counts.error = error.__cause__ or error
            if not counts.status:
                await error_response(failed())(scope, receive, note)
        finally:
            self._log(counts.line(scope["method"], scope["path"], time.perf_counter() - start))
