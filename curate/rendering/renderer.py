"""What all renderers have in common: they turn messages into ids and loss mask in one step.

A control token is always inserted as an id, so a control string in a message stays text. The generation prompt is a
prefix of the training ids. `curate.rendering.proof` checks both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError, RecipeError, RecordError, did_you_mean
from curate.rendering.choices import DEFAULT, Choices
from curate.rendering.compiled_template import ANSWERS
from curate.rendering.encoding import EncodedBatch
from curate.rendering.expected import ExpectedSpans, ExpectedText
from curate.rendering.proof_fast import ByteTable, byte_table
from curate.rendering.splitter import TokenCounter
from curate.schemas.conversation import ROLES, Message, Role
from curate.tokenization.tokenizer import Tokenizer

ROLE_LOSS = "roles:"  # prefix of a loss that names roles


@dataclass(frozen=True)
class Rendered:
    """One conversation's `ids` and `loss_mask`, both [tokens]."""

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


@dataclass(frozen=True)
class RenderedBatch:
    """A batch of renderings, one for each conversation in order; one that failed has no tokens, but a problem."""

    encoded: EncodedBatch
    problems: dict[int, RecordError] = field(default_factory=dict)  # by index in the batch


# ---- the loss


@dataclass(frozen=True)
class LossRule:
    """Which messages are supervised: those of `roles`, or only the last answer; their own `train` must be true too."""

    roles: frozenset[Role] = ANSWERS
    last: bool = False

    def apply(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages; with `last`, `train` is false for all except the last answer."""
        if not self.last:
            return messages
        # -1 without an answer: then nothing is supervised, which the proof reports.
        final = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
        return [message if i == final else replace(message, train=False) for i, message in enumerate(messages)]

    def supervises(self, message: Message) -> bool:
        """Return whether a message that `apply` returned is supervised."""
        return message.train and message.role in self.roles


def parse_loss(text: str) -> LossRule:
    """Parse `all`, `last` or `roles:assistant,tool`; raises RecipeError for anything else."""
    if text == "all":
        return LossRule()
    if text == "last":
        return LossRule(last=True)
    if not text.startswith(ROLE_LOSS):
        raise RecipeError(f"unknown loss {text!r}{did_you_mean(text, ('all', 'last', f'{ROLE_LOSS}assistant,tool'))}")
    names = [name.strip() for name in text.removeprefix(ROLE_LOSS).split(",")]
    unknown = [name for name in names if name not in ROLES]
    if unknown:
        raise RecipeError(f"unknown role {unknown[0]!r} in the loss {text!r}{did_you_mean(unknown[0], ROLES)}")
    return LossRule(frozenset(role for role in ROLES if role in names))  # elements of ROLES, so typed as `Role`


# ---- renderers


class Renderer(ABC):
    """Renders conversations in one template; can be pickled."""

    name: str  # of the template
    tokenizer: Tokenizer
    loss: LossRule  # which messages are supervised
    choices: Choices = DEFAULT

    @property
    def shows_tools(self) -> bool:
        """Whether the template writes the definitions of tools."""
        return False

    @property
    @abstractmethod
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""

    @property
    @abstractmethod
    def mid_system(self) -> bool:
        """Whether the template can say a system message amid the turns."""

    @abstractmethod
    def render_batch(self, conversations: Sequence[Sequence[Message]]) -> RenderedBatch:
        """Render many conversations at once; those that fail are listed in `problems`."""

    @abstractmethod
    def render_prompts(self, conversations: Sequence[Sequence[Message]]) -> RenderedBatch:
        """Render each conversation and the generation prompt after it; nothing is supervised.

        The ids are a prefix of the training ids of the same conversation with an answer.
        """

    @abstractmethod
    def expected_spans(self, messages: Sequence[Message]) -> ExpectedSpans:
        """Return what the supervised spans of a rendering must say, derived without ids."""

    def answer_rows(self, messages: Sequence[Message]) -> list[list[Message]]:
        """Return one conversation for each supervised answer, which ends in it, and of which only it is supervised.

        Empty where that is the conversation itself.
        """
        selected = self.loss.apply(messages)
        rows = [
            [*(replace(message, train=False) for message in messages[:index]), messages[index]]
            for index, message in enumerate(selected)
            if message.role == "assistant" and self.loss.supervises(message)
        ]
        return [] if len(rows) == 1 and len(rows[0]) == len(messages) else rows

    def expected_text(self, messages: Sequence[Message]) -> ExpectedText | None:
        """Return what a rendering must decode to, or None where only the step-by-step proof can decide."""
        return None

    @abstractmethod
    def counter(self) -> TokenCounter:
        """Return the counter that the splitter uses."""

    @cached_property
    def byte_table(self) -> ByteTable | None:
        """The bytes of each id, or None if ids cannot be decoded one by one."""
        return byte_table(self.tokenizer)

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Render conversations; raises CurateError for the first that cannot be rendered."""
        batch = self.render_batch(conversations)
        for index, problem in batch.problems.items():  # the first one, if there is any
            raise CurateError(f"conversation {index} cannot be rendered: {problem.reason}")
        ids, loss_mask = batch.encoded.ids, batch.encoded.loss_mask
        # Views: rendering i is at offsets[i]:offsets[i + 1].
        return [Rendered(ids[start:stop], loss_mask[start:stop]) for start, stop in pairwise(batch.encoded.offsets)]

    def generation_prompt(self, messages: Sequence[Message]) -> NDArray[np.int32]:
        """Return the ids that ask for the next answer, [tokens], a prefix of the training ids.

        Raises CurateError if the template refuses the messages.
        """
        batch = self.render_prompts([messages])
        for problem in batch.problems.values():
            raise CurateError(f"the prompt cannot be rendered: {problem.reason}")
        return batch.encoded.ids
