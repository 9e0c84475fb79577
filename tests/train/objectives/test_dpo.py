"""The loss of pairs and its gradients equal a hand-written loop over single sequences in fp32, and TRL's trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from torch.nn.functional import logsigmoid

from curate.model.attention import selection
from curate.train import evaluation, packing
from curate.train.config import ObjectiveSettings
from curate.train.distributed import World
from curate.train.examples import Examples
from curate.train.objectives.dpo import Dpo, PairData
from curate.train.objectives.loss import CausalLoss, step_factor
from curate.train.objectives.scoring import log_probabilities
from curate.train.objectives.sft import Sft
from curate.train.packing import PackedData
from tests.support import tiny_models

# What peft asks transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
ALONE = World(0, 1, 0, torch.device("cpu"))
PROMPTS, ANSWERS = (5, 9, 1, 4), ((6, 3), (2, 8), (11, 10), (1, 1))  # tokens, of chosen and rejected answers
Rows = list[list[int]]  # of pairs
PLAIN = ObjectiveSettings("dpo")
SETTINGS = {
    "plain": PLAIN,
    "length-normalised": ObjectiveSettings("dpo", beta=2.0, length_normalised=True),
    "smoothed": ObjectiveSettings("dpo", beta=0.5, label_smoothing=0.2),
    "with SFT": ObjectiveSettings("dpo", sft_weight=0.7),
}
ROWS = {
    "one row": [[0, 1, 2, 3]],
    "a pair in each": [[0], [1], [2], [3]],
    "mixed": [[3, 0], [2, 1]],
}


@pytest.fixture(scope="module")
def data() -> Examples:
    """Return four pairs of random ids."""
    source = np.random.default_rng(0)
    ids: list[Any] = []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        shared = source.integers(3, tiny_models.VOCABULARY, prompt)
        ids += [np.concatenate([shared, source.integers(3, tiny_models.VOCABULARY, answer)]) for answer in answers]
    masks = [np.arange(len(side)) >= PROMPTS[index // 2] for index, side in enumerate(ids)]
    offsets = np.cumsum([0, *map(len, ids)])
    names = [f"pair {index // 2}" for index in range(len(ids))]
    count = np.ones(len(ids), np.int32)
    return Examples(
        np.concatenate(ids).astype(np.int32), np.concatenate(masks), offsets, names, [None] * len(ids), count, sides=2
    )


def policy(*, head: bool = False) -> Any:
    """Return a model; with `head`, one with a LoRA on its head, whose logits come from no single matrix."""
    model = tiny_models.model(seed=1, initializer_range=0.1)
    if not head:
        return model
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return peft.get_peft_model(model, settings)


def by_hand(model: Any, data: Examples) -> list[Any]:
    """Return the log-probability of each example: transformers' own forward on it alone, unpadded."""
    scores = []
    for index in range(len(data)):
        ids, mask = (torch.from_numpy(array) for array in data.rendering(index))
        logits = model(input_ids=ids[None].long(), use_cache=False).logits[0]
        tokens = logits[:-1].log_softmax(-1).gather(1, ids[1:, None].long())[:, 0]
        scores.append(tokens[mask[1:]].sum())
    return scores


def loss_by_hand(scores: Sequence[Any], reference: Sequence[Any], data: Examples, settings: ObjectiveSettings) -> Any:
    """Return the mean loss of the pairs, one at a time, as the papers write it."""
    total = torch.zeros(())
    for chosen in range(0, len(scores), 2):
        ratios = [
            (scores[side] - reference[side]) / (data.rendering(side)[1].sum() if settings.length_normalised else 1)
            for side in (chosen, chosen + 1)
        ]
        margin = settings.beta * (ratios[0] - ratios[1])
        total = total - (1 - settings.label_smoothing) * logsigmoid(margin)
        total = total - settings.label_smoothing * logsigmoid(-margin)
        total = total - settings.sft_weight * scores[chosen] / int(data.rendering(chosen)[1].sum())
    return total / (len(scores) // 2)


def gradients(model: Any) -> dict[str, Any]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(ours: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare gradients, to a millionth of the largest element."""
    assert set(ours) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6 * max(1.0, float(gradient.abs().max())), rtol=1e-5)


def step(
    model: Any,
    data: Examples,
    reference: Any,
    settings: ObjectiveSettings,
    pairs: Rows,
    micro_batch: int = 1,
) -> tuple[Any, dict[str, Any]]:
    """Return what a step over these rows of pairs says, and its gradients."""
    rows = packing.rows_of_sides(pairs, 2)
    packed = PairData(data, rows, int(data.lengths.sum()), np.asarray(reference))
    batches = [packed.batch(range(len(rows))[at : at + micro_batch], 3) for at in range(0, len(rows), micro_batch)]
    objective = Dpo(settings)
    module = objective.module(model)
    kernel = selection.install_kernel(model, selection.choose_kernel("cpu", torch.float32))
    factor, count = step_factor(map(objective.count, batches))
    total: Any = 0.0
    for batch in batches:
        sums = module(batch, kernel)
        (sums[0] * factor).backward()
        total = total + sums.detach()
    return objective.summarise(total.tolist(), count), gradients(model)


@pytest.mark.parametrize("head", [False, True], ids=["a plain head", "a head with an adapter"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_loss_and_gradients_equal_a_hand_written_loop_over_single_sequences(
    data: Examples, settings: ObjectiveSettings, head: bool
) -> None:
    with torch.no_grad():
        reference = [float(score) for score in by_hand(tiny_models.model(seed=2, initializer_range=0.1), data)]
    plain = policy(head=head)
    wanted = loss_by_hand(by_hand(plain, data), reference, data, settings)
    wanted.backward()
    summary, ours = step(policy(head=head), data, reference, settings, ROWS["mixed"])
    assert summary.loss == pytest.approx(wanted.item(), abs=1e-6)
    assert summary.supervised == sum(map(sum, ANSWERS))
    assert_same(ours, gradients(plain))


@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_step_does_not_depend_on_rows_and_micro_batches(data: Examples, rows: Rows, micro_batch: int) -> None:
    reference = np.linspace(-60.0, -20.0, len(data))
    wanted, expected = step(policy(), data, reference, PLAIN, ROWS["one row"])
    summary, ours = step(policy(), data, reference, PLAIN, rows, micro_batch)
    assert summary.loss == pytest.approx(wanted.loss, abs=1e-6)
    assert summary.metrics == pytest.approx(wanted.metrics, abs=1e-5)
    assert_same(ours, expected)


def test_the_metrics_are_those_of_the_pairs(data: Examples) -> None:
    with torch.no_grad():
        scores = np.array([float(score) for score in by_hand(policy(), data)])
    reference = scores - np.array([1.0, 0.0, -2.0, 0.0, 3.0, -1.0, 0.0, 0.0])  # the last pair is a tie
    summary, _ = step(policy(), data, reference, PLAIN, ROWS["mixed"])
    margins = np.array([1.0, -2.0, 4.0, 0.0]) * PLAIN.beta
    assert summary.loss == pytest.approx(np.log1p(np.exp(-margins)).mean(), abs=1e-5)
    sizes = np.array(ANSWERS)
    assert summary.metrics == pytest.approx(
        {
            "accuracy": 0.5,
            "margin": margins.mean(),
            "chosen_reward": 0.05,
            "rejected_reward": -0.025,
            "chosen_loss": -scores[0::2].sum() / sizes[:, 0].sum(),
            "rejected_loss": -scores[1::2].sum() / sizes[:, 1].sum(),
        },
        abs=1e-5,
    )


def scores_of(model: Any, data: Examples) -> Any:
    kernel = selection.install_kernel(model, selection.choose_kernel("cpu", torch.float32))
    rows = packing.rows_of_sides(ROWS["mixed"], 2)
    return log_probabilities(CausalLoss(model), kernel, PackedData(data, rows, 60), ALONE, micro_batch=2)


def test_the_reference_is_the_model_before_the_first_step_which_for_a_new_adapter_is_the_base(data: Examples) -> None:
    with torch.no_grad():
        base = [float(score) for score in by_hand(policy(), data)]
    torch.manual_seed(0)
    model = peft.get_peft_model(policy(), peft.LoraConfig(r=2, target_modules="all-linear"))
    reference = scores_of(model, data)
    np.testing.assert_allclose(reference, base, atol=1e-4)
    summary, _ = step(model, data, reference, PLAIN, ROWS["mixed"])
    assert summary.loss == pytest.approx(math.log(2), abs=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert np.abs(scores_of(model, data) - base).max() > 1
    with evaluation.as_base(CausalLoss(model)):
        np.testing.assert_allclose(scores_of(model, data), base, atol=1e-4)


def test_the_loss_of_sft_equals_a_hand_written_loop_over_single_sequences(data: Examples) -> None:
    plain, model = policy(), policy()
    wanted = -sum(by_hand(plain, data)) / sum(map(sum, ANSWERS))
    wanted.backward()
    batch = PackedData(data, packing.rows_of_sides(ROWS["mixed"], 2), 60).batch([0, 1])
    kernel = selection.install_kernel(model, selection.choose_kernel("cpu", torch.float32))
    objective = Sft()
    loss = objective.module(model)(batch, kernel)
    (loss * step_factor([objective.count(batch)])[0]).backward()
    assert objective.summarise([loss.item()], batch.supervised).loss == pytest.approx(wanted.item(), abs=1e-6)
    assert_same(gradients(model), gradients(plain))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["plain", "length-normalised"])
def test_trls_trainer_has_the_same_loss_and_gradients(data: Examples, name: str, tmp_path: Path) -> None:
    trl: Any = pytest.importorskip("trl", reason="TRL is not installed")
    from datasets import Dataset
    from transformers import AutoTokenizer

    from tests.support.tiny_tokenizers import folder, sentencepiece_model

    settings = SETTINGS[name]
    sides = [data.rendering(index)[0].tolist() for index in range(len(data))]
    pairs = [
        {"prompt_ids": chosen[:size], "chosen_ids": chosen[size:], "rejected_ids": rejected[size:]}
        for size, chosen, rejected in zip(PROMPTS, sides[0::2], sides[1::2], strict=True)
    ]
    trainer = trl.DPOTrainer(
        model=policy(),
        ref_model=tiny_models.model(seed=2, initializer_range=0.1),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"),
            loss_type=["sigmoid_norm" if settings.length_normalised else "sigmoid"],
            beta=settings.beta,
            per_device_train_batch_size=len(pairs),
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=AutoTokenizer.from_pretrained(folder(tmp_path / "tok", tokenizer_model=sentencepiece_model())),
    )
    wanted = trainer.compute_loss(trainer.model, trainer.data_collator(pairs))
    wanted.backward()
    with torch.no_grad():
        reference = [float(score) for score in by_hand(tiny_models.model(seed=2, initializer_range=0.1), data)]
    summary, ours = step(policy(), data, reference, settings, ROWS["mixed"])
    assert summary.loss == pytest.approx(wanted.item(), abs=1e-6), asdict(settings)
    assert_same(ours, gradients(trainer.model))
