"""The proof of ids and loss mask, for every conversation, before the first training step.

It checks that the supervised ids decode to the answers' text and the stop token after each; that every supervised
answer is closed; that begin tokens are exactly where the template puts them; that generation prompts are prefixes of
the training ids; and that something is supervised. Messages are compared with decoded ids as text, so the proof does
not rely on skeletons or offsets. A conversation that fails is left out and listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
from numpy.typing import NDArray

from curate.errors import RecordError
from curate.rendering.encoding import EncodedBatch
from curate.rendering.expected import EndedText, ExpectedSpans, utf8
from curate.rendering.proof_fast import accept, control_bytes, starts_block, supervised_spans
from curate.rendering.renderer import RenderedBatch, Renderer
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer

Problems = dict[int, RecordError]  # by the conversation's index in the batch

RULES = {
    "nothing_trained": "No token of the conversation is trained on.",
    "wrong_bos": "The begin token is not exactly where the template puts it.",
    "mask_differs": "The tokens that are trained on, decoded, are not the answers' text with their stop tokens.",
    "not_closed": "No stop token follows an answer.",
    "prompt_no_prefix": "The ids that the model will be prompted with are not a prefix of the training ids.",
    "template_refuses": "The chat template refuses the conversation.",
    "template_rewrites": "The chat template changes an answer, or changes earlier messages when later ones follow.",
}
SAMPLE_EVERY = 100  # renderings; one of these is proven step by step, even if the fast proof accepts it
EVIDENCE = 200  # characters of decoded and expected text


@dataclass(frozen=True)
class _Batch:
    """A batch that is being proven."""

    renderer: Renderer
    conversations: Sequence[Sequence[Message]]
    encoded: EncodedBatch
    expected: list[ExpectedSpans]  # [conversations]
    owners: NDArray[np.int64]  # the conversation of each token: [tokens]

    def count(self, tokens: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how many of the selected tokens each conversation has: [conversations]."""
        return np.bincount(self.owners[tokens], minlength=len(self.encoded))


def prove(renderer: Renderer, conversations: Sequence[Sequence[Message]], rendered: RenderedBatch) -> Problems:
    """Return the first problem of each conversation that fails.

    The fast proof accepts most conversations. The others, and one in 100 of all, are proven step by step.
    """
    accepted = _accept_fast(renderer, conversations, rendered)
    accepted[::SAMPLE_EVERY] = False  # a check on the fast proof itself
    indices = np.flatnonzero(~accepted).tolist()
    if not indices:
        return {}
    # From here on indices are those of the selection; what failed to render was not accepted, so it is part of it.
    problems = {indices.index(i): problem for i, problem in rendered.problems.items()}
    unproven = RenderedBatch(rendered.encoded.select(indices), problems)
    problems = prove_stepwise(renderer, [conversations[i] for i in indices], unproven)
    return {indices[i]: problem for i, problem in problems.items()}


def _accept_fast(
    renderer: Renderer, conversations: Sequence[Sequence[Message]], rendered: RenderedBatch
) -> NDArray[np.bool_]:
    """Return which conversations the fast proof accepts: [conversations]."""
    expected = [
        None if i in rendered.problems else renderer.expected_text(messages) for i, messages in enumerate(conversations)
    ]
    table = renderer.byte_table if any(expected) else None
    if table is None:
        return np.zeros(len(expected), dtype=np.bool_)
    return accept(rendered.encoded, expected, table, renderer.tokenizer)


def prove_stepwise(renderer: Renderer, conversations: Sequence[Sequence[Message]], rendered: RenderedBatch) -> Problems:
    """Return the first problem of each conversation that fails, without the fast proof."""
    encoded = rendered.encoded
    expected = [
        ExpectedSpans([], [], 0) if i in rendered.problems else renderer.expected_spans(messages)
        for i, messages in enumerate(conversations)
    ]
    owners = np.repeat(np.arange(len(encoded)), encoded.lengths)
    batch = _Batch(renderer, conversations, encoded, expected, owners)
    # In the order of the checks: a later one often fails only because an earlier one did.
    problems: Problems = dict(rendered.problems)
    for check in (_check_supervised, _check_bos, _check_text, _check_stops, _check_prompts):
        for index, problem in check(batch).items():
            problems.setdefault(index, problem)
    return problems


def _check_supervised(batch: _Batch) -> Problems:
    reason = "it has no answer that may be trained on"
    missing = np.flatnonzero(batch.count(batch.encoded.loss_mask) == 0)
    return {int(i): RecordError("nothing_trained", reason) for i in missing}


def _check_bos(batch: _Batch) -> Problems:
    """Check the begin tokens: as many as the template writes, the first at the start, no two in a row."""
    bos = batch.renderer.tokenizer.info.bos_id
    if bos is None:
        return {}
    ids, offsets = batch.encoded.ids, batch.encoded.offsets
    counts = batch.count(ids == bos)  # [conversations]
    wanted = np.array([expected.bos_count for expected in batch.expected], dtype=np.int64)
    wrong = counts != wanted
    if bos not in batch.renderer.stop_ids:  # where it also ends answers, one may follow another
        repeated = (ids[1:] == bos) & (ids[:-1] == bos) & (batch.owners[1:] == batch.owners[:-1])
        wrong[batch.owners[1:][repeated]] = True
    nonempty = np.flatnonzero(batch.encoded.lengths)
    wrong[nonempty] |= (wanted[nonempty] > 0) & (ids[offsets[nonempty]] != bos)
    return {
        int(i): RecordError("wrong_bos", f"{counts[i]} begin tokens, {wanted[i]} expected, the first at the start")
        for i in np.flatnonzero(wrong)
    }


# ---- supervised text


def _check_text(batch: _Batch) -> Problems:
    """Compare the decoded supervised ids with the messages."""
    problems = {}
    for index, (text, expected) in enumerate(zip(_decode_supervised(batch), batch.expected, strict=True)):
        wanted = b"".join(chain.from_iterable(map(_to_bytes, expected.texts)))
        if text != wanted and text != _as_tokenized(batch.renderer, expected):
            evidence = _show_difference(text, wanted)
            problems[index] = RecordError("mask_differs", "the trained tokens do not decode to the answers", evidence)
    return problems


def _to_bytes(ended: EndedText) -> tuple[bytes, bytes]:
    text, end = ended
    return utf8(text), b"" if end is None else control_bytes(end)


def _decode_supervised(batch: _Batch) -> list[bytes]:
    """Return the supervised ids of each conversation as bytes, stop tokens as `control_bytes`."""
    encoded, table = batch.encoded, batch.renderer.byte_table
    if table is None:
        return [_decode_with_library(batch, index) for index in range(len(encoded))]
    token_bytes = [table.token_bytes[token] for token in encoded.ids[encoded.loss_mask].tolist()]  # [supervised tokens]
    if table.prefixed:  # the space that the tokenizer puts before a block is not the message's
        for index in np.flatnonzero(starts_block(encoded, table.controls)[encoded.loss_mask]).tolist():
            token_bytes[index] = token_bytes[index].removeprefix(b" ")
    ends = np.cumsum(batch.count(encoded.loss_mask)).tolist()  # [conversations], in supervised tokens
    return [b"".join(token_bytes[start:stop]) for start, stop in zip([0, *ends], ends, strict=False)]


def _decode_with_library(batch: _Batch, index: int) -> bytes:
    """Decode one conversation with Hugging Face's library, each supervised span in the context of its block."""
    encoded, tokenizer = batch.encoded, batch.renderer.tokenizer
    tokens = encoded.tokens_of(index)
    controls = set(tokenizer.control_ids.values())
    parts: list[bytes] = []
    # A decoder may drop a space at the start of a text, which is the message's unless it is put before each block.
    start: list[int] = tokenizer.ids(["x"])[0] if tokenizer.prefixes_start_only else []
    block = start  # ids since the last control token
    pairs = zip(encoded.ids[tokens].tolist(), encoded.loss_mask[tokens].tolist(), strict=True)
    for (is_control, supervised), group in groupby(pairs, key=lambda pair: (pair[0] in controls, pair[1])):
        ids = [token for token, _ in group]
        if is_control:
            parts += [control_bytes(token) for token in ids if supervised]
            block = start
            continue
        if supervised:
            before, after = tokenizer.decode(block), tokenizer.decode(block + ids)
            parts.append(utf8(after.removeprefix(before)))
        block = [*block, *ids]
    return b"".join(parts)


def _as_tokenized(renderer: Renderer, expected: ExpectedSpans) -> bytes:
    """Return the expected text after a round trip: a tokenizer may write `▁` as a space, or compose accents.

    One that puts a space before a text unless it has one (Metaspace, "always") loses that of a text after a control
    token.
    """
    tokenizer = renderer.tokenizer
    parts = []
    for (text, end), starts in zip(expected.texts, _find_block_starts(renderer, expected), strict=True):
        if starts and tokenizer.token_bytes is None and not tokenizer.prefixes_start_only:
            parts.append(utf8(tokenizer.decode(tokenizer.ids([text])[0])))
        else:
            parts.append(_decode(tokenizer, tokenizer.encode_continuation([text])[0].tolist()))
        parts.append(b"" if end is None else control_bytes(end))
    return b"".join(parts)


def _find_block_starts(renderer: Renderer, expected: ExpectedSpans) -> list[bool]:
    """Return which of the expected texts follow a control token; none where other roles than answers are supervised."""
    if renderer.loss.roles != {"assistant"}:
        return [False] * len(expected.texts)
    prompts = iter(expected.prompts)
    starts = []
    last = None  # the control token before the text
    for _, end in expected.texts:
        is_first = last is None or last in renderer.stop_ids  # of an answer, which its prompt is before
        starts.append(not next(prompts, "x") if is_first else True)
        last = end
    return starts


def _decode(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    if tokenizer.token_bytes is not None:
        return b"".join(tokenizer.token_bytes[token] for token in ids)
    before = tokenizer.ids(["x"])[0]  # a decoder may drop a space at the start of a text
    return utf8(tokenizer.decode(before + ids).removeprefix(tokenizer.decode(before)))


def _show_difference(decoded: bytes, wanted: bytes) -> str:
    index = next((i for i, (ours, theirs) in enumerate(zip(decoded, wanted, strict=False)) if ours != theirs), 0)
    window = slice(max(0, index - 20), index + EVIDENCE // 2)
    shown = [text[window].decode("utf-8", "replace") for text in (decoded, wanted)]
    return f"decoded {shown[0]!r}, expected {shown[1]!r}"


# ---- stop tokens and prompts


def _check_stops(batch: _Batch) -> Problems:
    """Check that each supervised answer ends in a stop token, or that one follows before the next answer.

    What is between a cut answer and its stop token is the template's own text.
    """
    if batch.renderer.loss.roles != {"assistant"}:
        return {}  # other roles may have no stop token; an answer's is part of the text that was compared
    starts, stops = supervised_spans(batch.encoded)  # [spans], one past the last token
    owners = batch.owners[stops - 1]  # [spans]
    before_next = np.minimum(np.append(starts[1:], len(batch.encoded.ids)), batch.encoded.offsets[owners + 1])
    counts = np.append(0, np.cumsum(np.isin(batch.encoded.ids, batch.renderer.stop_ids)))  # stop tokens before each
    open_ended = counts[before_next] == counts[stops - 1]
    return {int(i): RecordError("not_closed", "no stop token follows an answer") for i in owners[open_ended].tolist()}


def _check_prompts(batch: _Batch) -> Problems:
    """Check that generation prompts are prefixes of the training ids.

    For the last supervised answer all ids before it are compared. For earlier ones only those since the last control
    token: the text before that is the same in prompt and rendering, and has been compared.
    """
    problems = _check_last_prompts(batch)
    if batch.renderer.loss.roles != {"assistant"}:
        return problems
    starts, _ = supervised_spans(batch.encoded)  # [spans]
    counts = np.bincount(batch.owners[starts], minlength=len(batch.encoded)).tolist()
    firsts = np.searchsorted(batch.owners[starts], np.arange(len(batch.encoded))).tolist()
    prompts = [prompt for expected in batch.expected for prompt in expected.prompts]
    # Tokenized in one call: prompt p is at offsets[p]:offsets[p + 1].
    prompt_ids, offsets = batch.renderer.tokenizer.encode_blocks(prompts)
    done = 0  # prompts of earlier conversations
    for index, expected in enumerate(batch.expected):
        if counts[index] != len(expected.prompts):
            reason = f"{counts[index]} spans are trained on, {len(expected.prompts)} answers expected"
            problems.setdefault(index, RecordError("mask_differs", reason))
        else:
            for k, prompt in enumerate(expected.prompts):
                start = int(starts[firsts[index] + k])
                wanted = prompt_ids[offsets[done + k] : offsets[done + k + 1]]
                if not np.array_equal(batch.encoded.ids[max(0, start - len(wanted)) : start], wanted):
                    problems.setdefault(index, _no_prefix(prompt))
        done += len(expected.prompts)
    return problems


def _check_last_prompts(batch: _Batch) -> Problems:
    """Check all ids of the generation prompt of each conversation's last supervised answer."""
    prompts: dict[int, Sequence[Message]] = {}  # the messages before that answer, by conversation
    for index, messages in enumerate(batch.conversations):
        selected = batch.renderer.loss.apply(messages)
        answers = [i for i, message in enumerate(selected) if message.role == "assistant" and message.train]
        if answers and batch.expected[index].texts:
            prompts[index] = messages[: answers[-1]]
    rendered = batch.renderer.render_prompts(list(prompts.values()))
    indices = list(prompts)
    problems = {indices[i]: problem for i, problem in rendered.problems.items()}
    for i, (index, messages) in enumerate(prompts.items()):
        prompt = rendered.encoded.ids[rendered.encoded.tokens_of(i)]
        ids = batch.encoded.ids[batch.encoded.tokens_of(index)]
        # A prompt as long as the rendering would leave no answer.
        if len(prompt) >= len(ids) or not np.array_equal(ids[: len(prompt)], prompt):
            problems.setdefault(index, _no_prefix(messages[-1].content if messages else ""))
    return problems


def _no_prefix(prompt: str) -> RecordError:
    reason = "the generation prompt's ids are not those before the answer"
    return RecordError("prompt_no_prefix", reason, prompt[-EVIDENCE:])
