"""Evol-Instruct: prompts are rewritten into harder ones and into others of their kind (arXiv 2304.12244)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from curate.client.exchange import Reply
from curate.generation.similarity import SimilarTexts
from curate.generation.steps import Ask, Asker, Drop, Prompt, Sampling, problem
from curate.generation.wording import fill, wording

COPY = 0.9  # F of ROUGE-L with its own parent over which a rewriting is a copy
DEEPER = 5 / 6  # of rewritings: WizardLM draws one of five ways deeper and one broader, each as often


class Evolution:
    """Rewritings of given prompts, and of the rewritings, `rounds` times."""

    expected = 0.8
    window = 256

    def __init__(self, asker: Asker, prompts: Sequence[Prompt], sampling: Sampling, rounds: int) -> None:
        self._asker = asker
        self._left = deque(prompts)
        self._sampling = sampling
        self._rounds = rounds
        self._asked = 0
        self._texts = SimilarTexts(COPY)

    def next(self) -> Ask | None:
        """Return a rewriting of the next prompt, None if there is none at this time."""
        if not self._left:
            return None
        parent = self._left.popleft()
        self._asked += 1
        key = f"rewrite-{self._asked:06d}"
        chance, texts = random.Random(f"{self._asker.seed} {key}"), wording()["evolve"]
        change = chance.choice(texts["deeper"] if chance.random() < DEEPER else texts["broader"])
        content = fill(texts["opening"], change=change, prompt=parent.text)
        return Ask(self._asker.chat(key, [{"role": "user", "content": content}], self._sampling), parent)

    def read(self, ask: Ask, reply: Reply) -> Sequence[Prompt | Drop]:
        """Return the rewriting."""
        parent: Prompt = ask.context
        if found := problem(reply):
            return [Drop(*found, reply.text, ask.request.key, parent.text)]
        text = reply.text.strip()
        return (
            [
                Prompt(
                    text,
                    text,
                    ask.request.key,
                    parent.parents,
                    parent.system,
                    made_by=ask.request,
                    model=reply.model,
                    depth=parent.depth + 1,
                )
            ]
            if (drop := self._check(text, parent, ask)) is None
            else [drop]
        )

    def _check(self, text: str, parent: Prompt, ask: Ask) -> Drop | None:
        if (score := self._texts.score(text, parent.text)) > COPY:
            return Drop("copy", f"ROUGE-L {score:.2f} with its parent", text, ask.request.key, parent.text)
        if leak := next(
            (leak for leak in wording()["evolve"]["leaks"] if leak in text.lower() and leak not in parent.text.lower()),
            "",
        ):
            return Drop("leak", f"it speaks of itself: {leak!r}", text, ask.request.key, parent.text)
        return None

    def check(self, prompt: Prompt) -> Drop | None:
        """Keep each that is unlike the others."""
        return None

    def accept(self, prompt: Prompt, name: str) -> None:
        """Rewrite it in the next round."""
        if prompt.depth < self._rounds:
            lineage = (*prompt.parents, name)
            self._left.append(
                Prompt(prompt.text, prompt.instruction, prompt.source, lineage, prompt.system, depth=prompt.depth)
            )
