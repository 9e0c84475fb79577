"""The quick half of the proof: what a built-in template says a rendering must spell, held against all ids at once.

A conversation is accepted where its ids, decoded, are its whole prompt byte for byte; the mask lies on just the bytes
of the answers and the tokens that end them; and the ids before each answer are those by which it is asked for. Anything
else is left to `curate.rendering.proof`, which says what is wrong. What is told here comes from the template's
segments and the messages, and shares nothing with how the ids and the mask were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.rendering.encode import Rows
from curate.schemas import prompts
from curate.schemas.conversation import Message
from curate.schemas.prompts import Segment, Template, content_of, default_system
from curate.tokenization.tokenizer import Tokenizer

BLOCK = 32  # renderings decoded at once: their bytes' places fit a processor's cache
_HOLE = "\0"  # stands for a content while a plan is made
_UNKNOWN: Any = object()


def marker(token: int) -> bytes:
    """Return what stands for a control token: no UTF-8 text holds the byte 0xff."""
    return b"\xff%d\xff" % token


def _marked(token: int) -> str:
    """Return what stands for a control token in what is told: two surrogates, which no text has that is told."""
    return chr(0xD800 + (token >> 10)) + chr(0xDC00 + (token & 0x3FF))


class Told(NamedTuple):
    """What a rendering must spell: all of it, the byte ranges that are trained on, and the text before each answer.

    `asked` begins after the last control token before the answer.
    """

    whole: bytes
    trained: list[tuple[int, int]]
    asked: list[str]


class _Plan(NamedTuple):
    """The same for all conversations with such roles and flags; `text` has %s for each of `contents` (indices).

    A place is a count of fixed bytes, and of the contents before it.
    """

    text: str
    contents: tuple[int, ...]
    trained: list[tuple[int, int, int, int]]  # the places from and to
    asked: list[tuple[str, tuple[int, ...]]]  # texts with %s, and the contents that belong there
    last: int  # the last message that is trained on


class Teller:
    """Tells renderings in one template, of conversations whose answers are trained on."""

    def __init__(self, template: Template, tokenizer: Tokenizer, stop_id: int) -> None:
        self._template = template
        self._controls = tokenizer.control_ids
        self._stop = stop_id
        self._plans: dict[object, _Plan | None] = {}

    def tell(self, messages: Sequence[Message]) -> Told | None:
        """Return what must be found; null where that cannot be told quickly."""
        template = self._template
        plain = not template.strips  # then most contents are taken as they are
        contents = [m.content if plain and m.tool_calls is None else content_of(template, m) for m in messages]
        system = default_system(template, messages)
        flags = [(m.role, m.train, m.stop) for m in messages]
        key = (system, *flags, *([] if all(contents) else map(bool, contents)))
        plan = self._plans.get(key, _UNKNOWN)
        if plan is _UNKNOWN:
            plan = self._plans[key] = self._plan(messages, contents, system)
        if plan is None or default_system(template, messages[: plan.last]) != system:
            return None
        inside = [contents[i] for i in plan.contents]
        try:
            sizes = [len(text) if text.isascii() else len(text.encode()) for text in inside]
        except UnicodeEncodeError:  # a lone surrogate, as control tokens are written here
            return None
        ends = [0, *accumulate(sizes)]
        return Told(
            (plan.text % tuple(inside)).encode("utf-8", "surrogatepass"),
            [(start + ends[before], stop + ends[within]) for start, before, stop, within in plan.trained],
            [text % tuple([contents[i] for i in places]) for text, places in plan.asked],
        )

    def _plan(self, messages: Sequence[Message], contents: Sequence[str], system: str) -> _Plan | None:
        """Find a plan; null where nothing is trained on, an answer is not closed, or a prompt is no prefix."""
        holes = [
            replace(message, content=_HOLE if text else "", tool_calls=None)
            for message, text in zip(messages, contents, strict=True)
        ]
        segments = prompts.render(self._template, holes, system=system)
        trained = [i for i, one in enumerate(segments) if one.supervised]
        if not trained:
            return None
        last = segments[trained[-1]].message or 0
        prompt = prompts.generation_prompt(self._template, holes[:last], system=system)
        first = next(i for i in trained if segments[i].message == last)
        if self._text(prompt) != self._text(segments[:first]) or not self._closed(segments):
            return None
        return self._parts(segments, last)

    def _text(self, segments: Sequence[Segment]) -> str:
        return "".join(self._written(one) for one in segments)

    def _written(self, one: Segment) -> str:
        return one.text if one.control is None else _marked(self._controls[one.control])

    def _closed(self, segments: Sequence[Segment]) -> bool:
        """Tell whether the first control token after the words of each trained answer is the stop token."""
        ends = [
            next((later.control for later in segments[i:] if later.control), None)
            for i, one in enumerate(segments)
            if one.supervised
        ]
        return all(end is not None and self._controls[end] == self._stop for end in ends)

    def _parts(self, segments: Sequence[Segment], last: int) -> _Plan:
        run, written = "", list[str]()  # the text since the last control token; all of it
        contents, run_contents = list[int](), list[int]()
        trained: list[tuple[int, int, int, int]] = []
        asked: list[tuple[str, tuple[int, ...]]] = []
        seen: set[int | None] = set()
        place = 0, 0
        for one in segments:
            if one.supervised and one.message not in seen:
                seen.add(one.message)
                asked.append((_frame(run), tuple(run_contents)))
            text = self._written(one)
            inside = [one.message or 0] if _HOLE in one.text else []
            written.append(text)
            contents += inside
            run, run_contents = (run + text, run_contents + inside) if one.control is None else ("", [])
            begin, place = place, (place[0] + len(_bytes(text)) - len(inside), len(contents))
            if one.supervised:
                joins = trained and trained[-1][2:] == begin
                trained.append((*(trained.pop()[:2] if joins else begin), *place))
        return _Plan(_frame("".join(written)), tuple(contents), trained, asked, last)


def _frame(text: str) -> str:
    """Return a text with holes as one to be formatted."""
    return text.replace("%", "%%").replace(_HOLE, "%s")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# ---- held against ids


@dataclass(frozen=True)
class Decoding:
    """The bytes of each id, control tokens as markers; `prefixed`: a space is put before a text, which is not said.

    `flat` holds them one after another (and one byte more), control tokens as they are told: id i has `lengths[i]`
    from `begins[i]` on.
    """

    table: list[bytes]
    flat: NDArray[np.uint8]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    controls: NDArray[np.int64]
    prefixed: bool


def decoding(tokenizer: Tokenizer) -> Decoding | None:
    """Return how ids are decoded at once; null where a tokenizer's ids do not tell their bytes."""
    pieces = tokenizer.token_bytes
    if pieces is None or tokenizer.byte_lengths is None:
        return None
    table, told = [*pieces], [*pieces]
    controls = sorted(set(tokenizer.control_ids.values()))
    for token in controls:
        table[token], told[token] = marker(token), _bytes(_marked(token))
    lengths = np.fromiter(map(len, told), dtype=np.int64, count=len(told))
    flat = np.frombuffer(b"".join([*told, b"\0"]), dtype=np.uint8)
    return Decoding(
        table,
        flat,
        np.cumsum(lengths) - lengths,
        lengths,
        np.array(controls, dtype=np.int64),
        bool(tokenizer.byte_lengths[1]),
    )


def accepted(rows: Rows, told: Sequence[Told | None], decoded: Decoding, tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Tell which renderings are proven."""
    owners = np.repeat(np.arange(len(rows)), rows.lengths)
    sizes, spelled = _spell(rows, decoded)
    good = np.array(
        [one is not None and one.whole == text for one, text in zip(told, spelled, strict=True)], dtype=np.bool_
    )
    starts, stops = stretches(rows)
    good &= _lies_on(told, good, owners, sizes, (starts, stops))
    return good & _asked(rows, told, good, owners, starts, tokenizer)


def stretches(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each unbroken stretch of trained tokens starts and stops; none reaches into another rendering."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rows.mask, [False]]).astype(np.int8)))
    borders = rows.offsets[1:-1]
    inside = borders[(borders > 0) & (borders < len(rows.mask))]
    inside = inside[rows.mask[inside - 1] & rows.mask[inside]]
    return np.sort(np.concatenate([edges[::2], inside])), np.sort(np.concatenate([edges[1::2], inside]))


def begins_run(rows: Rows, controls: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which tokens are the first after a control token, or of a rendering."""
    control = np.isin(rows.ids, controls)
    begins = np.zeros(len(rows.ids), dtype=np.bool_)
    begins[1:] = control[:-1] & ~control[1:]
    begins[rows.offsets[:-1][rows.lengths > 0]] = True
    return begins


def _spell(rows: Rows, decoded: Decoding) -> tuple[NDArray[np.int64], list[bytes]]:
    """Return each token's bytes in number, and each rendering spelled."""
    begins = decoded.begins[rows.ids]
    sizes = decoded.lengths[rows.ids]
    if decoded.prefixed:
        first = np.flatnonzero(begins_run(rows, decoded.controls) & (decoded.flat[begins] == ord(" ")) & (sizes > 0))
        begins[first] += 1
        sizes[first] -= 1
    ends = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=ends[1:])
    out: list[bytes] = []
    for at in range(0, len(rows), BLOCK):
        cuts = rows.offsets[at : at + BLOCK + 1]
        part = slice(*cuts[[0, -1]].tolist())
        places = np.repeat(begins[part] - ends[part], sizes[part])
        places += np.arange(ends[part.start], ends[part.stop])
        text = decoded.flat[places].tobytes()
        out += [text[start:stop] for start, stop in pairwise((ends[cuts] - ends[part.start]).tolist())]
    return sizes, out


def _lies_on(
    told: Sequence[Told | None],
    good: NDArray[np.bool_],
    owners: NDArray[np.int64],
    sizes: NDArray[np.int64],
    found: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.bool_]:
    """Tell where the mask lies on just the bytes that are trained on."""
    bytes_before = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=bytes_before[1:])
    firsts = np.searchsorted(owners, np.arange(len(told)))
    expected: list[tuple[int, int]] = []
    counts = np.bincount(owners[found[0]], minlength=len(told))
    right = good.copy()
    for index in np.flatnonzero(good).tolist():
        one = told[index]
        right[index] = one is not None and len(one.trained) == counts[index]
        if one is not None and right[index]:
            expected += one.trained
    chosen = right[owners[found[0]]]
    owner = owners[found[0]][chosen]
    places = [bytes_before[edge[chosen]] - bytes_before[firsts[owner]] for edge in found]
    wanted = np.array(expected, dtype=np.int64).reshape(-1, 2)
    right[owner[(places[0] != wanted[:, 0]) | (places[1] != wanted[:, 1])]] = False
    return right


def _asked(
    rows: Rows,
    told: Sequence[Told | None],
    good: NDArray[np.bool_],
    owners: NDArray[np.int64],
    starts: NDArray[np.int64],
    tokenizer: Tokenizer,
) -> NDArray[np.bool_]:
    """Tell where the ids before each answer are those of the text that asks for it."""
    right = good.copy()
    counts = np.bincount(owners[starts], minlength=len(told))
    texts: list[str] = []
    for index in np.flatnonzero(good).tolist():
        one = told[index]
        right[index] = one is not None and len(one.asked) == counts[index]
        if one is not None and right[index]:
            texts += one.asked
    chosen = starts[right[owners[starts]]]
    ids, offsets = tokenizer.encode(texts)
    sizes = np.diff(offsets)
    answer = np.repeat(np.arange(len(chosen)), sizes)
    places = chosen[answer] - sizes[answer] + np.arange(len(ids)) - offsets[answer]
    wrong = (places < rows.offsets[owners[chosen[answer]]]) | (rows.ids[np.maximum(places, 0)] != ids)
    right[owners[chosen[answer[wrong]]]] = False
    return right
