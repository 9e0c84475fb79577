"""The proof of the mask, on every conversation, before the first step.

What is trained on, decoded, is the answers' text and the token that ends each; every trained answer is closed;
BOS stands where the template puts it and nowhere else; what a model will be asked with is a prefix of what it
is trained on; and there is something to train on. Messages are compared as text with decoded ids, so neither the
rendering's shapes nor its offsets are taken on trust. A conversation that fails is left out by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
from numpy.typing import NDArray

from curate.errors import RecordError
from curate.rendering.encode import Rows
from curate.rendering.placeholders import Words
from curate.rendering.proof_fast import accepted, begins_run, marker, stretches
from curate.rendering.renderer import Expected, Renderer, Written
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer

Problems = dict[int, RecordError]  # by the conversation's place in the batch

RULES = {
    "nothing_trained": "No token of the conversation is trained on.",
    "wrong_bos": "The begin token does not stand just where the template puts it.",
    "mask_differs": "What is trained on, decoded, is not the answers' text with the token that ends each.",
    "not_closed": "No stop token follows an answer.",
    "prompt_no_prefix": "What the model will be asked with is not how the training ids begin.",
    "template_refuses": "The chat template refuses the conversation.",
    "template_rewrites": "The chat template changes an answer, or earlier messages once later ones follow.",
}
SAMPLED = 100  # one in so many is proven step by step though it was accepted
EVIDENCE = 200  # characters of what was found and of what was expected


@dataclass(frozen=True)
class _Case:
    """A batch under proof."""

    renderer: Renderer
    conversations: Sequence[Sequence[Message]]
    rows: Rows
    expected: list[Expected]
    owners: NDArray[np.int64]  # the conversation of each token


def prove(renderer: Renderer, conversations: Sequence[Sequence[Message]], written: Written) -> Problems:
    """Return why conversations fail, by their place in the batch; the first reason of each.

    Most are accepted in bulk (`proof_fast`); the others, and one in 100 of all, are proven step by step.
    """
    proven = _at_once(renderer, conversations, written)
    proven[::SAMPLED] = False
    places = np.flatnonzero(~proven).tolist()
    if not places:
        return {}
    part = Written(_only(written.rows, places), {places.index(i): why for i, why in written.problems.items()})
    found = _step_by_step(renderer, [conversations[place] for place in places], part)
    return {places[index]: problem for index, problem in found.items()}


def _at_once(renderer: Renderer, conversations: Sequence[Sequence[Message]], written: Written) -> NDArray[np.bool_]:
    """Tell which conversations are proven by comparing whole renderings."""
    told = [None if i in written.problems else renderer.told(one) for i, one in enumerate(conversations)]
    how = renderer.decoding if any(told) else None
    if how is None:
        return np.zeros(len(told), dtype=np.bool_)
    return accepted(written.rows, told, how, renderer.tokenizer)


def _only(rows: Rows, places: Sequence[int]) -> Rows:
    """Return some of the renderings."""
    parts = [slice(*rows.offsets[place : place + 2].tolist()) for place in places]
    offsets = np.zeros(len(places) + 1, dtype=np.int64)
    np.cumsum([part.stop - part.start for part in parts], out=offsets[1:])
    return Rows(
        np.concatenate([rows.ids[part] for part in parts]), np.concatenate([rows.mask[part] for part in parts]), offsets
    )


def _step_by_step(renderer: Renderer, conversations: Sequence[Sequence[Message]], written: Written) -> Problems:
    rows = written.rows
    expected = [
        Expected([], [], 0) if i in written.problems else renderer.expected(messages)
        for i, messages in enumerate(conversations)
    ]
    owners = np.repeat(np.arange(len(rows)), rows.lengths)
    case = _Case(renderer, conversations, rows, expected, owners)
    problems: Problems = dict(written.problems)
    for check in (_trained, _bos, _text, _closed, _prompts):
        for index, problem in check(case).items():
            problems.setdefault(index, problem)
    return problems


def _trained(case: _Case) -> Problems:
    count = np.bincount(case.owners[case.rows.mask], minlength=len(case.rows))
    reason = "no answer of it may be trained on, or it has none"
    return {int(i): RecordError("nothing_trained", reason) for i in np.flatnonzero(count == 0)}


def _bos(case: _Case) -> Problems:
    """Hold the begin tokens to the template: as many as it writes, the first at the start, no two together."""
    bos = case.renderer.tokenizer.info.bos_id
    if bos is None:
        return {}
    ids, offsets = case.rows.ids, case.rows.offsets
    found = np.bincount(case.owners[ids == bos], minlength=len(case.rows))
    wanted = np.array([one.bos for one in case.expected], dtype=np.int64)
    double = (ids[1:] == bos) & (ids[:-1] == bos) & (case.owners[1:] == case.owners[:-1])
    double &= bos not in case.renderer.stop_ids  # where it ends answers too, one may begin what follows
    wrong = (found != wanted) | (np.bincount(case.owners[:-1][double], minlength=len(case.rows)) > 0)
    starts = np.flatnonzero(case.rows.lengths)
    wrong[starts] |= (wanted[starts] > 0) & (ids[offsets[starts]] != bos)
    return {
        int(i): RecordError("wrong_bos", f"{found[i]} begin tokens, {wanted[i]} expected, the first at the start")
        for i in np.flatnonzero(wrong)
    }


# ---- what is trained on, as text


def _text(case: _Case) -> Problems:
    """Hold the decoded supervised ids to the messages."""
    found = _decoded(case)
    problems = {}
    for index, one in enumerate(case.expected):
        wanted = b"".join(chain.from_iterable(map(_stream, one.words)))
        if found[index] != wanted and found[index] != _as_tokenized(case, one):
            evidence = _difference(found[index], wanted)
            problems[index] = RecordError("mask_differs", "the trained tokens do not spell the answers", evidence)
    return problems


def _stream(words: Words) -> tuple[bytes, bytes]:
    """Return a message's text and its end, as they must be found."""
    text, end = words
    return text.encode("utf-8", "surrogatepass"), b"" if end is None else marker(end)


def _decoded(case: _Case) -> list[bytes]:
    """Return each conversation's supervised ids as bytes, stop tokens as markers."""
    rows, how = case.rows, case.renderer.decoding
    if how is None:
        return [_decoded_slowly(case, index) for index in range(len(rows))]
    texts = [how.table[token] for token in rows.ids[rows.mask].tolist()]
    if how.prefixed:  # the space that is put before a run is not the message's
        for place in np.flatnonzero(begins_run(rows, how.controls)[rows.mask]).tolist():
            texts[place] = texts[place].removeprefix(b" ")
    ends = np.cumsum(np.bincount(case.owners[rows.mask], minlength=len(rows))).tolist()
    return [b"".join(texts[start:stop]) for start, stop in zip([0, *ends], ends, strict=False)]


def _decoded_slowly(case: _Case, index: int) -> bytes:
    """Decode one conversation by Hugging Face's library, each stretch behind what comes before it in its run."""
    start, stop = case.rows.offsets[index : index + 2]
    ids, mask = case.rows.ids[start:stop].tolist(), case.rows.mask[start:stop].tolist()
    controls = set(case.renderer.tokenizer.control_ids.values())
    out: list[bytes] = []
    run: list[int] = []
    pairs = zip(ids, mask, strict=True)
    for (is_control, trained), group in groupby(pairs, key=lambda pair: (pair[0] in controls, pair[1])):
        tokens = [token for token, _ in group]
        if is_control:
            out += [marker(token) for token in tokens if trained]
            run = []
            continue
        if trained:
            before, now = (case.renderer.tokenizer.decode(part) for part in (run, run + tokens))
            out.append(now.removeprefix(before).encode("utf-8", "surrogatepass"))
        run += tokens
    return b"".join(out)


def _as_tokenized(case: _Case, one: Expected) -> bytes:
    """Return what is expected as the tokenizer itself spells it: it may write `▁` as a space, or compose accents."""
    tokenizer = case.renderer.tokenizer
    parts = []
    for text, end in one.words:
        ids = tokenizer.encode_continuation([text])[0].tolist()
        parts += [_spelled(tokenizer, ids), b"" if end is None else marker(end)]
    return b"".join(parts)


def _spelled(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    if tokenizer.token_bytes is not None:
        return b"".join(tokenizer.token_bytes[token] for token in ids)
    before = tokenizer.ids(["x"])[0]  # a decoder may take a space from where the text begins
    return tokenizer.decode(before + ids).removeprefix(tokenizer.decode(before)).encode("utf-8", "surrogatepass")


def _difference(found: bytes, wanted: bytes) -> str:
    """Show where two texts part."""
    at = next((i for i, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other), 0)
    shown = [text[max(0, at - 20) : at + EVIDENCE // 2].decode("utf-8", "replace") for text in (found, wanted)]
    return f"found {shown[0]!r}, expected {shown[1]!r}"


# ---- ends and beginnings


def _closed(case: _Case) -> Problems:
    """Tell where a trained answer has no stop token at its end, trained or not."""
    if case.renderer.loss.roles != {"assistant"}:
        return {}  # what else is trained on may have no end; an answer's is part of the text that was compared
    _, stops = stretches(case.rows)
    ids = np.append(case.rows.ids, -1)
    owners = np.append(case.owners, -1)
    closed = np.isin(ids[stops - 1], case.renderer.stop_ids)
    closed |= np.isin(ids[stops], case.renderer.stop_ids) & (owners[stops] == owners[stops - 1])
    return {
        int(i): RecordError("not_closed", "an answer is followed by no stop token")
        for i in owners[stops[~closed] - 1].tolist()
    }


def _prompts(case: _Case) -> Problems:
    """Tell where what a model is asked with is not how the training ids begin.

    Asked for the last answer, all ids before it are compared; for an earlier one those since the last control token,
    as what stands before that is the same text in both.
    """
    problems = _whole_prompts(case)
    if case.renderer.loss.roles != {"assistant"}:
        return problems
    starts, _ = stretches(case.rows)
    count = np.bincount(case.owners[starts], minlength=len(case.rows)).tolist()
    firsts = np.searchsorted(case.owners[starts], np.arange(len(case.rows))).tolist()
    wanted = [(index, asked) for index, one in enumerate(case.expected) for asked in one.asked]
    tails, offsets = case.renderer.tokenizer.encode([asked for _, asked in wanted])
    place = 0
    for index, one in enumerate(case.expected):
        if count[index] != len(one.asked):
            reason = f"{count[index]} stretches are trained on, {len(one.asked)} answers expected"
            problems.setdefault(index, RecordError("mask_differs", reason))
        else:
            for k in range(len(one.asked)):
                start = int(starts[firsts[index] + k])
                tail = tails[offsets[place + k] : offsets[place + k + 1]]
                if not np.array_equal(case.rows.ids[max(0, start - len(tail)) : start], tail):
                    problems.setdefault(index, _no_prefix(one.asked[k]))
        place += len(one.asked)
    return problems


def _whole_prompts(case: _Case) -> Problems:
    """Hold what asks for each conversation's last trained answer to the training ids."""
    places: list[int] = []
    asked: list[Sequence[Message]] = []
    for index, messages in enumerate(case.conversations):
        selected = case.renderer.loss.select(messages)
        trained = [i for i, message in enumerate(selected) if message.role == "assistant" and message.train]
        if trained and case.expected[index].words:
            places.append(index)
            asked.append(messages[: trained[-1]])
    written = case.renderer.write_prompts(asked)
    offsets = case.rows.offsets
    problems = {places[i]: problem for i, problem in written.problems.items()}
    for i, index in enumerate(places):
        prompt = written.rows.ids[written.rows.offsets[i] : written.rows.offsets[i + 1]]
        start, stop = offsets[index : index + 2]
        if len(prompt) >= stop - start or not np.array_equal(case.rows.ids[start : start + len(prompt)], prompt):
            problems.setdefault(index, _no_prefix(asked[i][-1].content if asked[i] else ""))
    return problems


def _no_prefix(asked: str) -> RecordError:
    reason = "the ids that ask for an answer are not those it is trained behind"
    return RecordError("prompt_no_prefix", reason, asked[-EVIDENCE:])
