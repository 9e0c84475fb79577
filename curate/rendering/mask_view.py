"""A conversation as its template and tokenizer write it: tokens of each message, and what is trained on.

The ids and the mask are those that training gets: see `curate.rendering.encode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from curate.dataset.manifest import Manifest
from curate.errors import CurateError
from curate.rendering import encode
from curate.rendering.compiled_template import Layout
from curate.rendering.set_tokenizer import load_set_tokenizer
from curate.schemas import prompts
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import Tokenizer

Spans = tuple[tuple[str, bool], ...]  # a rendering's text in order, control tokens by name; whether it is trained on


@dataclass(frozen=True)
class Mask:
    """A rendering: `trained` of its `tokens`."""

    spans: Spans
    tokens: int
    trained: int


class Marker:
    """Writes conversations in one template and tokenizer, to be looked at."""

    def __init__(self, template: prompts.Template, tokenizer: Tokenizer) -> None:
        self.layout = Layout(template, tokenizer)

    def turn_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that each message adds to the rendering; they sum to those of the whole.

        The first has the template's own words before it among them.
        """
        sheet = encode.Sheet()
        _, starts = prompts.exchanges(messages)
        first_end = starts[1] if len(starts) > 1 else len(messages)
        spans = [(0, first_end), *pairwise(starts[1:])]
        for start, stop in spans:
            for end in range(start + 1, stop + 1):
                self.layout.write(sheet, messages[start:end], first=start == 0)
        sizes = encode.encode(sheet, self.layout.tokenizer).lengths.tolist() if messages else []
        found: list[int] = []
        for start, stop in spans:
            counts = [0, *sizes[start:stop]]
            found += [int(after - before) for before, after in pairwise(counts)]
        return found

    def mask(self, messages: Sequence[Message]) -> Mask:
        """Return the rendering with what is trained on, the stop tokens among it, as its ids tell."""
        sheet = encode.Sheet()
        self.layout.write(sheet, messages)
        rows = encode.encode(sheet, self.layout.tokenizer)
        return Mask(
            tuple(spans_of_ids(self.layout.tokenizer, rows.ids, rows.mask)), len(rows.ids), int(rows.mask.sum())
        )


def spans_of_ids(tokenizer: Tokenizer, ids: NDArray[np.int32], mask: NDArray[np.bool_]) -> list[tuple[str, bool]]:
    """Return the stretches of one rendering (`ids` and `mask` are [tokens]); of neighbours one is trained on."""
    controls = set(tokenizer.control_ids.values())
    pairs = list(zip(ids.tolist(), mask.tolist(), strict=True))
    out: list[tuple[str, bool]] = []
    run: list[int] = []  # ids since the last control token: a decoder may write the first ones otherwise
    for (is_control, trained), group in groupby(pairs, key=lambda pair: (pair[0] in controls, pair[1])):
        found = [token for token, _ in group]
        before = tokenizer.decode(run) if run else ""
        run = [] if is_control else [*run, *found]
        text = tokenizer.decode(found) if is_control else tokenizer.decode(run).removeprefix(before)
        if out and out[-1][1] == trained:
            text = out.pop()[0] + text
        out.append((text, trained))
    return out


def stretches(layout: Layout, messages: Sequence[Message]) -> Spans:
    """Return the spans of a rendering as its layout writes them, without a token being made: what its ids tell too."""
    sheet = encode.Sheet()
    layout.write(sheet, messages)
    names = {token: name for name, token in layout.tokenizer.control_ids.items() if name not in ("bos", "eos")}
    marks = [(run, names[token], trained) for run, token, trained in _marks(sheet)]
    found: list[tuple[str, bool]] = []
    for run, text in enumerate([*sheet.texts, ""]):
        while marks and marks[0][0] == run:
            found.append(marks.pop(0)[1:])
        found += _told(sheet, run, text)
    groups = groupby(found, key=lambda one: one[1])
    return tuple(("".join(text for text, _ in same), trained) for trained, same in groups)


def _marks(sheet: encode.Sheet) -> Iterable[tuple[int, int, bool]]:
    return zip(sheet.mark_runs, sheet.marks, sheet.mark_trained, strict=True)


def _told(sheet: encode.Sheet, run: int, text: str) -> Iterator[tuple[str, bool]]:
    """Yield a run's text, cut where what is trained on begins and ends."""
    place = 0
    for of, start, stop, trained in zip(sheet.stretch_runs, sheet.starts, sheet.stops, sheet.trained, strict=True):
        if of == run and trained and start < stop:
            yield text[place:start], False
            yield text[start:stop], True
            place = stop
    if place < len(text):
        yield text[place:], False


def marker(manifest: Manifest) -> tuple[Marker | None, str]:
    """Return a marker with a set's template and tokenizer, or None and the reason."""
    try:
        return Marker(prompts.get(manifest.template), load_set_tokenizer(manifest, bulk=False)), ""
    except CurateError as error:
        return None, str(error)
