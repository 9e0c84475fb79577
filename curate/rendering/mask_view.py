"""A conversation's rendering made readable: which text is supervised, and how many tokens each message adds.

Ids and loss mask are those of training, from `curate.rendering.encoding`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise

import numpy as np
from numpy.typing import NDArray

from curate.dataset.arrow import Row
from curate.dataset.manifest import Manifest
from curate.errors import CurateError
from curate.rendering.compiled_template import CompiledTemplate
from curate.rendering.encoding import count_tokens
from curate.rendering.factory import load_set_tokenizer
from curate.rendering.preparation import ExamplePreparer
from curate.rendering.renderer import Renderer
from curate.rendering.text_batch import TextBatch
from curate.schemas import prompts
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer

# The text of a rendering in order, control tokens by name, and for each part whether it is supervised. Adjacent parts
# differ in that.
MaskedText = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class MaskView:
    """A rendering: `supervised` of its `tokens` count in the loss.

    `name` is that of a row where a conversation has one for each answer. `left_out` says why a run leaves it out.
    """

    text: MaskedText
    tokens: int
    supervised: int
    name: str = ""
    left_out: str = ""


class MaskViewer:
    """Renders conversations in one template and tokenizer for display."""

    def __init__(self, template: prompts.Template, tokenizer: Tokenizer) -> None:
        self.compiled = CompiledTemplate(template, tokenizer)

    def count_message_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return how many tokens each message adds to the rendering: [messages], which sum to all of its tokens.

        The first message includes what the template writes before it.
        """
        return self.count_batch([messages])[0]

    def count_batch(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Return the same for many conversations, encoded in one call."""
        # Each exchange is rendered up to each of its messages; a message counts what it adds to the length. Exchanges
        # add up: see `curate.rendering.splitter`.
        batch = TextBatch()
        ranges = [_exchange_ranges(messages) for messages in conversations]
        for messages, exchanges in zip(conversations, ranges, strict=True):
            for start, stop in exchanges:
                for end in range(start + 1, stop + 1):
                    self.compiled.append(batch, messages[start:end], first=start == 0)
        # [messages], in tokens: of each message's exchange up to and including it.
        sizes = iter(count_tokens(batch, self.compiled.tokenizer)[:, 0].tolist() if batch.renderings else [])
        counts: list[list[int]] = []
        for exchanges in ranges:
            counts.append([])
            for start, stop in exchanges:
                counts[-1] += [after - before for before, after in pairwise([0, *islice(sizes, stop - start)])]
        return counts


def view_rows(renderer: Renderer, messages: Sequence[Message]) -> list[MaskView]:
    """Return the rows that a run trains on for a conversation, decoded from their ids, then those it leaves out."""
    row = Row("", 0, list(messages), None, "train", (None, None))
    prepared = ExamplePreparer(renderer, sys.maxsize).prepare([[row]])
    views = [_view(renderer.tokenizer, each.ids, each.loss_mask, each.name) for each in prepared.examples]
    for left, problem in prepared.left_out:
        rendered = renderer.render_batch([left.messages]).encoded
        view = _view(renderer.tokenizer, rendered.ids, rendered.loss_mask, left.name)
        views.append(replace(view, left_out=f"{problem.rule}: {problem.reason}"))
    return views


def _view(tokenizer: Tokenizer, ids: NDArray[np.int32], loss_mask: NDArray[np.bool_], name: str) -> MaskView:
    return MaskView(tuple(decode_masked(tokenizer, ids, loss_mask)), len(ids), int(loss_mask.sum()), name)


def _exchange_ranges(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Return where each exchange starts and stops; the first one includes the system messages."""
    _, starts = prompts.exchanges(messages)  # of each exchange, and the end of the last
    return [(0, starts[1] if len(starts) > 1 else len(messages)), *pairwise(starts[1:])]


def load_viewer(manifest: Manifest, *, bulk: bool = False) -> tuple[MaskViewer | None, str]:
    """Return a viewer with a set's template and tokenizer, or None and the reason; `bulk` is for many conversations."""
    try:
        return MaskViewer(prompts.get(manifest.template), load_set_tokenizer(manifest, bulk=bulk)), ""
    except CurateError as error:
        return None, str(error)


def decode_masked(tokenizer: Tokenizer, ids: NDArray[np.int32], loss_mask: NDArray[np.bool_]) -> list[tuple[str, bool]]:
    """Decode one rendering to parts that are alternately supervised or not; `ids` and `loss_mask` are [tokens]."""
    controls = set(tokenizer.control_ids.values())
    pairs = zip(ids.tolist(), loss_mask.tolist(), strict=True)
    parts: list[tuple[str, bool]] = []
    block: list[int] = []  # ids since the last control token; decoded together, as the first ids may decode differently
    for (is_control, supervised), group in groupby(pairs, key=lambda pair: (pair[0] in controls, pair[1])):
        tokens = [token for token, _ in group]
        # A part's text is what its ids add to the text of the block so far.
        before = tokenizer.decode(block) if block else ""
        block = [] if is_control else [*block, *tokens]
        text = tokenizer.decode(tokens) if is_control else tokenizer.decode(block).removeprefix(before)
        if parts and parts[-1][1] == supervised:
            text = parts.pop()[0] + text
        parts.append((text, supervised))
    return parts


def masked_text(compiled: CompiledTemplate, messages: Sequence[Message]) -> MaskedText:
    """Return a rendering's text and mask without tokenizing it, which is faster than decoding its ids."""
    batch = TextBatch()
    compiled.append(batch, messages)
    controls = batch.controls
    # `bos` and `eos` are curate's aliases of tokens that have a name of their own.
    names = {token: name for name, token in compiled.tokenizer.control_ids.items() if name not in ("bos", "eos")}
    parts: list[tuple[str, bool]] = []
    done = 0  # control tokens that are written
    for block, text in enumerate([*batch.blocks.text, ""]):  # the last one for the control tokens after all blocks
        while done < len(controls) and controls.block[done] == block:
            parts.append((names[controls.token[done]], controls.supervised[done]))
            done += 1
        parts += _cut_block(batch, block, text)
    groups = groupby(parts, key=lambda part: part[1])
    return tuple(("".join(text for text, _ in group), supervised) for supervised, group in groups)


def _cut_block(batch: TextBatch, block: int, text: str) -> Iterator[tuple[str, bool]]:
    """Yield a block's text, cut where supervised spans start and stop."""
    position = 0  # in characters of the block
    for owner, start, stop, supervised in batch.spans.rows():
        if owner == block and supervised and start < stop:
            yield text[position:start], False
            yield text[start:stop], True
            position = stop
    if position < len(text):
        yield text[position:], False
