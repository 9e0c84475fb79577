"""A conversation with a model: its messages rendered as in training, answers token by token, the window kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from curate.errors import InputError
from curate.inference import sampling
from curate.inference.sampling import Sampling
from curate.model import artifact, find, serving
from curate.model.artifact import Result
from curate.model.files import Say
from curate.model.serving import Serving
from curate.schemas.conversation import Message

WARM = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=512)  # for talk; an evaluation is greedy


@dataclass(frozen=True)
class Said:
    """How an answer went: whether it stopped by itself, its tokens and seconds, and the exchanges left out before."""

    stopped: bool
    tokens: int
    seconds: float
    left_out: int


class Chat:
    """A conversation of several turns; `messages` is what was said so far."""

    def __init__(
        self, model: nn.Module, how: Serving, *, system: str = "", choice: Sampling = WARM, found: Result | None = None
    ) -> None:
        self.model: Any = model.eval()
        self.how = how
        self.system = system
        self.sampling = choice
        self.found = found
        self.renderer = artifact.renderer(how)
        self.window: int = _window(self.model)
        self.messages: list[Message] = []
        self.as_base = False  # answers without the adapter
        self.last: Said | None = None

    @property
    def has_adapter(self) -> bool:
        """Whether there is an adapter that can be taken away."""
        return hasattr(self.model, "disable_adapter")

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = []

    def ask(self, text: str) -> str:
        """Return the answer to a message."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Yield the answer to a message as it comes; what was said so far stays, should the caller stop early.

        Raises InputError for a message that does not fit the model's window.
        """
        asked = [*self.messages, Message("user", text)]
        prompt, left_out = self._prompt(asked)
        written = sampling.Text(self.how.tokenizer, serving.lead(self.how.template))
        stops, start = self.how.stop_ids, time.perf_counter()
        stopped, count, said = False, 0, ""
        try:
            with self.model.disable_adapter() if self.as_base and self.has_adapter else nullcontext():
                for token in sampling.stream(self.model, prompt, stops, self.sampling, limit=self.window):
                    stopped = token in stops
                    if not stopped:
                        count += 1
                        new = written.add(token)
                        said += new
                        yield new
            rest = written.finish()
            said += rest
            yield rest
        finally:
            self.messages = [*asked, Message("assistant", said)]
            self.last = Said(stopped, count, time.perf_counter() - start, left_out)

    def _prompt(self, messages: list[Message]) -> tuple[list[int], int]:
        """Return the ids that ask for the next answer, and how many exchanges had to be left out from the start."""
        opening = [Message("system", self.system)] if self.system else []
        least = min(self.sampling.max_new_tokens, max(1, self.window // 4))
        for left_out in range(0, len(messages), 2):
            ids: list[int] = self.renderer.generation_prompt([*opening, *messages[left_out:]]).tolist()
            if not self.window or len(ids) + least <= self.window:
                return ids, left_out // 2
        raise InputError(
            f"the message has {len(ids):,} tokens as rendered, and the model holds {self.window:,} with its answer"
        )


def _window(model: Any) -> int:
    """Return the tokens that a model holds, 0 where it does not say."""
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
    say: Say = find.ignore_message,
    **settings: Any,
) -> Chat:
    """Open a conversation with a model, an adapter on its base, or what a run made.

    `settings` are those of `Sampling`: temperature, top_p, top_k, repetition, seed, max_new_tokens. `quantise` holds
    the weights in 4 bits, by default as in training. Raises CurateError with what to type.
    """
    found = artifact.find(name, base=base)
    how = artifact.served(found, template)
    choice = replace(WARM, **{key: value for key, value in settings.items() if value is not None})
    place = artifact.device(device)
    model = artifact.load(found, place=place, numbers=dtype, quantise=quantise, inference=True, say=say)
    return Chat(model, how, system=system, choice=choice, found=found)
