"""Messages to ids and loss mask, built together: by a built-in template, or by a model's own Jinja chat template.

Ids are those of the reference tokenizer for the text between two control tokens; control tokens are placed as
ids, so a control string in a message stays text. What a model is asked with (`generation_prompt`) is a prefix
of what it is trained on. The proof of all this is in `curate.rendering.proof`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError, RecipeError, RecordError, did_you_mean
from curate.rendering.compiled_template import ANSWERS
from curate.rendering.encode import Rows
from curate.rendering.placeholders import Words
from curate.rendering.proof_fast import Decoding, Told, decoding
from curate.rendering.split import Counting
from curate.schemas.conversation import ROLES, Message, Role
from curate.tokenization.tokenizer import Tokenizer

ROLE_LOSS = "roles:"


@dataclass(frozen=True)
class Rendered:
    """One conversation's ids and loss mask, both [tokens]."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Written:
    """A batch of renderings; of those in `problems`, by their place, there are no tokens but a reason."""

    rows: Rows
    problems: dict[int, RecordError] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """What the messages say must be found in a rendering, told without any ids.

    `words`: each trained message's text as the template writes it, and the control token after it that is trained too.
    `asked`: for each trained answer the text between the last control token and the answer. `bos`: how many.
    """

    words: list[Words]
    asked: list[str]
    bos: int


class Renderer(Protocol):
    """Writes conversations as ids and mask; pickles."""

    name: str
    tokenizer: Tokenizer
    loss: Loss

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer."""

    @property
    def decoding(self) -> Decoding | None:
        """How ids are decoded at once; null where the tokenizer's ids do not tell their bytes."""

    def write(self, conversations: Sequence[Sequence[Message]]) -> Written:
        """Return many renderings at once, and why there are none of some conversations."""

    def write_prompts(self, conversations: Sequence[Sequence[Message]]) -> Written:
        """Return what asks for the next answer, for each conversation; nothing in it is trained."""

    def expected(self, messages: Sequence[Message]) -> Expected:
        """Return what a rendering must hold."""

    def told(self, messages: Sequence[Message]) -> Told | None:
        """Return what a rendering must spell, for the quick half of the proof; null where that cannot be told."""

    def counter(self) -> Counting:
        """Return what the splitter counts pieces with."""

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Return each rendering; raises CurateError for the first that cannot be written."""

    def generation_prompt(self, messages: Sequence[Message]) -> NDArray[np.int32]:
        """Return the ids that ask for the next answer: a prefix of the training ids; raises CurateError."""


# ---- what the loss counts


@dataclass(frozen=True)
class Loss:
    """Whose messages are trained on, where their `train` holds; `last`: only the last answer of a conversation."""

    roles: frozenset[Role] = ANSWERS
    last: bool = False

    def select(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages with `train` taken from those that the loss leaves out."""
        if not self.last:
            return messages
        final = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
        return [message if i == final else replace(message, train=False) for i, message in enumerate(messages)]


def parse_loss(text: str) -> Loss:
    """Read `all`, `last` or `roles:assistant,tool`; raises RecipeError for anything else."""
    if text == "all":
        return Loss()
    if text == "last":
        return Loss(last=True)
    if not text.startswith(ROLE_LOSS):
        raise RecipeError(f"unknown loss {text!r}{did_you_mean(text, ('all', 'last', f'{ROLE_LOSS}assistant,tool'))}")
    named = [name.strip() for name in text.removeprefix(ROLE_LOSS).split(",")]
    unknown = [name for name in named if name not in ROLES]
    if unknown:
        raise RecipeError(f"unknown role {unknown[0]!r} in the loss {text!r}{did_you_mean(unknown[0], ROLES)}")
    return Loss(frozenset(role for role in ROLES if role in named))


# ---- renderers


class Base:
    """What all renderers have in common."""

    tokenizer: Tokenizer

    @cached_property
    def decoding(self) -> Decoding | None:
        """How ids are decoded at once; null where the tokenizer's ids do not tell their bytes."""
        return decoding(self.tokenizer)

    def write(self, conversations: Sequence[Sequence[Message]]) -> Written:
        raise NotImplementedError

    def write_prompts(self, conversations: Sequence[Sequence[Message]]) -> Written:
        raise NotImplementedError

    def told(self, messages: Sequence[Message]) -> Told | None:
        """Return nothing: all of the proof is done step by step."""
        return None

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Return each rendering; raises CurateError for the first that cannot be written."""
        written = self.write(conversations)
        for index, problem in written.problems.items():
            raise CurateError(f"conversation {index} cannot be rendered: {problem.reason}")
        rows = written.rows
        return [Rendered(rows.ids[start:stop], rows.mask[start:stop]) for start, stop in pairwise(rows.offsets)]

    def generation_prompt(self, messages: Sequence[Message]) -> NDArray[np.int32]:
        """Return the ids that ask for the next answer: a prefix of the training ids; raises CurateError."""
        written = self.write_prompts([messages])
        for problem in written.problems.values():
            raise CurateError(f"no prompt can be written: {problem.reason}")
        return written.rows.ids
