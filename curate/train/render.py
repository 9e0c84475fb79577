"""Messages to ids and loss mask, built together: by a built-in template, or by a model's own Jinja chat template.

Ids are those of the reference tokenizer for the text between two control tokens; control tokens are placed as
ids, so a control string in a message stays text. What a model is asked with (`generation_prompt`) is a prefix
of what it is trained on. The proof of all this is in `curate.train.proof`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from curate import runs
from curate.errors import CurateError, RecipeError, RecordError, did_you_mean
from curate.layout import ANSWERS, Layout
from curate.runs import Rows
from curate.schemas import prompts
from curate.schemas.conversation import ROLES, Message, Role
from curate.split import Counter, Counting
from curate.tokens import Tokenizer
from curate.train.holes import Words
from curate.train.told import Decoding, Teller, Told, decoding

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


class TemplateRenderer(Base):
    """Renders with one of the built-in templates."""

    def __init__(self, template: prompts.Template, tokenizer: Tokenizer, loss: Loss) -> None:
        self.name = template.name
        self.tokenizer = tokenizer
        self.loss = loss
        self.layout = Layout(template, tokenizer, loss.roles)
        self._teller = Teller(self.layout.template, tokenizer, self.layout.stop_id)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer."""
        return (self.layout.stop_id,)

    def write(self, conversations: Sequence[Sequence[Message]]) -> Written:
        """Return many renderings at once."""
        sheet = runs.Sheet()
        for messages in conversations:
            self.layout.write(sheet, self.loss.select(messages))
        return Written(runs.encode(sheet, self.tokenizer))

    def write_prompts(self, conversations: Sequence[Sequence[Message]]) -> Written:
        """Return what asks for the next answer, for each conversation."""
        sheet = runs.Sheet()
        for messages in conversations:
            self.layout.write_prompt(sheet, messages)
        return Written(runs.encode(sheet, self.tokenizer))

    def told(self, messages: Sequence[Message]) -> Told | None:
        """Return what a rendering must spell; null where others than answers are trained on."""
        return self._teller.tell(self.loss.select(messages)) if self.loss.roles == ANSWERS else None

    def counter(self) -> Counting:
        """Return what the splitter counts pieces with."""
        return Counter(self.layout.template, self.tokenizer, self.loss.roles)

    def expected(self, messages: Sequence[Message]) -> Expected:
        """Return what a rendering must hold, from the template's segments."""
        messages = self.loss.select(messages)
        segments = prompts.render(self.layout.template, messages, roles=self.loss.roles)
        words: dict[int, Words] = {}
        asked: list[str] = []
        run = ""
        for segment in segments:
            if segment.supervised and segment.message is not None:
                if segment.message not in words and messages[segment.message].role == "assistant":
                    asked.append(run)
                text, end = words.get(segment.message, ("", None))
                end = end if segment.control is None else self.tokenizer.control_ids[segment.control]
                words[segment.message] = (text + segment.text, end)
            run = "" if segment.control is not None else run + segment.text
        bos = self.tokenizer.info.bos_id  # an end token may have the same id
        controls = (self.tokenizer.control_ids[one.control] for one in segments if one.control is not None)
        return Expected(list(words.values()), asked, sum(token == bos for token in controls))


def renderer(template: str, tokenizer: Tokenizer, *, loss: str = "all", chat_template: str | None = None) -> Renderer:
    """Return the renderer of a template; with `chat_template`, a Jinja text, that one is used instead.

    `loss`: `all` answers, the `last` one, or `roles:…`; the messages' own `train` and `stop` always hold.
    Raises RecipeError for a template, loss or chat template that is not known or cannot be used.
    """
    selected = parse_loss(loss)
    if chat_template is not None:
        from curate.train.chat_template import ChatTemplateRenderer

        return ChatTemplateRenderer(chat_template, tokenizer, selected)
    return TemplateRenderer(prompts.get(template), tokenizer, selected)
