"""Answers that are generated together are those that each request gets alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from curate.inference.batch import Batch, Generation, Row, ScoredToken, can_batch
from curate.inference.sampling import Sampling, stream_tokens
from tests.support import tiny_models

STOPS = (7, 8, 9)


def generations(seed: int, count: int) -> list[Generation]:
    draw = random.Random(seed)

    def one() -> Generation:
        sampling = Sampling(
            temperature=draw.choice([0, 0, 1.0]),
            seed=draw.randrange(100),
            repetition=draw.choice([1.0, 1.0, 1.2]),
            frequency=draw.choice([0.0, 0.5]),
            presence=draw.choice([0.0, -0.5]),
            bias=draw.choice([(), ((11, 1.5), (12, -100.0))]),
            max_new_tokens=draw.randrange(1, 16),
        )
        prompt = tuple(draw.randrange(10, 160) for _ in range(draw.randrange(1, 24)))
        return Generation(prompt, sampling, draw.choice([None, 2]))

    return [one() for _ in range(count)]


def generate_together(model: Any, wanted: list[Generation], *, rows: int, seed: int) -> list[list[int]]:
    """Generate answers in one batch, which requests join at random steps."""
    draw, batch = random.Random(seed), Batch(model)
    waiting, running = list(enumerate(wanted)), dict[Row, int]()
    answers: list[list[int]] = [[] for _ in wanted]

    def take(row: Row, token: int) -> None:
        answer = answers[running[row]]
        answer.append(token)
        if token in STOPS or len(answer) == row.generation.sampling.max_new_tokens:
            batch.leave(row)
            del running[row]

    while waiting or running:
        if waiting and len(running) < rows and draw.random() < 0.7:
            index, generation = waiting.pop(0)
            row, scored = batch.join(generation)
            running[row] = index
            take(row, scored.id)
        for row, token in batch.step():
            assert isinstance(token, ScoredToken)
            take(row, token.id)
    assert batch.is_empty
    return answers


@pytest.mark.parametrize(
    "changes",
    [{}, {"kind": "mistral", "sliding_window": 8}, {"kind": "gpt2", "n_positions": 512, "n_embd": 32, "n_head": 4}],
    ids=["llama", "sliding window", "learned positions"],
)
def test_a_batch_gives_each_request_its_own_answer(changes: dict[str, Any]) -> None:
    model = tiny_models.model(**{"kind": "llama", "initializer_range": 0.2, **changes})
    assert can_batch(model)
    wanted = generations(1, 12)
    alone = [list(stream_tokens(model, each.prompt, STOPS, each.sampling)) for each in wanted]
    assert generate_together(model, wanted, rows=5, seed=2) == alone


def next_of(batch: Batch) -> ScoredToken:
    [(_, token)] = batch.step()
    assert isinstance(token, ScoredToken)
    return token


def test_a_batch_of_one_has_the_very_logits_of_a_single_answer() -> None:
    model = tiny_models.model(initializer_range=0.2)
    scored = Batch(model)
    row, first = scored.join(Generation((11, 12, 13), Sampling(max_new_tokens=6), 3))
    tokens = [first, *(next_of(scored) for _ in range(4))]
    ids = list(stream_tokens(model, (11, 12, 13), (), Sampling(max_new_tokens=5)))
    assert [token.id for token in tokens] == ids
    with torch.no_grad():
        logits = model(torch.tensor([[11, 12, 13]])).logits[0, -1].log_softmax(-1)
    assert tokens[0].logprob == pytest.approx(float(logits[ids[0]]), abs=1e-5)
    assert [pair[0] for pair in tokens[0].top] == logits.topk(3).indices.tolist()
    assert row.length == 3 + 4


def test_a_row_can_leave_before_it_is_in_the_cache_and_an_error_clears_all() -> None:
    batch = Batch(tiny_models.model())
    first, _ = batch.join(Generation((11, 12), Sampling()))
    second, _ = batch.join(Generation((13,), Sampling()))
    batch.leave(first)
    assert [row for row, _ in batch.step()] == [second]
    batch.clear()
    assert batch.is_empty and batch.step() == []


def test_a_model_whose_cache_is_more_than_keys_and_values_answers_one_request_at_a_time() -> None:
    model = tiny_models.model("lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8)
    assert not can_batch(model)
    batch = Batch(model)
    row, first = batch.join(Generation((11, 12), Sampling(max_new_tokens=4)))
    ids = [first.id, *(next_of(batch).id for _ in range(3))]
    assert ids == list(stream_tokens(model, (11, 12), (), Sampling(max_new_tokens=4)))
    assert row.length == 2 + 3
