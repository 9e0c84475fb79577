"""Chat with a model: prompts as in training, answers token by token, within the model's window."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from curate.errors import InputError
from curate.inference.sampling import Sampling, TextDecoder, stream_tokens
from curate.model import artifact as artifacts
from curate.model import sources
from curate.model.artifact import Artifact
from curate.model.files import OnMessage
from curate.model.serving import Serving, answer_lead
from curate.schemas.conversation import Message

DEFAULT_SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=512)  # evaluations are greedy instead


@dataclass(frozen=True)
class AnswerStats:
    """How an answer was generated."""

    stopped: bool  # by a stop token, not by a limit or the caller
    tokens: int  # without the stop token
    seconds: float
    left_out: int  # earlier exchanges that did not fit the window


class Chat:
    """A conversation with a model over several messages."""

    def __init__(
        self,
        model: nn.Module,
        serving: Serving,
        *,
        system: str = "",
        sampling: Sampling = DEFAULT_SAMPLING,
        artifact: Artifact | None = None,
    ) -> None:
        self.model: Any = model.eval()
        self.serving = serving
        self.system = system
        self.sampling = sampling
        self.artifact = artifact  # where the model came from
        self.renderer = artifacts.renderer_for(serving)
        self.window: int = _window(self.model)  # tokens of prompt and answer, 0 if unknown
        self.messages: list[Message] = []
        self.as_base = False  # answer without the adapter
        self.last: AnswerStats | None = None

    @property
    def has_adapter(self) -> bool:
        """Whether the model has an adapter, which `as_base` turns off."""
        return hasattr(self.model, "disable_adapter")

    def reset(self) -> None:
        """Begin a new conversation."""
        self.messages = []

    def ask(self, text: str) -> str:
        """Return the answer to a message; raises InputError as `stream` does."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Yield the answer to a message as it is generated; if the caller stops early, `messages` keeps that part.

        Raises InputError for a message that does not fit the model's window.
        """
        messages = [*self.messages, Message("user", text)]
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
            self.messages = [*messages, Message("assistant", answer)]
            self.last = AnswerStats(stopped, count, time.perf_counter() - start, left_out)

    def _prompt(self, messages: list[Message]) -> tuple[list[int], int]:
        """Return the ids of the prompt, and how many of the first exchanges were left out to fit the window.

        Raises InputError if not even the last message fits.
        """
        opening = [Message("system", self.system)] if self.system else []
        answer_size = min(self.sampling.max_new_tokens, max(1, self.window // 4))  # tokens to leave free
        for left_out in range(0, len(messages), 2):  # messages: a prompt and its answer at a time
            ids: list[int] = self.renderer.generation_prompt([*opening, *messages[left_out:]]).tolist()
            if not self.window or len(ids) + answer_size <= self.window:
                return ids, left_out // 2
        raise InputError(
            f"the prompt has {len(ids):,} tokens, too many for the model's window of {self.window:,} with an answer; "
            "send a shorter message"
        )


def _window(model: Any) -> int:
    """Return the longest sequence that a model supports in tokens, 0 if unknown."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)


def chat(
    name: str,
    *,
    base: str | None = None,
    system: str = "",
    template: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantise: bool | None = None,
    other_base: bool = False,
    say: OnMessage = sources.ignore_message,
    **settings: Any,
) -> Chat:
    """Load a model, an adapter on its base, or the result of a run, and return a conversation with it.

    `settings` are those of `Sampling`: temperature, top_p, top_k, repetition, seed, max_new_tokens. `quantise` keeps
    the weights in 4 bits, by default as in training. `other_base` accepts a base that the adapter was not trained on.
    Raises CurateError with what to type.
    """
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
    return Chat(model, serving, system=system, sampling=sampling, artifact=artifact)
