"""Packing puts each whole example in one row, separate from its neighbours."""

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
    """Return examples of these lengths with ids from 1 and a random mask."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    return EncodedBatch(rng.integers(1, 50, total).astype(np.int32), rng.random(total) < 0.5, offsets)


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=60)


@given(SIZES, st.integers(30, 80))
def test_every_example_is_in_one_row_and_no_row_is_too_long(lengths: list[int], row_tokens: int) -> None:
    packed = pack(lengths, row_tokens)
    assert sorted(index for row in packed.rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= row_tokens for row in packed.rows)
    assert packed.utilisation == sum(lengths) / (len(packed.rows) * row_tokens)
    assert packed.padded_utilisation == sum(lengths) / (len(lengths) * row_tokens)
    assert pack(np.array(lengths), row_tokens) == packed, "the same rows for the same lengths"


@given(SIZES, st.integers(30, 80))
def test_each_example_goes_into_the_fullest_row_with_room(lengths: list[int], row_tokens: int) -> None:
    free_tokens: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [free for free in free_tokens if free >= size]
        free_tokens.remove(min(fitting)) if fitting else None
        free_tokens.append((min(fitting) if fitting else row_tokens) - size)
    packed = pack(lengths, row_tokens)
    assert sorted(row_tokens - sum(lengths[index] for index in row) for row in packed.rows) == sorted(free_tokens)


@settings(deadline=None)
@given(SIZES, st.integers(30, 80), st.integers(0, 9))
def test_a_batch_holds_each_document_unchanged(lengths: list[int], row_tokens: int, seed: int) -> None:
    source = examples(lengths, seed)
    packed = pack(lengths, row_tokens)
    tensors = batch(source, packed.rows, row_tokens, pad_id=99)
    assert tensors.supervised == int((tensors.targets != IGNORED).sum())
    for row, members in enumerate(packed.rows):
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
def test_packed_and_unpacked_rows_have_the_same_targets(lengths: list[int]) -> None:
    source = examples(lengths)
    packed = batch(source, pack(lengths, 64).rows, 64)
    alone = pad(source, range(len(lengths)))
    assert alone.input_ids.shape == (len(lengths), max(lengths))
    assert packed.supervised == alone.supervised
    assert sorted(packed.targets[packed.targets != IGNORED].tolist()) == sorted(
        alone.targets[alone.targets != IGNORED].tolist()
    )


def test_an_example_longer_than_a_row_is_refused_and_not_cropped() -> None:
    with pytest.raises(CurateError, match="piece 1 has 9 tokens, a row 8; nothing is cropped"):
        pack([3, 9], 8)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(CurateError, match="no piece"):
        pack([], 8)


def test_ten_thousand_real_lengths_fill_their_rows() -> None:
    real = json.loads(LENGTHS.read_text())["lengths"]
    assert len(real) == 2000 and max(real) <= 2048
    packed = pack((real * 5), 2048)
    assert packed.utilisation >= 0.99
    assert packed.padded_utilisation < 0.5
