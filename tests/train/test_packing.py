"""Packing: every conversation whole, in one row, told apart from its neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import CurateError
from curate.rendering.encoding import EncodedBatch
from curate.train.packing import IGNORED, PADDING, batch, pack, pad

LENGTHS = Path(__file__).parents[2] / "benchmarks" / "data" / "lengths.json"


def examples(lengths: list[int], seed: int = 0) -> EncodedBatch:
    """Return conversations of these lengths with ids from 1 and a mask at random."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    return EncodedBatch(rng.integers(1, 50, total).astype(np.int32), rng.random(total) < 0.5, offsets)


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=60)


@given(SIZES, st.integers(30, 80))
def test_every_conversation_is_in_one_row_and_no_row_is_over(lengths: list[int], row_tokens: int) -> None:
    made = pack(lengths, row_tokens)
    assert sorted(index for row in made.rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= row_tokens for row in made.rows)
    assert made.utilisation == sum(lengths) / (len(made.rows) * row_tokens)
    assert made.padded_utilisation == sum(lengths) / (len(lengths) * row_tokens)
    assert pack(np.array(lengths), row_tokens) == made, "the same rows for the same lengths"


@given(SIZES, st.integers(30, 80))
def test_each_goes_into_the_fullest_row_that_holds_it(lengths: list[int], row_tokens: int) -> None:
    left: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [free for free in left if free >= size]
        left.remove(min(fitting)) if fitting else None
        left.append((min(fitting) if fitting else row_tokens) - size)
    made = pack(lengths, row_tokens)
    assert sorted(row_tokens - sum(lengths[index] for index in row) for row in made.rows) == sorted(left)


@settings(deadline=None)
@given(SIZES, st.integers(30, 80), st.integers(0, 9))
def test_a_batch_holds_each_document_as_it_stands(lengths: list[int], row_tokens: int, seed: int) -> None:
    source = examples(lengths, seed)
    made = pack(lengths, row_tokens)
    tensors = batch(source, made.rows, row_tokens, pad_id=99)
    assert tensors.supervised == int((tensors.targets != IGNORED).sum())
    for row, members in enumerate(made.rows):
        filled = sum(lengths[index] for index in members)
        assert (tensors.documents[row, filled:] == PADDING).all() and (tensors.input_ids[row, filled:] == 99).all()
        assert (tensors.targets[row, filled:] == IGNORED).all()
        for number, index in enumerate(members):
            at = tensors.documents[row] == number
            begin, end = source.offsets[index], source.offsets[index + 1]
            assert tensors.input_ids[row, at].tolist() == source.ids[begin:end].tolist()
            assert tensors.position_ids[row, at].tolist() == list(range(lengths[index]))
            shifted = np.where(source.loss_mask[begin + 1 : end], source.ids[begin + 1 : end], IGNORED)
            assert tensors.targets[row, at].tolist() == [*shifted.tolist(), IGNORED]


@given(SIZES)
def test_packing_trains_on_the_same_targets_as_one_conversation_a_row(lengths: list[int]) -> None:
    source = examples(lengths)
    packed = batch(source, pack(lengths, 64).rows, 64)
    alone = pad(source, range(len(lengths)))
    assert alone.input_ids.shape == (len(lengths), max(lengths))
    assert packed.supervised == alone.supervised
    assert sorted(packed.targets[packed.targets != IGNORED].tolist()) == sorted(
        alone.targets[alone.targets != IGNORED].tolist()
    )


def test_what_is_longer_than_a_row_is_refused_not_cropped() -> None:
    with pytest.raises(CurateError, match="conversation 1 has 9 tokens, a row 8; nothing is cropped"):
        pack([3, 9], 8)


def test_nothing_to_pack_is_said() -> None:
    with pytest.raises(CurateError, match="no conversation"):
        pack([], 8)


def test_ten_thousand_real_lengths_fill_their_rows() -> None:
    real = json.loads(LENGTHS.read_text())["lengths"]
    assert len(real) == 2000 and max(real) <= 2048
    made = pack((real * 5), 2048)
    assert made.utilisation >= 0.99
    assert made.padded_utilisation < 0.5
