"""Perplexity and IFD of answers: how likely a model finds each one after its prompt, and by itself.

Each answer is read twice: in its piece, as in training, and alone after the begin token (the end token, for a tokenizer
without one), which is the text's only context. Both times the same tokens are scored: those of the answer, with its
stop token. IFD is the quotient of the two perplexities (Li et al. 2024, arXiv 2308.12032, "Instruction-Following
Difficulty"; section 2).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from curate.dataset import arrow
from curate.errors import RecordError
from curate.filters.quality import LIKELIHOOD
from curate.rendering import proof
from curate.rendering.preparation import REWRITTEN
from curate.rendering.renderer import Renderer
from curate.rendering.resplit import join_pieces
from curate.rendering.splitter import TOO_LONG, Piece, piece_positions, split_with
from curate.schemas.conversation import Message
from curate.schemas.prompts import fold_system, system_positions
from curate.schemas.reading.tool_calls import order_results
from curate.scoring.documents import Document, Ids, Mask, concatenate
from curate.scoring.reader import Reader
from curate.scoring.work import Prepared, Result

NAME = "likelihood"
NO_NUMBER = "no_number"
MAX_EXPONENT = 88.0  # e^88 is about the largest number that fp32 holds
Span = tuple[int, int]  # of tokens: start and stop


@dataclass(frozen=True)
class _Part:
    """Messages that are rendered as one document, and the number in its conversation of each answer to score."""

    conversation: int
    messages: Sequence[Message]
    answers: Sequence[int]


@dataclass
class _Draft:
    """The documents of a conversation, and which answer each span of scored tokens belongs to."""

    answers: int
    documents: list[Document] = field(default_factory=list)
    spans: list[list[tuple[int, int]]] = field(default_factory=list)  # of each document: answer, and scored tokens
    unscored: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class LikelihoodPreparer:
    """Renders the conversations of a batch, and each answer alone; can be pickled."""

    renderer: Renderer
    window: int  # tokens

    def __call__(self, batch: bytes) -> list[Prepared]:
        """Prepare a batch of `arrow.read_batches`."""
        sources = arrow.decode_batch(batch)
        conversations = [join_pieces(rows) for rows in sources]
        drafts = [_Draft(sum(message.role == "assistant" for message in messages)) for messages in conversations]
        parts = self._split(conversations, drafts)
        self._render(parts, drafts, final=False)
        return [
            Prepared(len(rows), draft.documents, (draft.answers, draft.spans), draft.unscored)
            for rows, draft in zip(sources, drafts, strict=True)
        ]

    def _split(self, conversations: Sequence[Sequence[Message]], drafts: Sequence[_Draft]) -> list[_Part]:
        """Return the pieces that fit the window; answers of exchanges that do not are counted."""
        parts = []
        split = split_with(self.renderer.counter(), conversations, self.window)
        for index, (messages, result) in enumerate(zip(conversations, split, strict=True)):
            parts += [self._part(index, messages, piece) for piece in result.pieces]
            for lost in result.rejected:
                drafts[index].unscored[lost.rule] += self._count(messages[lost.start : lost.stop])
        return parts

    def _part(self, conversation: int, messages: Sequence[Message], piece: Piece) -> _Part:
        positions = piece_positions(piece, system_positions(messages))
        number = sum(message.role == "assistant" for message in messages[: piece.start])
        own = order_results(self.renderer.choices.apply([messages[position] for position in positions]))
        answers = [message for message in own if message.role == "assistant"]
        supervised = [number + place for place, message in enumerate(answers) if self._is_scored(message)]
        return _Part(conversation, own if self.renderer.mid_system else list(fold_system(own)), supervised)

    def _is_scored(self, message: Message) -> bool:
        return message.role == "assistant" and self.renderer.loss.supervises(message)

    def _count(self, messages: Sequence[Message]) -> int:
        return sum(map(self._is_scored, messages))

    def _render(self, parts: Sequence[_Part], drafts: Sequence[_Draft], *, final: bool) -> None:
        """Add the documents of parts that pass the proof; the others are rendered once for each answer, if `final` not.

        So are parts in which the scored spans are not one for each answer, such as where reasoning is not trained on.
        """
        parts = [part for part in parts if part.answers]
        if not parts:
            return
        conversations = [part.messages for part in parts]
        rendered = self.renderer.render_batch(conversations)
        problems = proof.prove(self.renderer, conversations, rendered)
        again = []
        for index, part in enumerate(parts):
            tokens = rendered.encoded.tokens_of(index)
            ids, mask = rendered.encoded.ids[tokens], rendered.encoded.loss_mask[tokens]
            problem = problems.get(index)
            if problem is None and len(ids) > self.window:
                problem = RecordError(TOO_LONG, "")
            spans = _find_spans(mask) if problem is None else []
            if len(part.answers) == 1 and spans:
                spans = [(spans[0][0], spans[-1][1])]
            unclear = problem is None and len(spans) != len(part.answers)
            if not final and (unclear or (problem is not None and problem.rule in REWRITTEN)):
                rows = self.renderer.answer_rows(part.messages)
                again += [
                    _Part(part.conversation, messages, [answer])
                    for messages, answer in zip(rows, part.answers, strict=len(rows) > 0)
                ]
                if rows:
                    continue
            if problem is not None or unclear:
                rule = problem.rule if problem is not None else "mask_differs"
                drafts[part.conversation].unscored[rule] += len(part.answers)
                continue
            self._add(drafts[part.conversation], ids, mask, part.answers, spans)
        self._render(again, drafts, final=True)

    def _add(self, draft: _Draft, ids: Ids, mask: Mask, answers: Sequence[int], spans: Sequence[Span]) -> None:
        """Add a document with its answers, and one for each answer alone."""
        counts = [int(mask[start:stop].sum()) for start, stop in spans]
        draft.documents.append(Document(ids, mask))
        draft.spans.append(list(zip(answers, counts, strict=True)))
        for answer, count, (start, stop) in zip(answers, counts, spans, strict=True):
            context = np.array([self._start_id], dtype=np.int32)
            alone = Document(np.concatenate([context, ids[start:stop]]), np.append(False, mask[start:stop]))
            draft.documents.append(alone)
            draft.spans.append([(answer, count)])

    @property
    def _start_id(self) -> int:
        """The token before an answer by itself."""
        info = self.renderer.tokenizer.info
        known = [token for token in (info.bos_id, info.eos_id, *self.renderer.stop_ids) if token is not None]
        return known[0]


def _find_spans(mask: Mask) -> list[Span]:
    """Return the spans of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


class Likelihood:
    """The measure: scores prepared conversations with a reader, and makes columns of the results."""

    name = NAME

    def score(self, reader: Reader, prepared: Sequence[Prepared]) -> list[Result]:
        """Return for each conversation a list with [loss with prompt, loss alone, tokens] of each answer.

        None stands for an answer that is not read, an empty list for one whose loss is no number.
        """
        documents = [document for item in prepared for document in item.documents]
        losses = iter(reader.losses(concatenate(documents)) if documents else [])
        return [_collect(item, [next(losses) for _ in item.documents]) for item in prepared]

    def count_unscored(self, result: Result) -> Counter[str]:
        """Count the answers of a conversation that were read without a result, by reason."""
        return Counter({NO_NUMBER: sum(each == [] for each in result)})

    def columns(self, results: Sequence[Result]) -> pl.DataFrame:
        """Return the signal's columns, one row for each conversation."""
        rows = [_measure(result) for result in results]
        return pl.DataFrame({name: [row[name] for row in rows] for name in LIKELIHOOD}, schema=LIKELIHOOD)


def _collect(item: Prepared, losses: Sequence[Any]) -> Result:
    """Return the results of one conversation, from the losses of its documents."""
    count, spans = item.detail
    sums: list[list[float]] = [[] for _ in range(count)]
    tokens = [0] * count
    for own, values in zip(spans, losses, strict=True):
        bounds = [0, *np.cumsum([size for _, size in own]).tolist()]
        for (answer, size), (start, stop) in zip(own, pairwise(bounds), strict=True):
            sums[answer].append(math.fsum(values[start:stop]))
            tokens[answer] = size
    results: Result = []
    for both, size in zip(sums, tokens, strict=True):
        results.append(([*both, size] if all(map(math.isfinite, both)) else []) if both else None)
    return results


def _measure(result: Result) -> dict[str, Any]:
    """Return the values of a conversation's columns."""
    answers = [(_perplexity(each[0], each[2]), _ifd(each)) if each else None for each in result]
    known = [each for each in result if each]
    if not known:
        return dict.fromkeys(LIKELIHOOD)
    total = [math.fsum(column) for column in zip(*known, strict=True)]
    return {
        "perplexity": _perplexity(total[0], total[2]),
        "ifd": _ifd(total),
        "worst_ifd": max(ifd for _, ifd in filter(None, answers)),
        "answer_perplexities": [each and each[0] for each in answers],
        "answer_ifds": [each and each[1] for each in answers],
    }


def _perplexity(loss: float, tokens: float) -> float:
    return math.exp(min(loss / tokens, MAX_EXPONENT))


def _ifd(sums: Sequence[float]) -> float:
    """Return IFD: the perplexity with the prompt divided by that without."""
    with_prompt, alone, tokens = sums
    return math.exp(min((with_prompt - alone) / tokens, MAX_EXPONENT))
