"""The methods that need no file of their own: answers to given prompts, and Magpie."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from curate.client.exchange import Reply
from curate.generation.raw_prompt import RawPrompt
from curate.generation.steps import Ask, Asker, Drop, Prompt, Sampling, problem


class GivenPrompts:
    """Prompts of the user's, each as it is."""

    expected = 1.0
    window = 256

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._left = deque(prompts)

    def next(self) -> Prompt | None:
        """Return the next prompt."""
        return self._left.popleft() if self._left else None

    def read(self, ask: Ask, reply: Reply) -> Sequence[Prompt | Drop]:
        """Return nothing: nothing is asked."""
        return ()

    def check(self, prompt: Prompt) -> Drop | None:
        """Keep each: the user gave them."""
        return None

    def accept(self, prompt: Prompt, name: str) -> None:
        """Need nothing more."""


class Magpie:
    """Prompts that an aligned model writes after its own template's opening of a user's turn (arXiv 2406.08464)."""

    expected = 0.8
    window = 256

    def __init__(self, asker: Asker, raw: RawPrompt, sampling: Sampling, system: str) -> None:
        self._asker = asker
        self._raw = raw
        self._sampling = sampling
        self._system = system
        self._asked = 0

    def next(self) -> Ask:
        """Return the same raw prompt again, with another seed."""
        self._asked += 1
        key = f"prompt-{self._asked:06d}"
        return Ask(self._asker.complete(key, self._raw.text, self._raw.stops, self._sampling))

    def read(self, ask: Ask, reply: Reply) -> Sequence[Prompt | Drop]:
        """Return the prompt that was written, up to the first string that ends a turn."""
        if found := problem(reply):
            return [Drop(*found, reply.text, ask.request.key)]
        text = reply.text
        for stop in self._raw.stops:
            text = text.partition(stop)[0]
        text = text.strip()
        if not text:
            return [Drop("empty", "the reply has no text", reply.text, ask.request.key)]
        return [Prompt(text, text, ask.request.key, system=self._system, made_by=ask.request, model=reply.model)]

    def check(self, prompt: Prompt) -> Drop | None:
        """Keep each that is unlike the others."""
        return None

    def accept(self, prompt: Prompt, name: str) -> None:
        """Need nothing more."""
