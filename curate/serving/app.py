"""The API as an ASGI application: OpenAI's endpoints over the models that are served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from curate.serving import requests
from curate.serving.access import Access
from curate.serving.errors import ApiError, failed
from curate.serving.exchange import Exchange
from curate.serving.messages import read_definitions, read_messages
from curate.serving.middleware import Guard, Log, RequestLog, error_response
from curate.serving.models import ServedModel
from curate.serving.requests import ChatOrder, CompletionOrder, Order, read_body, read_order
from curate.serving.streams import EventStream, until_gone

MAX_BODY = 8 * 2**20  # bytes
DRAINED = 8 * MAX_BODY  # bytes of a larger body that are read and dropped, so that its sender gets the error
BODY_SECONDS = 60  # to send a body in
GONE = 499  # the status in the log of a request whose client went away
_Order = TypeVar("_Order", bound=Order)


def make_app(models: Mapping[str, ServedModel], access: Access, log: Log) -> Any:
    """Return the application; `log` gets a line for each request, without any of its text."""
    api = _Api(models)
    routes = [
        Route("/health", api.health),
        Route("/v1/models", api.list_models),
        Route("/v1/models/{name:path}", api.describe_model),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.complete, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        ApiError: _answer_error,
        HTTPException: _answer_http_error,
        Exception: _answer_failure,
    }
    app: Any = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    app = Guard(app, access.token, access.hosts)
    if access.origins:
        from starlette.middleware.cors import CORSMiddleware

        headers = ["Authorization", "Content-Type"]
        app = CORSMiddleware(app, allow_origins=access.origins, allow_methods=["GET", "POST"], allow_headers=headers)
    return RequestLog(app, log)


class _Api:
    """The endpoints."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    async def health(self, request: Request) -> Response:
        """Say that the models are loaded and their threads run."""
        return JSONResponse({"status": "ok"})

    async def list_models(self, request: Request) -> Response:
        """List the models."""
        return JSONResponse({"object": "list", "data": [_describe(model) for model in self._models.values()]})

    async def describe_model(self, request: Request) -> Response:
        """Describe one model."""
        return JSONResponse(_describe(self._model(request.path_params["name"])))

    async def chat(self, request: Request) -> Any:
        """Answer a conversation."""
        order, model = await self._read(request, ChatOrder)
        messages = read_messages(order.messages)
        form = requests.read_form(order)
        tools = read_definitions(order.tools) if order.tools and requests.shows_tools(order) else None
        prompt = await run_in_threadpool(model.chat_prompt, messages, tools)
        grammar = await run_in_threadpool(model.grammar, form, messages, tools) if form else None
        param = "max_completion_tokens" if order.max_completion_tokens else "max_tokens"
        room = model.room(prompt, order.limit, param)
        exchange = Exchange(
            model, order, [prompt], [room], messages=messages, has_tools=tools is not None, form=form, grammar=grammar
        )
        return await _respond(request, exchange)

    async def complete(self, request: Request) -> Any:
        """Continue raw prompts."""
        order, model = await self._read(request, CompletionOrder)
        if len(order.prompts) * (order.n or 1) > requests.MAX_CHOICES:
            raise ApiError(f"prompt: at most {requests.MAX_CHOICES} answers in one request", param="prompt")
        prompts = [await run_in_threadpool(model.raw_prompt, prompt) for prompt in order.prompts]
        rooms = [model.room(prompt, order.limit, "max_tokens") for prompt in prompts]
        return await _respond(request, Exchange(model, order, prompts, rooms))

    async def _read(self, request: Request, kind: type[_Order]) -> tuple[_Order, ServedModel]:
        """Return the parameters of a request and its model."""
        order = read_order(kind, read_body(await _body(request)))
        request.scope["curate"].model = order.model if order.model in self._models else "?"
        return order, self._model(order.model)

    def _model(self, name: str) -> ServedModel:
        if name not in self._models:
            known = ", ".join(self._models)
            raise ApiError(
                f"the model {name[:200]!r} does not exist; known: {known}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return self._models[name]


def _describe(model: ServedModel) -> dict[str, Any]:
    window = {"max_model_len": model.opened.window} if model.opened.window else {}
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "curate", **window}


async def _body(request: Request) -> bytes:
    """Return the body of a request; raises ApiError for one that is too large, too slow or not JSON by its header."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another origin cannot send it without asking
        raise ApiError("send the header Content-Type: application/json", status=415, code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError("send the body without Content-Encoding", status=415, code="unsupported_media_type")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _collect(request)
    except TimeoutError:
        raise ApiError("the body took too long to arrive", status=408, code="request_timeout") from None


async def _collect(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY:
            parts.append(part)
        elif size > DRAINED:
            break
    if size > MAX_BODY:
        raise ApiError(f"the body has more than {MAX_BODY:,} bytes", status=413, code="request_too_large")
    return b"".join(parts)


async def _respond(request: Request, exchange: Exchange) -> Any:
    """Submit an exchange, and return its response: a stream, or one object once all is generated."""
    counts = request.scope["curate"]
    counts.prompt_tokens = exchange.prompt_tokens
    exchange.submit()
    if exchange.order.stream:
        return EventStream(exchange, counts)
    gone = asyncio.ensure_future(until_gone(request.receive))
    answers = asyncio.ensure_future(exchange.collect())
    try:
        await asyncio.wait({gone, answers}, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            return Response(status_code=GONE)
        return JSONResponse(answers.result())
    finally:
        gone.cancel()
        answers.cancel()
        exchange.close(counts)


async def _answer_error(request: Request, error: ApiError) -> Response:
    if error.status >= 500:
        request.scope["curate"].error = error.__cause__ or error
    return error_response(error)


async def _answer_failure(request: Request, error: Exception) -> Response:
    """Answer where the server itself is at fault; the error is raised again, for the log."""
    return error_response(failed())


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    """Answer a wrong path or method."""
    where = f"{request.method} {request.url.path}"[:200]
    known = "known: /v1/chat/completions, /v1/completions, /v1/models, /health"
    message = f"{where} does not exist; {known}" if error.status_code == 404 else f"{where}: {error.detail.lower()}"
    return error_response(ApiError(message, status=error.status_code, headers=dict(error.headers or {})))
