"""Held-out loss and sample answers: exact sums, the same on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed as group

from curate.inference.sampling import Sampling
from curate.model.attention import selection as attentions
from curate.model.attention.selection import ChosenKernel
from curate.rendering.factory import make_renderer
from curate.rendering.renderer import Renderer
from curate.schemas.conversation import Message
from curate.tokenization.tokenizer import load_tokenizer
from curate.train import distributed, evaluation
from curate.train.distributed import World
from curate.train.evaluation import HeldOut
from curate.train.examples import Examples
from curate.train.objectives.loss import CausalLoss
from curate.train.report import html
from curate.train.run import records
from curate.train.run.records import Prompt, Slice
from tests.support import tiny_models
from tests.support.ranks import spawn
from tests.support.tiny_tokenizers import folder, sentencepiece_model

ALONE = World(0, 1, 0, torch.device("cpu"))
ROW = 64


def examples(lengths: Sequence[int], *, seed: int = 0) -> Examples:
    """Return examples of random ids, about half of them trained on."""
    source = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = source.integers(3, tiny_models.VOCABULARY, offsets[-1]).astype(np.int32)
    mask = source.random(offsets[-1]) < 0.5
    mask[offsets[:-1]] = False
    count = len(lengths)
    languages = [("en", "ko", None)[i % 3] for i in range(count)]
    return Examples(ids, mask, offsets, [f"c{i}" for i in range(count)], languages, np.arange(1, count + 1, dtype="i4"))


def held_out(lengths: Sequence[int], limit: int = 0) -> HeldOut:
    return HeldOut(examples(lengths), ROW, limit)


LENGTHS = (40, 9, 30, 17, 64, 3, 25, 12)


def ready(**changes: Any) -> tuple[CausalLoss, ChosenKernel]:
    module = CausalLoss(tiny_models.model(**changes))
    return module, attentions.install_kernel(module.model, attentions.choose_kernel("cpu", torch.float32))


def plain_losses(data: Examples) -> list[tuple[float, int]]:
    """Return each example's summed loss and number of supervised tokens, from transformers' own forward."""
    model, sums = tiny_models.model(), []
    for i in range(len(data)):
        ids = torch.from_numpy(data.ids[data.offsets[i] : data.offsets[i + 1]].astype(np.int64))
        mask = torch.from_numpy(data.loss_mask[data.offsets[i] : data.offsets[i + 1]])
        sums.append((tiny_models.plain_loss(model, [(ids, mask)]).item(), int(mask[1:].sum())))
    return sums


def test_the_loss_is_the_mean_over_supervised_tokens() -> None:
    data = examples(LENGTHS)
    losses = evaluation.losses(*ready(), held_out(LENGTHS), ALONE, micro_batch=2)
    one_by_one = plain_losses(data)
    tokens_ = sum(count for _, count in one_by_one)
    assert losses.overall.tokens == tokens_
    assert losses.overall.examples == len(LENGTHS)
    assert losses.record(1, records.BASE)["overall"]["conversations"] == len(LENGTHS)
    assert losses.overall.loss == pytest.approx(sum(loss for loss, _ in one_by_one) / tokens_, rel=1e-5)
    for name in ("en", "ko", "unknown"):
        members = [one_by_one[i] for i in range(len(data)) if (data.languages[i] or "unknown") == name]
        mean = sum(loss for loss, _ in members) / sum(count for _, count in members)
        shown = next(part for part in losses.by_language if part.name == name)
        assert shown.loss == pytest.approx(mean, rel=1e-5)
        assert shown.examples == len(members)


def test_every_token_is_counted_once_in_each_grouping() -> None:
    losses = evaluation.losses(*ready(), held_out(LENGTHS), ALONE)
    for slices in (losses.by_exchanges, losses.by_depth, losses.by_language, losses.by_length):
        assert sum(part.tokens for part in slices) == losses.overall.tokens
        total = sum((part.loss or 0.0) * part.tokens for part in slices)
        assert total / losses.overall.tokens == pytest.approx(losses.overall.loss, rel=1e-9)
    assert [part.name for part in losses.by_exchanges] == ["1", "2", "3-4", "5-8"]
    assert [part.name for part in losses.by_length] == ["1-256"]
    assert [part.name for part in losses.by_depth][:3] == ["1", "2", "3-4"]


def test_a_limit_selects_evenly_spaced_examples() -> None:
    data = examples(LENGTHS)
    losses = evaluation.losses(*ready(), held_out(LENGTHS, limit=3), ALONE)
    one_by_one = plain_losses(data)
    chosen = [one_by_one[i] for i in (0, 2, 5)]
    assert losses.overall.examples == 3
    assert losses.overall.loss == pytest.approx(sum(a for a, _ in chosen) / sum(b for _, b in chosen), rel=1e-5)


@given(st.integers(0, 300), st.integers(0, 300))
def test_evenly_spaced_indices_are_ascending_and_of_the_requested_number(count: int, limit: int) -> None:
    places = evaluation.spread(count, limit).tolist()
    assert len(places) == (min(limit, count) if limit else count)
    assert places == sorted({*places} & {*range(count)})


@given(st.integers(0, 100_000), st.sampled_from([1, 256]))
def test_a_band_contains_its_number_and_borders_the_next_band(number: int, least: int) -> None:
    low, high = evaluation.band(number, least)
    assert low <= number <= high
    if number:
        assert evaluation.band(high + 1, least)[0] == high + 1


def test_without_held_out_examples_or_with_a_broken_model_the_loss_is_none() -> None:
    module, attention = ready()
    assert evaluation.losses(module, attention, held_out(()), ALONE).overall == Slice("all", None, 0, 0)
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    losses = evaluation.losses(module, attention, held_out(LENGTHS), ALONE)
    assert losses.overall.loss is None
    assert "NaN" not in json.dumps(losses.record(3, "tuned"))


def test_dropout_is_off_during_evaluation_and_restored_after() -> None:
    module, attention = ready(attention_dropout=0.5)
    module.train()
    first = evaluation.losses(module, attention, held_out(LENGTHS), ALONE)
    assert first == evaluation.losses(module, attention, held_out(LENGTHS), ALONE)
    assert module.training


def _on_a_rank(rank: int, shard: bool, file: str) -> None:
    world = World(rank, group.get_world_size(), rank, torch.device("cpu"))
    module, attention = ready()
    spread = distributed.wrap_model(module, world, shard=shard)
    data = held_out(LENGTHS)
    losses = evaluation.losses(spread, attention, data, world, micro_batch=2)
    renderer = build_renderer(Path(file))
    answers = evaluation.answers(spread, renderer, prompts(), world, sampling_settings=SHORT, limit=60)
    after = evaluation.losses(spread, attention, data, world, micro_batch=2)
    assert after == losses, "answering leaves the model as it was"
    result = {"loss": losses.record(1, "tuned"), "answers": [answer.record(1, "tuned") for answer in answers]}
    (Path(file) / f"{rank}.json").write_text(json.dumps(result))


SHORT = Sampling(max_new_tokens=12)


def prompts() -> list[Prompt]:
    return [Prompt(f"p{i}", (Message("user", str(i)),), tuple(range(5, 9 + i))) for i in range(3)]


def build_renderer(root: Path) -> Renderer:
    return make_renderer("vicuna", load_tokenizer(str(root)))


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    return folder(tmp_path, tokenizer_model=sentencepiece_model())


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("lengths", [LENGTHS], ids=["uneven rows"])
def test_two_ranks_give_the_results_of_one(shard: bool, lengths: Sequence[int], tokenizer_folder: Path) -> None:
    spawn(_on_a_rank, 2, shard, str(tokenizer_folder))
    ranks = [json.loads((tokenizer_folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    module, attention = ready()
    alone = evaluation.losses(module, attention, held_out(lengths), ALONE, micro_batch=2)
    assert ranks[0]["loss"]["overall"]["tokens"] == alone.overall.tokens
    assert ranks[0]["loss"]["overall"]["loss"] == pytest.approx(alone.overall.loss, rel=1e-6)
    answers = evaluation.answers(
        module, build_renderer(tokenizer_folder), prompts(), ALONE, sampling_settings=SHORT, limit=60
    )
    assert ranks[0]["answers"] == [answer.record(1, "tuned") for answer in answers]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what peft asks transformers
def test_a_model_with_its_adapter_disabled_is_its_base() -> None:
    import peft

    base, attention = ready()
    data = held_out(LENGTHS)
    before = evaluation.losses(base, attention, data, ALONE)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    module = CausalLoss(peft.get_peft_model(base.model, config))
    tuned = evaluation.losses(module, attention, data, ALONE)
    assert tuned.overall.loss != before.overall.loss
    with evaluation.as_base(module):
        again = evaluation.losses(module, attention, data, ALONE)
    assert again == before


TALK = [
    Message("user", "What is the time?"),
    Message("assistant", "It is half past nine."),
    Message("user", "And the answer?"),
    Message("assistant", "Forty-two; 안녕 \N{SMILING FACE WITH OPEN MOUTH}"),
]


def rendered(renderer: Renderer) -> Examples:
    example = renderer.render([TALK])[0]
    return Examples(
        example.ids,
        example.loss_mask,
        np.array([0, len(example.ids)]),
        ["talk"],
        ["en"],
        np.array([2], dtype="i4"),
    )


def test_a_prompt_from_the_data_ends_before_its_first_answer(tokenizer_folder: Path) -> None:
    renderer = build_renderer(tokenizer_folder)
    prompts = evaluation.data_prompts(renderer, rendered(renderer), 4)
    assert [prompt.name for prompt in prompts] == ["held out: talk"]
    assert list(prompts[0].ids) == renderer.generation_prompt(TALK[:1]).tolist()
    assert prompts[0].reference == "It is half past nine."
    assert prompts[0].messages == (Message("user", "What is the time?"),), "without what the template writes around it"
    assert evaluation.data_prompts(renderer, rendered(renderer), 0) == []
    fixed = evaluation.fixed_prompts(renderer, ["What is the time?"])
    assert fixed[0].ids == prompts[0].ids


def test_the_shown_mask_covers_the_whole_text(tokenizer_folder: Path) -> None:
    renderer = build_renderer(tokenizer_folder)
    row = evaluation.decode_masks(renderer.tokenizer, rendered(renderer), 3)[0]
    trained = [text for text, is_trained in row["runs"] if is_trained]
    assert trained == [" It is half past nine.</s>", f" {TALK[3].content}</s>"]
    decoded = renderer.tokenizer.decode(rendered(renderer).ids.tolist())
    without_prefixes = decoded.replace("s> ", "s>")  # SentencePiece decodes a space after a control token
    assert "".join(text for text, _ in row["runs"]) == without_prefixes


def test_the_page_of_a_run_shows_what_was_evaluated(tokenizer_folder: Path, tmp_path: Path) -> None:
    module, attention = ready()
    renderer, run = build_renderer(tokenizer_folder), tmp_path / "run"
    run.mkdir()
    losses = evaluation.losses(module, attention, held_out(LENGTHS), ALONE)
    records.append(run / records.EVAL, [losses.record(0, records.BASE), losses.record(5, records.TUNED)])
    answers = evaluation.answers(module, renderer, prompts()[:1], ALONE, sampling_settings=SHORT)
    records.append(
        run / records.SAMPLES, [answers[0].record(step, which) for step, which in ((0, "base"), (5, "tuned"))]
    )
    records.append(run / records.MASKED, evaluation.decode_masks(renderer.tokenizer, rendered(renderer), 1))
    text = html.render(records.read(run))
    assert f"{losses.overall.loss:.4f}" in text
    assert "exchanges: 3-4" in text
    assert "answer: 3-4" in text
    assert "in the data" not in text, "these prompts have no known answer"
    assert "<mark> It is half past nine.&lt;/s&gt;</mark>" in text
