"""The client: sends requests with bounded concurrency, repeats those that fail, and journals everything."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from curate.client.budget import Budget
from curate.client.endpoint import Endpoint
from curate.client.exchange import Reply, Request, read_reply
from curate.client.journal import Journal
from curate.client.retries import Failure, classify, wait_before
from curate.errors import ServerError

MOST_BYTES = 64 << 20  # of a reply
LONGEST_PAUSE = 900.0  # seconds that a server may ask to wait
EXCERPT = 300  # characters of a server's error


@dataclass(frozen=True)
class Settings:
    """How to ask: requests under way at a time, attempts for each, seconds for an attempt."""

    concurrency: int = 8
    attempts: int = 6
    timeout: float = 600.0


class Client:
    """Asks one server; an asynchronous context manager. `tell` gets a line for each attempt that failed.

    A reply that the journal holds is not asked for again. Whatever a server sends is journalled without the key.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        budget: Budget,
        settings: Settings | None = None,
        *,
        tell: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.endpoint = endpoint
        self.journal = journal
        self.budget = budget
        self.settings = settings or Settings()
        self.tell = tell
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._chance = random.Random()
        self._pause_until = 0.0  # by the clock of the loop: the server asked all to wait

    async def __aenter__(self) -> Self:
        limits = httpx.Limits(max_connections=self.settings.concurrency)
        timeout = httpx.Timeout(self.settings.timeout, connect=min(30.0, self.settings.timeout))
        self._http = httpx.AsyncClient(
            limits=limits,
            timeout=timeout,
            headers=self.endpoint.headers,
            verify=self.endpoint.url.startswith("https:"),  # without it, no certificates are loaded
            trust_env=not self.endpoint.is_local,  # proxies of the environment
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, request: Request) -> Reply:
        """Return the reply to a request, or why it has none.

        Raises ServerError where the server cannot be used, BudgetSpent where the call would exceed the budget.
        """
        known = self.journal.find(request)
        if known is not None:
            return known
        async with self._slots:
            reserved, used = request.most_tokens, 0
            await self.budget.reserve(reserved)
            try:
                reply = await self._send(request)
                used = reply.tokens
                return reply
            finally:
                self.budget.settle(reserved, used)

    async def _send(self, request: Request) -> Reply:
        attempt = 1
        while isinstance(outcome := await self._attempt(request, attempt), Failure):
            again = outcome.again and attempt < self.settings.attempts
            self.tell(f"{request.key}, attempt {attempt}: {outcome.error}")
            self.journal.add_failure(request, outcome.error, final=not (again or outcome.server))
            if not again:
                return self._give_up(outcome)
            await self._wait(attempt, outcome)
            attempt += 1
        return outcome

    def _give_up(self, failure: Failure) -> Reply:
        """Return the reply of a request that failed; raises ServerError where the server is at fault."""
        if failure.server:
            raise ServerError(
                f"{self.endpoint.url} cannot be used: {failure.error}; mend it, and type the same command to continue"
            )
        return Reply("", "error", error=failure.error)

    async def _attempt(self, request: Request, attempt: int) -> Reply | Failure:
        """Send a request once, and return its reply, which is in the journal, or why it has none."""
        await self._pause()
        self.budget.count_call()
        self.journal.add_sent(request, attempt)
        try:
            status, headers, body = await self._post(request)
        except httpx.TransportError as error:
            gone = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol)
            return Failure(self._describe(str(error) or type(error).__name__), True, gone)
        return self._read(request, status, headers, body)

    def _read(self, request: Request, status: int, headers: httpx.Headers, body: bytes) -> Reply | Failure:
        if len(body) > MOST_BYTES:
            return Failure(f"the reply is longer than {MOST_BYTES:,} bytes", False, False)
        values = self._parse(body)
        if status != 200:
            return classify(status, headers, self._describe(_error_text(values) or body.decode("utf-8", "replace")))
        try:
            reply = read_reply(request, values)
        except ValueError as error:
            return Failure(f"{error}: {self._describe(body.decode('utf-8', 'replace'))}", True, False)
        self.journal.add_reply(request, values, reply.tokens)
        return reply

    async def _post(self, request: Request) -> tuple[int, httpx.Headers, bytes]:
        """Send a request; return status, headers and body, of which at most `MOST_BYTES` and a little are read."""
        url = f"{self.endpoint.url}/{request.path}"
        async with self._http.stream("POST", url, json=request.body) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MOST_BYTES:
                    break
            return response.status_code, response.headers, bytes(body)

    def _parse(self, body: bytes) -> Any:
        try:
            return self.endpoint.hide_key(httpx.Response(200, content=body).json())
        except (ValueError, RecursionError):
            return None

    def _describe(self, text: str) -> str:
        """Return a server's words on one short line, without the key."""
        return str(self.endpoint.hide_key(" ".join(text.split())))[:EXCERPT]

    async def _wait(self, attempt: int, failure: Failure) -> None:
        """Wait before the next attempt; if the server asks for time, all requests wait."""
        if failure.wait > LONGEST_PAUSE:
            raise ServerError(
                f"{self.endpoint.url} asks to wait for {failure.wait:,.0f} seconds ({failure.error}); "
                "type the same command then"
            )
        loop = asyncio.get_running_loop()
        self._pause_until = max(self._pause_until, loop.time() + failure.wait)
        await asyncio.sleep(wait_before(attempt, failure.wait, self._chance))

    async def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        while (left := self._pause_until - loop.time()) > 0:
            await asyncio.sleep(left)


def _error_text(values: Any) -> str:
    """Return the message in a body of OpenAI's shape, empty if it has another."""
    error = values.get("error") if isinstance(values, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


async def ask_in_order(
    client: Client, next_request: Callable[[int], Request | None], window: int
) -> AsyncIterator[tuple[Request, Reply]]:
    """Yield requests with their replies, in the order of the requests, whichever reply arrives first.

    `next_request` gets how many are under way and returns the next one, or None for none at this time. It is called
    again after each reply has been used, so that what a request is made of depends on no time. At most `window` are
    under way. An error ends it once the requests under way have their replies, which are in the journal.
    """
    waiting: deque[tuple[Request, asyncio.Task[Reply]]] = deque()
    try:
        while True:
            while len(waiting) < window and (request := next_request(len(waiting))) is not None:
                waiting.append((request, asyncio.create_task(client.ask(request))))
            if not waiting:
                return
            request, task = waiting.popleft()
            try:
                reply = await task
            except Exception:
                await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
                raise
            yield request, reply
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
