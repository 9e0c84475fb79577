"""Chat with a model: prompts as in training, answers token by token, within the model's window."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from curate.errors import InputError
from curate.inference.answers import read_answer
from curate.inference.sampling import Sampling, TextDecoder, stream_tokens
from curate.model import artifact as artifacts
from curate.model import sources
from curate.model.artifact import Artifact
from curate.model.files import OnMessage
from curate.model.serving import Serving, answer_lead
from curate.schemas.conversation import Conversation, Message, with_tools
from curate.schemas.reading.tool_calls import read_tools

DEFAULT_SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=512)  # evaluations are greedy instead


@dataclass(frozen=True)
class AnswerStats:
    """How an answer was generated."""

    stopped: bool  # by a stop token, not by a limit or the caller
    tokens: int  # without the stop token
    seconds: float
    left_out: int  # earlier exchanges that did not fit the window


@dataclass(frozen=True)
class Call:
    """A call of a tool in an answer; `arguments` are JSON text."""

    id: str
    name: str
    arguments: str


class Chat:
    """A conversation with a model over several messages."""

    def __init__(
        self,
        model: nn.Module,
        serving: Serving,
        *,
        system: str = "",
        tools: str | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        artifact: Artifact | None = None,
    ) -> None:
        self.model: Any = model.eval()
        self.serving = serving
        self.system = system
        self.tools = tools  # definitions, as JSON text
        self.sampling = sampling
        self.artifact = artifact  # where the model came from
        self.renderer = artifacts.renderer_for(serving)
        if tools and not self.renderer.shows_tools:
            name = serving.template or "its own chat template"
            raise InputError(f"the model's template ({name}) shows no tools; give one that does: --template llama3.1")
        self.window: int = window_of(self.model)  # tokens of prompt and answer, 0 if unknown
        self.messages: list[Message] = []
        self.open_calls: list[Call] = []  # of the last answer, without a result
        self.as_base = False  # answer without the adapter
        self.last: AnswerStats | None = None

    @property
    def has_adapter(self) -> bool:
        """Whether the model has an adapter, which `as_base` turns off."""
        return hasattr(self.model, "disable_adapter")

    def reset(self) -> None:
        """Begin a new conversation."""
        self.messages = []
        self.open_calls = []

    def ask(self, text: str) -> str:
        """Return the answer to a message; raises InputError as `stream` does."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Yield the answer to a message as it is generated; if the caller stops early, `messages` keeps that part.

        Raises InputError for a message that does not fit the model's window.
        """
        yield from self._stream([*self.messages, Message("user", text)])

    def stream_result(self, text: str) -> Iterator[str]:
        """Take the result of the first open call; yield the answer to it once no call is open.

        Raises InputError if no call is open, and as `stream` does.
        """
        if not self.open_calls:
            raise InputError("the last answer calls no tool, so there is no result to give")
        call = self.open_calls.pop(0)
        self.messages = [*self.messages, Message("tool", text, name=call.name, tool_call_id=call.id)]
        if not self.open_calls:
            yield from self._stream(self.messages)

    def _stream(self, messages: list[Message]) -> Iterator[str]:
        prompt, left_out = self._prompt(messages)
        decoder = TextDecoder(self.serving.tokenizer, answer_lead(self.serving.template))
        stops, start = self.serving.stop_ids, time.perf_counter()
        stopped, count, answer = False, 0, ""
        try:
            with self.model.disable_adapter() if self.as_base and self.has_adapter else nullcontext():
                for token in stream_tokens(self.model, prompt, stops, self.sampling, limit=self.window):
                    stopped = token in stops
                    if not stopped:
                        count += 1
                        new = decoder.add(token)
                        answer += new
                        yield new
            new = decoder.finish()
            answer += new
            yield new
        finally:
            self.messages = [*messages, self._read_answer(answer)]
            self.last = AnswerStats(stopped, count, time.perf_counter() - start, left_out)

    def _read_answer(self, answer: str) -> Message:
        """Return an answer as a message; with `tools`, with its calls, which are open from then on."""
        message = read_answer(answer, self.messages) if self.tools else Message("assistant", answer)
        calls = json.loads(message.tool_calls or "[]")
        self.open_calls = [Call(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
        return message

    def _prompt(self, messages: list[Message]) -> tuple[list[int], int]:
        """Return the ids of the prompt, and how many of the first exchanges were left out to fit the window.

        Raises InputError if not even the last message fits.
        """
        opening = [Message("system", self.system)] if self.system else []
        answer_size = min(self.sampling.max_new_tokens, max(1, self.window // 4))  # tokens to leave free
        starts = [index for index, message in enumerate(messages) if message.role == "user"]  # of exchanges
        for left_out, start in enumerate(starts):
            shown = with_tools([*opening, *messages[start:]], self.tools)
            ids: list[int] = self.renderer.generation_prompt(shown).tolist()
            if not self.window or len(ids) + answer_size <= self.window:
                return ids, left_out
        raise InputError(
            f"the prompt has {len(ids):,} tokens, too many for the model's window of {self.window:,} with an answer; "
            "send a shorter message"
        )


def read_definitions(path: Path) -> str:
    """Return the definitions of tools in a JSON file, in any form that records have them in; raises InputError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the tools {str(path)!r}: {error}") from None
    definitions = read_tools(Conversation(None, []), text)
    if definitions is None:
        raise InputError(
            f"{str(path)!r} holds no definitions of tools; give a JSON list of "
            '{"type": "function", "function": {"name": …, "parameters": …}}'
        )
    return definitions


def window_of(model: Any) -> int:
    """Return the longest sequence that a model supports in tokens, 0 if unknown."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)


def chat(
    name: str,
    *,
    base: str | None = None,
    system: str = "",
    tools: str | Path | None = None,
    template: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantise: bool | None = None,
    other_base: bool = False,
    say: OnMessage = sources.ignore_message,
    **settings: Any,
) -> Chat:
    """Load a model, an adapter on its base, or the result of a run, and return a conversation with it.

    `tools` is a JSON file with the definitions of tools that the model may call; nothing is executed.
    `settings` are those of `Sampling`: temperature, top_p, top_k, repetition, seed, max_new_tokens. `quantise` keeps
    the weights in 4 bits, by default as in training. `other_base` accepts a base that the adapter was not trained on.
    Raises CurateError with what to type.
    """
    definitions = None if tools is None else read_definitions(Path(tools))
    artifact = artifacts.find_artifact(name, base=base)
    serving = artifacts.serving_of(artifact, template)
    sampling = replace(DEFAULT_SAMPLING, **{key: value for key, value in settings.items() if value is not None})
    torch_device = artifacts.choose_device(device)
    model = artifacts.load_artifact(
        artifact,
        device=torch_device,
        dtype=dtype,
        quantise=quantise,
        inference=True,
        other_base=other_base,
        say=say,
    )
    return Chat(model, serving, system=system, tools=definitions, sampling=sampling, artifact=artifact)
