"""Guard models: how likely each prompt and each answer is unsafe, and by which category.

A verdict is one word, so one forward pass over the prompt is enough: the probabilities of the first token that tells
`unsafe` from the other words. The word "unsafe", and what follows it up to the category, are appended to the prompt, so
the same pass has the probabilities of the categories. A prompt is asked about alone, an answer with its prompt.

Nothing is guessed. Where the words of a verdict have less than half of the probability, the model does not answer in
its format, and the text has no result. Where two categories begin with the same token, neither is named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
import polars as pl

from curate.dataset import arrow
from curate.errors import ModelError, RecipeError
from curate.filters.quality import GUARD
from curate.rendering.chat_template.renderer import JinjaRenderer
from curate.rendering.renderer import LossRule, Renderer
from curate.rendering.resplit import join_pieces
from curate.rendering.splitter import TOO_LONG
from curate.schemas.conversation import Message
from curate.scoring.documents import Document, Ids, concatenate
from curate.scoring.guards import QUESTION, Family
from curate.scoring.opening import FoundModel
from curate.scoring.reader import Reader
from curate.scoring.work import Prepared, Result
from curate.tokenization.tokenizer import Tokenizer

NAME = "guard"
NO_VERDICT = "no_verdict"
LEAST_MASS = 0.5  # of the probability that the words of a verdict must have
UNSAFE = 0.5  # above this, a text's category counts
PROBE = "Hello there"
# Before a template that reads a message's content as a list of parts.
PARTS = (
    "{%- set parted = namespace(messages=[]) -%}{%- for message in messages -%}{%- set parted.messages = "
    "parted.messages + [{'role': message['role'], 'content': [{'type': 'text', 'text': message['content']}]}] -%}"
    "{%- endfor -%}{%- set messages = parted.messages -%}"
)
# After a template that ends in no control token, as Llama Guard 1's; a prompt does not have it.
END = "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
NO_LOSS = LossRule(frozenset())


@dataclass(frozen=True)
class Verdict:
    """The ids of a verdict: what is appended to a prompt, and what is read where.

    `appended` ends in the first token of any category, if the guard has some. `places` are the positions in it that are
    read: that of the verdict, and that of the category. `words` are the tokens of unsafe, safe and others; `categories`
    the names by token, None for a token that several begin with.
    """

    appended: Ids
    places: tuple[int, ...]
    words: tuple[int, ...]
    categories: Mapping[int, str | None]

    @property
    def ids(self) -> list[int]:
        """All tokens whose probability is read."""
        return [*self.words, *self.categories]


def make_guard_renderer(found: FoundModel, family: Family, fallback: Renderer | None) -> Renderer:
    """Return the renderer of a guard's prompt: `fallback` for a question, else that of its own chat template.

    Raises ModelError for a guard without one.
    """
    if fallback is not None:
        return fallback
    source = found.source
    if source.chat_template is None:
        access = f"; {family.access}" if family.access else ""
        raise ModelError(
            f"{source.name!r} has no chat template, which is a guard's prompt; copy tokenizer_config.json (or "
            f"chat_template.jinja) from its page on the Hub into its folder{access}"
        )
    return own_renderer(source.tokenizer, source.chat_template)


def own_renderer(tokenizer: Tokenizer, chat_template: str) -> Renderer:
    """Return the renderer of a guard's own chat template, whose prompts have the ids of transformers.

    Raises RecipeError for a template that cannot be used.
    """
    errors: list[RecipeError] = []
    for before, after in (("", ""), (PARTS, ""), ("", END), (PARTS, END)):
        try:
            return JinjaRenderer(before + chat_template + after, tokenizer, NO_LOSS)
        except RecipeError as error:
            errors.append(error)
    raise errors[0]


@dataclass(frozen=True)
class GuardPreparer:
    """Builds the guard's prompt for each prompt and answer of a batch; can be pickled."""

    renderer: Renderer
    family: Family
    window: int  # tokens

    def __call__(self, batch: bytes) -> list[Prepared]:
        """Prepare a batch of `arrow.read_batches`."""
        sources = arrow.decode_batch(batch)
        texts = [find_texts(join_pieces(rows)) for rows in sources]
        rendered = iter(self.render([text for each in texts for _, text in each]))
        return [
            self._prepare(rows, [role for role, _ in each], [next(rendered) for _ in each])
            for rows, each in zip(sources, texts, strict=True)
        ]

    def render(self, texts: Sequence[Sequence[Message]]) -> list[Ids | str]:
        """Return the ids of the guard's prompt for each text, or the rule by which it cannot be made."""
        if self.family.template == QUESTION:
            texts = [[self._ask(text)] for text in texts]
        if not texts:
            return []
        batch = self.renderer.render_prompts(texts)
        ids = (batch.encoded.ids[batch.encoded.tokens_of(index)] for index in range(len(texts)))
        return [batch.problems[i].rule if i in batch.problems else each for i, each in enumerate(ids)]

    def _ask(self, text: Sequence[Message]) -> Message:
        parts = {message.role: message.content for message in text}
        template = self.family.answer if "assistant" in parts else self.family.prompt
        # One pass, so that braces in a text are not replaced.
        before, _, rest = template.partition("{prompt}")
        middle, _, after = rest.partition("{answer}")
        return Message("user", before.lstrip() + parts.get("user", "") + middle + parts.get("assistant", "") + after)

    def _prepare(self, rows: Sequence[arrow.Row], roles: Sequence[str], rendered: Sequence[Ids | str]) -> Prepared:
        documents, asked, unscored = [], list[bool](), Counter[str]()
        for ids in rendered:
            rule = ids if isinstance(ids, str) else None
            if rule is None and len(ids) + len(self.verdict.appended) > self.window:
                rule = TOO_LONG
            asked.append(rule is None)
            if rule is None:
                documents.append(self.document(np.asarray(ids, np.int32)))
            else:
                unscored[rule] += 1
        return Prepared(len(rows), documents, list(zip(roles, asked, strict=True)), unscored)

    def document(self, prompt: Ids) -> Document:
        """Return a prompt with the verdict appended."""
        mask = np.zeros(len(prompt) + len(self.verdict.appended), np.bool_)
        mask[[len(prompt) + place for place in self.verdict.places]] = True
        return Document(np.concatenate([prompt, self.verdict.appended]), mask)

    @cached_property
    def preamble(self) -> Ids:
        """The prompt for a short text."""
        ids = self.render([[Message("user", PROBE)]])[0]
        if isinstance(ids, str):
            raise ModelError(f"the guard's chat template refuses a prompt ({ids})")
        return ids

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict's ids; raises ModelError where unsafe and safe begin with the same tokens."""
        prompt = self.renderer.tokenizer.decode(self.preamble.tolist())
        lead, family = self.family.lead_after(prompt), self.family
        words = [self._encode(lead + word) for word in (family.unsafe, family.safe, *family.others)]
        common = _common(words)
        tokens = tuple(word[common] if len(word) > common else -1 for word in words)
        if len(set(tokens)) < len(tokens) or -1 in tokens:
            raise ModelError("the guard's tokenizer does not tell its verdicts apart by one token")
        categories = family.categories(prompt)
        coded = {name: self._encode(lead + family.unsafe + family.between + code) for code, name in categories.items()}
        start = _common(list(coded.values()))
        if len(coded) < 2 or start <= common or any(len(ids) == start for ids in coded.values()):
            return Verdict(np.array(words[0][: common + 1], np.int32), (common,), tokens, {})
        first = Counter(ids[start] for ids in coded.values())
        names = {ids[start]: name if first[ids[start]] == 1 else None for name, ids in coded.items()}
        appended = next(iter(coded.values()))[: start + 1]
        return Verdict(np.array(appended, np.int32), (common, start), tokens, names)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.renderer.tokenizer.encode_continuation([text])[0].tolist()
        return ids


def _common(texts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens at the start all texts share."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False)))


def find_texts(messages: Sequence[Message]) -> list[tuple[str, list[Message]]]:
    """Return each prompt, and each answer with the prompt before it; nothing else is asked about."""
    texts: list[tuple[str, list[Message]]] = []
    prompt: list[Message] = []
    for message in messages:
        plain = Message(message.role, message.content)
        if message.role == "user":
            prompt = [plain]
            texts.append(("user", prompt))
        elif message.role == "assistant":
            texts.append(("assistant", [*prompt, plain]))
    return texts


@dataclass(frozen=True)
class Guard:
    """The measure: the probability that each text is unsafe, and its category."""

    verdict: Verdict
    least_mass: float = LEAST_MASS
    name: str = NAME

    def score(self, reader: Reader, prepared: Sequence[Prepared]) -> list[Result]:
        """Return for each conversation a list with [role, probability, category] of each text.

        The probability is None for a text that is not asked about, -1 for one without a verdict.
        """
        documents = [document for item in prepared for document in item.documents]
        scores = iter(reader.log_probabilities(concatenate(documents), self.verdict.ids) if documents else [])
        return [
            [[role, *(self.read(next(scores)) if asked else (None, None))] for role, asked in item.detail]
            for item in prepared
        ]

    def read(self, scores: Any) -> tuple[float, str | None]:
        """Return a text's probability and category, from log-probabilities [places, ids]."""
        words = len(self.verdict.words)
        shares = [math.exp(value) for value in scores[0, :words]]
        mass = math.fsum(shares)
        if not mass >= self.least_mass:  # NaN too
            return -1.0, None
        unsafe = shares[0] / mass
        if unsafe <= UNSAFE or not self.verdict.categories:
            return unsafe, None
        best = int(np.argmax(scores[1, words:]))
        return unsafe, list(self.verdict.categories.values())[best]

    def count_unscored(self, result: Result) -> Counter[str]:
        """Count the texts without a verdict."""
        return Counter({NO_VERDICT: sum(probability == -1 for _, probability, _ in result)})

    def columns(self, results: Sequence[Result]) -> pl.DataFrame:
        """Return the signal's columns, one row for each conversation."""
        rows = [_measure(result) for result in results]
        return pl.DataFrame({name: [row[name] for row in rows] for name in GUARD}, schema=GUARD)


def _measure(result: Result) -> dict[str, Any]:
    known = [(role, None if probability == -1 else probability) for role, probability, _ in result]
    values = [probability for _, probability in known if probability is not None]
    return {
        "unsafe_probability": max(values, default=None),
        "prompt_unsafe": [probability for role, probability in known if role == "user"],
        "answer_unsafe": [probability for role, probability in known if role == "assistant"],
        "unsafe_categories": sorted({category for _, _, category in result if category}),
    }
