"""A rendering shown: its text in order, told from the ids themselves, and which of it is trained on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from curate.tokens import Tokenizer
from curate.train.data import Examples

Span = tuple[str, bool]  # text, control tokens by name; whether it is trained on


def spans(tokenizer: Tokenizer, ids: NDArray[np.int32], mask: NDArray[np.bool_]) -> list[Span]:
    """Return the stretches of one rendering (`ids` and `mask` are [tokens]); of neighbours one is trained on."""
    controls = set(tokenizer.control_ids.values())
    pairs = list(zip(ids.tolist(), mask.tolist(), strict=True))
    out: list[Span] = []
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


def masked(examples: Examples, tokenizer: Tokenizer, places: Iterable[int]) -> list[dict[str, object]]:
    """Return some conversations as a run's page shows them: `{name, runs: [[text, trained], …]}`."""
    rows: list[dict[str, object]] = []
    for place in places:
        part = slice(*examples.offsets[place : place + 2].tolist())
        found = spans(tokenizer, examples.ids[part], examples.mask[part])
        rows.append({"name": examples.names[place], "runs": [list(span) for span in found]})
    return rows
