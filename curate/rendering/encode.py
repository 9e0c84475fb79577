"""Renderings as ids: text between two control tokens is one tokenisation, trained stretches are told by offsets.

A `Sheet` gathers the runs, control tokens and stretches of many renderings; `encode` turns it into ids
and a loss mask. Where a message's words begin in a run is a border: what a model is asked with ends
there, so no token may reach across it. Where one does (`\\n` before an answer and `\\n` that begins it are
one token of LLaMA-3's), both sides are tokenised apart, and the prompt's ids stay a prefix of all ids.
Counting for the splitter and rendering for training both go through here, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curate.tokenization.tokenizer import FlatIds, Tokenizer
from curate.tokenization.word_counts import WordCounter

Counts = NDArray[np.int64]


@dataclass
class Sheet:
    """The runs, control tokens and stretches of many renderings, in order.

    Run r belongs to rendering `owners[r]`. Control token m, `marks[m]` by id, stands before run `mark_runs[m]`
    and belongs to `mark_owners[m]`. Stretch s is characters `starts[s]` to `stops[s]` of run `stretch_runs[s]`.
    `trained` and `mark_trained` say which stretches and control tokens the loss counts.
    """

    count: int = 0
    texts: list[str] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    mark_runs: list[int] = field(default_factory=list)
    mark_owners: list[int] = field(default_factory=list)
    mark_trained: list[bool] = field(default_factory=list)
    stretch_runs: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)

    def run(self, text: str) -> None:
        """Append a run to the rendering that is being written."""
        self.texts.append(text)
        self.owners.append(self.count)

    def mark(self, token: int, trained: bool) -> None:
        """Append a control token."""
        self.marks.append(token)
        self.mark_runs.append(len(self.texts))
        self.mark_owners.append(self.count)
        self.mark_trained.append(trained)

    def stretch(self, start: int, stop: int, trained: bool) -> None:
        """Note a message's words in the run appended last."""
        self.stretch_runs.append(len(self.texts) - 1)
        self.starts.append(start)
        self.stops.append(stop)
        self.trained.append(trained)

    def end(self) -> None:
        """End the rendering that is being written."""
        self.count += 1


@dataclass(frozen=True)
class Rows:
    """Ids and loss mask of many renderings, one after another; rendering i has `offsets[i]` to `offsets[i + 1]`."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each rendering."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class _Placed:
    """Ids of all runs, and the tokens at which each stretch starts and stops among them."""

    flat: FlatIds
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]


def encode(sheet: Sheet, tokenizer: Tokenizer) -> Rows:
    """Return the ids of all renderings and which of them are trained on."""
    placed = _place(sheet, tokenizer)
    ids, offsets = placed.flat
    trained = np.array(sheet.trained, dtype=np.bool_)
    edges = np.zeros(len(ids) + 1, dtype=np.int32)
    np.add.at(edges, placed.starts[trained], 1)
    np.add.at(edges, placed.stops[trained], -1)
    mask = np.cumsum(edges[:-1]) > 0
    at = offsets[np.array(sheet.mark_runs, dtype=np.int64)]
    ends = np.zeros(sheet.count + 1, dtype=np.int64)
    np.cumsum(_of_renderings(sheet, *_of_runs(sheet, placed))[:, 0], out=ends[1:])
    return Rows(
        np.insert(ids.astype(np.int32), at, np.array(sheet.marks, dtype=np.int32)),
        np.insert(mask, at, np.array(sheet.mark_trained, dtype=np.bool_)),
        ends,
    )


def sizes(sheet: Sheet, tokenizer: Tokenizer) -> Counts:
    """Return how many tokens each rendering has, and how many of them are trained on: [renderings, 2]."""
    if tokenizer.word_counter is None:
        return _of_renderings(sheet, *_of_runs(sheet, _place(sheet, tokenizer)))
    total, trained = _count_words(sheet, tokenizer.word_counter)
    untold = np.flatnonzero(total < 0).tolist()
    if untold:
        few = _only(sheet, untold)
        total[untold], trained[untold] = _of_runs(few, _place(few, tokenizer))
    return _of_renderings(sheet, total, trained)


def _of_renderings(sheet: Sheet, total: Counts, trained: Counts) -> Counts:
    """Add up each rendering's runs and control tokens."""
    sums = np.zeros((sheet.count, 2), dtype=np.int64)
    np.add.at(sums, sheet.owners, np.stack([total, trained], axis=1))
    marks = np.ones((len(sheet.marks), 2), dtype=np.int64)
    marks[:, 1] = sheet.mark_trained
    np.add.at(sums, sheet.mark_owners, marks)
    return sums


def _of_runs(sheet: Sheet, placed: _Placed) -> tuple[Counts, Counts]:
    """Return each run's tokens, and those of them that are trained on."""
    trained = np.zeros(len(sheet.texts), dtype=np.int64)
    lengths = np.where(np.array(sheet.trained, dtype=np.bool_), placed.stops - placed.starts, 0)
    np.add.at(trained, sheet.stretch_runs, lengths)
    return np.diff(placed.flat[1]), trained


def _count_words(sheet: Sheet, words: WordCounter) -> tuple[Counts, Counts]:
    """Return the same by a table of words; -1 for a run that words do not tell: its border lies within one.

    No token reaches over the border of a word, so a run that is told has none across the border of an answer.
    """
    cuts = [0] * len(sheet.texts)
    counted = np.zeros(len(sheet.texts), dtype=np.bool_)
    plain = np.ones(len(sheet.texts), dtype=np.bool_)
    seen = -1
    for run, start, stop, trained in zip(sheet.stretch_runs, sheet.starts, sheet.stops, sheet.trained, strict=True):
        cuts[run], counted[run] = start, trained
        plain[run] = run != seen and stop == len(sheet.texts[run])
        seen = run
    total, before = words.count(sheet.texts, cuts)
    told = plain & (total >= 0) & (before >= 0)
    return np.where(told, total, -1), np.where(counted, total - before, 0)


def _only(sheet: Sheet, runs: Sequence[int]) -> Sheet:
    """Return a sheet of some of the runs, without control tokens."""
    places = {run: place for place, run in enumerate(runs)}
    chosen = [s for s, run in enumerate(sheet.stretch_runs) if run in places]
    return Sheet(
        texts=[sheet.texts[run] for run in runs],
        stretch_runs=[places[sheet.stretch_runs[s]] for s in chosen],
        starts=[sheet.starts[s] for s in chosen],
        stops=[sheet.stops[s] for s in chosen],
        trained=[sheet.trained[s] for s in chosen],
    )


# ---- where stretches lie among the ids


def _place(sheet: Sheet, tokenizer: Tokenizer) -> _Placed:
    """Tokenise the runs and find the stretches in them; runs with a token across a border are tokenised again."""
    flat = tokenizer.encode(sheet.texts)
    runs = np.array(sheet.stretch_runs, dtype=np.int64)
    starts, stops, clean = _by_bytes(sheet, tokenizer, flat, runs)
    unclear = sorted(set(runs[~clean].tolist()))
    if not unclear:
        return _Placed(flat, flat[1][runs] + starts, flat[1][runs] + stops)
    of_run: dict[int, list[int]] = {run: [] for run in unclear}
    for stretch, run in enumerate(sheet.stretch_runs):
        if run in of_run:
            of_run[run].append(stretch)
    patched: dict[int, list[int]] = {}
    for run, stretches in of_run.items():
        text = sheet.texts[run]
        borders = sorted({place for s in stretches for place in (sheet.starts[s], sheet.stops[s])})
        whole = flat[0][flat[1][run] : flat[1][run + 1]].tolist()
        patched[run], found = _bordered(tokenizer, text, borders, whole)
        for s in stretches:
            starts[s], stops[s] = found[sheet.starts[s]], found[sheet.stops[s]]
    flat = _patched(flat, patched)
    return _Placed(flat, flat[1][runs] + starts, flat[1][runs] + stops)


def _by_bytes(
    sheet: Sheet, tokenizer: Tokenizer, flat: FlatIds, runs: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the tokens at which each stretch starts and stops in its run, and whether a token does start there.

    The bytes that a run's ids stand for, summed up, say where in the text each token begins. They do
    not where the sum is not the text's length (a literal `▁` in it, or an unknown token). Half a character counts as
    the mark that stands for it, three bytes.
    """
    starts, stops = np.array(sheet.starts, dtype=np.int64), np.array(sheet.stops, dtype=np.int64)
    table = tokenizer.byte_lengths
    if table is None or not len(runs):
        return starts, stops, np.zeros(len(runs), dtype=np.bool_)
    ids, offsets = flat
    ends = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum(table[0][ids], out=ends[1:])
    whole = np.array([len(sheet.texts[run]) for run in sheet.stretch_runs], dtype=np.int64)
    wide = [s for s, run in enumerate(sheet.stretch_runs) if not sheet.texts[run].isascii()]
    for s in wide:
        text = sheet.texts[sheet.stretch_runs[s]]
        starts[s] = before = len(text[: starts[s]].encode("utf-8", "surrogatepass"))
        stops[s] = before + len(text[sheet.starts[s] : stops[s]].encode("utf-8", "surrogatepass"))
        whole[s] = stops[s] + len(text[sheet.stops[s] :].encode("utf-8", "surrogatepass"))
    first = offsets[runs]
    begin, prefix = ends[first], table[1]
    clean = ends[offsets[runs + 1]] - begin == whole + prefix
    found = []
    for places in (starts, stops):
        targets = begin + np.where(places > 0, places + prefix, 0)
        tokens = np.minimum(np.searchsorted(ends, targets), len(ids))
        clean &= ends[tokens] == targets
        found.append(tokens - first)
    return found[0], found[1], clean


def _bordered(
    tokenizer: Tokenizer, text: str, borders: Sequence[int], whole: list[int]
) -> tuple[list[int], dict[int, int]]:
    """Return a run's ids, no token across a border, and the token at which each border lies.

    The run is cut only where a token of it crosses, so that all else keeps the ids of one tokenisation.
    """
    cuts: set[int] = set()
    ids = whole
    while True:
        edges = [0, *sorted(cuts), len(text)]
        parts = [_part(tokenizer, text, *edge) for edge in pairwise(edges)] if cuts else [whole]
        ids = [token for part in parts for token in part]
        found, crossed = _find(tokenizer, text, borders, edges, parts)
        if not crossed:
            return ids, found
        cuts |= crossed


def _find(
    tokenizer: Tokenizer, text: str, borders: Sequence[int], edges: Sequence[int], parts: Sequence[list[int]]
) -> tuple[dict[int, int], set[int]]:
    """Return the token at which each border lies, and the borders that a token crosses."""
    found: dict[int, int] = {}
    crossed: set[int] = set()
    done = 0
    for (start, stop), part in zip(pairwise(edges), parts, strict=True):
        for border in borders:
            if start < border < stop:
                before = _part(tokenizer, text, start, border)
                if part[: len(before)] != before:
                    crossed.add(border)
                found[border] = done + len(before)
            elif border in (start, stop):
                found[border] = done + (len(part) if border == stop else 0)
        done += len(part)
    return found, crossed


def _part(tokenizer: Tokenizer, text: str, start: int, stop: int) -> list[int]:
    encode_text = tokenizer.encode if start == 0 else tokenizer.encode_continuation
    return [int(token) for token in encode_text([text[start:stop]])[0]]


def _patched(flat: FlatIds, runs: dict[int, list[int]]) -> FlatIds:
    """Put other ids in the place of some runs'."""
    ids, offsets = flat
    lengths = np.diff(offsets)
    parts: list[NDArray[np.uint32]] = []
    done = 0
    for run, new in sorted(runs.items()):
        parts += [ids[done : offsets[run]], np.array(new, dtype=np.uint32)]
        done = int(offsets[run + 1])
        lengths[run] = len(new)
    moved = np.zeros_like(offsets)
    np.cumsum(lengths, out=moved[1:])
    return np.concatenate([*parts, ids[done:]]), moved
