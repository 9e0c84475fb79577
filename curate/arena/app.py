"""The page of blind votes, as an ASGI application.

Until a vote is in the file, no reply holds what could name a model: no name, no file, no server, and no error of one.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curate.arena.battle import Arena, Battle, NotNow
from curate.arena.votes import VOTES, VoteFile
from curate.serving.access import Access
from curate.serving.middleware import host_name

MAX_BODY = 1 << 20  # bytes
MAX_PROMPT = 200_000  # characters
COOKIE = "curate_arena"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
ASSETS = {
    "/": ("arena.html", "text/html"),
    "/arena.js": ("arena.js", "text/javascript"),
    "/arena.css": ("arena.css", "text/css"),
}
Render = Callable[[str], str]  # an answer's Markdown as HTML that is safe to insert
Say = Callable[[str], object]


def make_app(arena: Arena, votes: VoteFile, access: Access, render: Render, say: Say) -> Any:
    """Return the application; `say` gets a line for each vote and each failed answer, on the terminal."""
    page = _Page(arena, votes, render, say)
    routes = [
        *(Route(path, _asset(*asset)) for path, asset in ASSETS.items()),
        Route("/favicon.ico", _no_icon),
        Route("/battles", page.start, methods=["POST"]),
        Route("/battles/{id}/prompts", page.ask, methods=["POST"]),
        Route("/battles/{id}/vote", page.vote, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {HTTPException: _answer_error}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), access)


class _Page:
    """The endpoints."""

    def __init__(self, arena: Arena, votes: VoteFile, render: Render, say: Say) -> None:
        self._arena = arena
        self._votes = votes
        self._render = render
        self._say = say
        self._count = 0

    async def start(self, request: Request) -> Response:
        """Begin a battle."""
        battle = self._arena.start()
        if battle is None:
            return JSONResponse({"done": True, "typed": False, "votes": self._count, "unvoted": self._arena.unvoted})
        return JSONResponse({"id": battle.id, "prompt": battle.next_prompt, "typed": self._arena.typed})

    async def ask(self, request: Request) -> Response:
        """Stream both answers to the next prompt, as JSON lines."""
        battle, body = self._battle(request), await _body(request)
        text = battle.next_prompt or body.get("text")
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_PROMPT:
            raise HTTPException(400, f"type a prompt of at most {MAX_PROMPT:,} characters")
        if battle.next_prompt is None and not self._arena.typed:
            raise HTTPException(409, "only the prompts of the file are answered")
        if battle.answering or battle.vote:
            raise HTTPException(409, "the answers are not finished" if battle.answering else "this battle is over")
        return StreamingResponse(self._answers(battle, text), media_type="application/x-ndjson")

    async def _answers(self, battle: Battle, text: str) -> AsyncIterator[bytes]:
        answers = {"left": "", "right": ""}
        async with aclosing(battle.ask(text, self._arena.settings)) as parts:  # type: ignore[type-var]
            async for part in parts:
                if part.failed is not None:
                    self._say(f"{battle.players[part.side].name}: no answer: {part.failed}")
                answers[part.side] += part.text
                line: dict[str, object] = {"side": part.side, "text": part.text}
                if part.end:
                    line |= {"end": True, "cut": part.cut, "failed": part.failed is not None}
                    if part.failed is None:
                        line["html"] = await run_in_threadpool(self._render, answers[part.side])
                yield json.dumps(line).encode() + b"\n"
        yield json.dumps({"next": battle.next_prompt}).encode() + b"\n"

    async def vote(self, request: Request) -> Response:
        """Put a vote into the file, then say which model was on which side."""
        battle, body = self._battle(request), await _body(request)
        vote = body.get("vote")
        if not isinstance(vote, str) or vote not in VOTES:
            raise HTTPException(400, f"the vote must be one of {', '.join(VOTES)}")
        async with battle.lock:
            if battle.vote not in (None, vote):
                raise HTTPException(409, "this battle is over")
            if battle.vote is None:
                await self._record(battle, vote)
        names = {} if vote == "skip" else {side: battle.names[side] for side in ("left", "right")}
        return JSONResponse({**names, "votes": self._count})

    async def _record(self, battle: Battle, vote: str) -> None:
        try:
            record = battle.record(vote, self._arena.settings)
        except NotNow as error:
            raise HTTPException(409, str(error)) from None
        try:
            self._votes.append(record)
        except OSError as error:
            self._say(f"a vote could not be written: {error}")
            raise HTTPException(507, "the vote could not be written; the terminal says why") from None
        battle.vote = vote
        self._count += vote != "skip"
        self._say(f"vote {self._count}: {record['model_a']} (left), {record['model_b']} (right): {record['winner']}")

    def _battle(self, request: Request) -> Battle:
        battle = self._arena.find(request.path_params["id"])
        if battle is None:
            raise HTTPException(404, "this battle is gone; begin another")
        return battle


def _asset(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = Path(str(files("curate.arena") / "web" / name)).read_text("utf-8")
    if kind == "text/css":
        content = Path(str(files("curate.display") / "page.css")).read_text("utf-8") + content

    async def send(request: Request) -> Response:
        return Response(content, media_type=kind)

    return send


async def _no_icon(request: Request) -> Response:
    return Response(status_code=204)


async def _body(request: Request) -> dict[str, Any]:
    """Return the object in a body; raises HTTPException for anything else."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise HTTPException(413, f"more than {MAX_BODY:,} bytes")
    try:
        value = msgspec.json.decode(b"".join(parts) or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return value


async def _answer_error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


class Guard:
    """Refuses requests of other pages, to other hosts, and without the token; adds the security headers to all replies.

    The token is taken from a cookie, which a visit to `/?token=…` sets, or from the header Authorization.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        request = Request(scope)

        async def add_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                replaced = {name for name, _ in added}
                message["headers"] = [pair for pair in message["headers"] if pair[0] not in replaced] + added
            await send(message)

        await (self._refusal(request) or self._app)(scope, receive, add_headers)

    def _refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that goes no further, None for one that may."""
        token = self._access.token
        if self._access.hosts and host_name(request.headers.get("host", "")) not in self._access.hosts:
            return _refuse(403, "the Host header does not name this server")
        if token and request.url.path == "/" and _same(request.query_params.get("token", ""), token):
            welcome = RedirectResponse("/", 303)
            welcome.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return welcome
        if token and not _same(_given(request), token):
            return _refuse(401, "open the page with its token: /?token=TOKEN")
        if request.method != "GET" and not _is_own(request.headers):
            return _refuse(403, "only the page itself may send this")
        return None


def _refuse(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)


def _given(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else request.cookies.get(COOKIE, "")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _is_own(headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from the page: JSON, which others cannot send unasked, and of its own origin."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    try:
        own = origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:
        own = False
    return kind == "application/json" and own and site in ("same-origin", "none")
