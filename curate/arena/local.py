"""A model that is loaded in this process, as a contestant; needs the extra `[train]`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

from starlette.concurrency import run_in_threadpool

from curate.arena.contestants import AnswerFailed, AskSettings, Messages, Piece, read_chunk
from curate.errors import CurateError
from curate.serving.errors import ApiError
from curate.serving.exchange import Exchange
from curate.serving.messages import read_messages
from curate.serving.middleware import Counts
from curate.serving.models import ServedModel
from curate.serving.requests import ChatOrder


class LocalModel:
    """A model that is loaded in this process."""

    sampled = True

    def __init__(self, model: ServedModel, origin: str) -> None:
        self.name = model.name
        self.origin: Mapping[str, str] = {"model": origin}
        self._model = model

    async def stream(self, messages: Messages, settings: AskSettings) -> AsyncIterator[Piece]:
        """Yield the next answer; raises AnswerFailed where the chat does not fit the model's window."""
        try:
            read = read_messages(messages)
            prompt = await run_in_threadpool(self._model.chat_prompt, read, None)
            room = min(self._model.room(prompt, None, "max_tokens"), settings.max_tokens)
            order = ChatOrder(model=self.name, messages=[], temperature=settings.temperature, stream=True)
            exchange = Exchange(self._model, order, [prompt], [room], messages=read)
            exchange.submit()
        except (ApiError, CurateError) as error:
            raise AnswerFailed(str(error)) from None
        try:
            async with aclosing(exchange.chunks()) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    if piece := read_chunk(chunk):
                        yield piece
        except ApiError as error:
            raise AnswerFailed(str(error.__cause__ or error)) from None
        finally:
            exchange.close(Counts())

    def close(self) -> None:
        """End the model's thread."""
        self._model.worker.stop()
