"""One request while its answers are generated: its jobs, and the objects that the response is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from curate.inference.answers import Part, Placed, read_answer
from curate.inference.grammar import Grammar, GrammarError
from curate.schemas.conversation import Message
from curate.serving import responses
from curate.serving.errors import failed
from curate.serving.forms import Form
from curate.serving.models import Prompt, ServedModel
from curate.serving.requests import ChatOrder, CompletionOrder
from curate.serving.responses import Answer, Head
from curate.serving.worker import Deliver, Job


class Exchange:
    """The answers to one request, `n` for each prompt; used in the event loop."""

    def __init__(
        self,
        model: ServedModel,
        order: ChatOrder | CompletionOrder,
        prompts: Sequence[Prompt],
        rooms: Sequence[int],
        *,
        messages: Sequence[Message] = (),
        has_tools: bool = False,
        form: Form | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        self.order = order
        self.prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        self._model = model
        self._messages = messages
        self._has_tools = has_tools
        self._form = form
        self._head = Head(model.name, chat=isinstance(order, ChatOrder))
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[tuple[int, Part | Exception]] = asyncio.Queue()
        samplings = order.samplings(order.n or 1)
        places = [
            (prompt, room, sampling) for prompt, room in zip(prompts, rooms, strict=True) for sampling in samplings
        ]
        self.answers = [Answer(index) for index in range(len(places))]
        self._jobs = [
            model.job(
                prompt,
                sampling,
                self._deliver(index),
                room=room,
                stops=order.stops,
                scored=order.scored,
                grammar=grammar,
            )
            for index, (prompt, room, sampling) in enumerate(places)
        ]

    def _deliver(self, index: int) -> Deliver:
        """Return the function that the worker's thread calls for the parts of one answer."""

        def deliver(part: Part | Exception) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                self._loop.call_soon_threadsafe(self._parts.put_nowait, (index, part))

        return deliver

    def submit(self) -> None:
        """Begin; raises ApiError if too many requests wait."""
        self._model.submit(self._jobs)

    def close(self, counts: Any) -> None:
        """Free the places of answers that have not ended, and note the counts for the log."""
        counts.answer_tokens = sum(job.reader.count for job in self._jobs)
        counts.endings = tuple(answer.finish_reason or "cut" for answer in self.answers)
        self._model.worker.cancel(self._jobs)

    async def _arrivals(self) -> AsyncIterator[tuple[Answer, Part]]:
        """Yield the parts of all answers as they arrive, until all have ended; raises ApiError if one fails."""
        open_answers = len(self.answers)
        while open_answers:
            index, part = await self._parts.get()
            if isinstance(part, GrammarError) and self._form:
                raise self._form.refuse(part)
            if isinstance(part, Exception):
                raise failed() from part
            answer = self.answers[index]
            answer.add(part)
            if part.ending:
                open_answers -= 1
                answer.count = self._job_count(index)
                answer.message = self._read(answer.text)
            yield answer, part

    def _job_count(self, index: int) -> int:
        job: Job = self._jobs[index]
        return job.reader.count

    def _read(self, text: str) -> Message:
        return read_answer(text, self._messages) if self._has_tools else Message("assistant", text)

    def _usage(self) -> dict[str, int]:
        return responses.usage(self.prompt_tokens, sum(answer.count for answer in self.answers))

    def _scores(self, tokens: Sequence[Placed]) -> dict[str, Any] | None:
        if self.order.scored is None:
            return None
        write = responses.chat_scores if self._head.chat else responses.text_scores
        return write(tokens, self._model.token_bytes)

    # ---- a whole response

    async def collect(self) -> dict[str, Any]:
        """Return the response once all answers have ended."""
        async for _ in self._arrivals():
            pass
        choices = [self._choice(answer) for answer in self.answers]
        return self._head.object(choices, chunk=False, usage=self._usage())

    def _choice(self, answer: Answer) -> dict[str, Any]:
        scores = self._scores(answer.tokens)
        if self._head.chat:
            return responses.chat_choice(answer, scores)
        return responses.text_choice(answer.index, answer.text, scores, answer.finish_reason)

    # ---- a stream

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed response.

        With tools, an answer comes in one piece at its end: until then, its text may turn out to be a call.
        """
        no_usage: dict[str, Any] = {"usage": None} if self.order.include_usage else {}
        if self._head.chat:
            for answer in self.answers:
                start = responses.chat_delta(answer.index, {"role": "assistant", "content": ""})
                yield self._head.object([start], chunk=True, **no_usage)
        async for answer, part in self._arrivals():
            for choice in self._chunk_choices(answer, part):
                yield self._head.object([choice], chunk=True, **no_usage)
        if self.order.include_usage:
            yield self._head.object([], chunk=True, usage=self._usage())

    def _chunk_choices(self, answer: Answer, part: Part) -> list[dict[str, Any]]:
        """Return the choices of the chunks that a part becomes."""
        if not self._head.chat:
            scores = self._scores(part.tokens)
            return [responses.text_choice(answer.index, part.text, scores, answer.finish_reason)]
        if self._has_tools:
            return self._whole(answer) if part.ending else []
        scores = self._scores(part.tokens)
        choices = []
        if part.text or part.tokens:
            choices.append(responses.chat_delta(answer.index, {"content": part.text}, scores))
        if part.ending:
            choices.append(responses.chat_delta(answer.index, {}, reason=answer.finish_reason))
        return choices

    def _whole(self, answer: Answer) -> list[dict[str, Any]]:
        """Return an answer that may have calls, in deltas: its text, its calls, and why it ended."""
        content = answer.message.content if answer.message else ""
        choices = []
        if content or answer.tokens:
            scores = self._scores(answer.tokens)
            choices.append(responses.chat_delta(answer.index, {"content": content}, scores))
        if answer.calls:
            calls = {"tool_calls": responses.call_delta(answer.calls)}
            choices.append(responses.chat_delta(answer.index, calls))
        return [*choices, responses.chat_delta(answer.index, {}, reason=answer.finish_reason)]
