"""Training on a GPU: memory as planned, the 24 GB cards, fp16, compiled layers, memory that ends, and resumption.

`pytest -m gpu` runs these and the GPU's tests of the other modules. What needs no GPU runs on a CPU as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from benchmarks import training
from benchmarks.training import Bench, Case
from curate.display.figures import GIB
from curate.model import device
from curate.train import distributed
from curate.train import trainer as step

torch.set_num_threads(1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def toy(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A device, for shapes of a toy's size."""
    made = training.bench(request.param, toy=True)
    yield made
    training.clean_up(made)


@pytest.fixture
def card() -> Iterator[Bench]:
    """The GPU, for shapes of full size."""
    made = training.bench("cuda", toy=False)
    yield replace(made, tokens_per_step=16_384, seconds=0.0)
    training.clean_up(made)


def losses(made: training.PreparedCase, count: int) -> list[float]:
    return [made.take(number)[0] for number in range(count)]


# ---- on any device


def test_weights_of_16_bits_learn_by_a_scaled_loss(toy: Bench) -> None:
    half = replace(toy, info=replace(toy.info, dtype="fp16"))
    made = training.prepare(half, Case("fp16", "7B", "full", "1k", {"optimizer": {"form": "master"}}))
    trainer = made.trainer
    rows = made.rows(0)
    trainer.loss_scale.value = 2.0**60  # too much for fp16: the step is skipped, nothing changes
    before = {name: one.detach().clone() for name, one in trainer.parameters.items()}
    outcome = trainer.step(1, rows, 1e-3)
    assert outcome.skipped
    assert trainer.loss_scale.value == 2.0**59
    assert all(torch.equal(one, before[name]) for name, one in trainer.parameters.items())
    trainer.loss_scale.value = 1024.0
    found = [trainer.step(number, rows, 1e-3).loss for number in range(2, 8)]
    assert found[-1] < found[0] - 0.3


def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(toy: Bench) -> None:
    found = training.resume(toy, Case("resumed", "7B", "full", "real"))
    if toy.place.type == "cpu":
        assert found["bit_for_bit"]
    assert found["largest_difference"] < 1e-4


@pytest.mark.parametrize("method", ["full", "lora"])
def test_activations_made_again_change_no_loss(toy: Bench, method: str) -> None:
    found = []
    for layers in (0, 1, 2):
        made = training.prepare(toy, Case("x", "7B", method, "1k", {"train": {"checkpointing": "none"}}))
        step.checkpoint_activations(made.trainer.model, layers)
        flags = [layer.gradient_checkpointing for layer in distributed.layers(made.trainer.model)]
        assert flags == [place < layers for place in range(2)]
        found.append(losses(made, 3))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5 if toy.info.dtype == "fp32" else 2e-3)


def test_matrices_in_4_bits_train_as_the_runs_own_loader_makes_them(toy: Bench) -> None:
    pytest.importorskip("bitsandbytes")
    made = training.prepare(toy, Case("qlora", "7B", "qlora", "1k"))
    frozen = [one for name, one in made.trainer.model.named_parameters() if not one.requires_grad]
    assert sum(one.dtype == torch.uint8 for one in frozen) == 7 * 2
    rows = made.rows(0)
    found = [made.trainer.step(number, rows, 5e-3).loss for number in range(1, 7)]
    assert found[-1] < found[0]


# ---- on a GPU alone


MEMORY = [
    ("full", {}),
    ("full", {"train": {"checkpointing": "full"}}),
    ("full", {"optimizer": {"form": "8bit"}}),
    ("full", {"optimizer": {"form": "stochastic"}}),
    ("full", {"train": {"compile": "off"}}),
    ("lora", {}),
    ("lora", {"train": {"checkpointing": "full"}}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "changes"), MEMORY)
@pytest.mark.parametrize("shape", ["7B", "8B"])
def test_the_plans_peak_is_within_a_tenth_of_the_measured(
    card: Bench, shape: str, method: str, changes: dict[str, Any]
) -> None:
    made = training.prepare(card, Case("x", shape, method, "1k", changes), layers=4)
    device.reset_peak(card.place)
    losses(made, 2)
    measured = device.peak_gib(card.place)
    assert made.plan.peak / GIB == pytest.approx(measured, rel=0.1)
    assert not made.warnings


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "gib"), [("lora", 22.0), ("qlora", 14.0)])
def test_7b_trains_at_2048_on_a_24_gb_card(card: Bench, method: str, gib: float) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    row = training.measure(card, Case(method, "7B", method, "real", gib=gib), deadline=0.0)
    assert row["peak_gib"] <= gib
    assert row["row_tokens"] == 2048
    assert not row["said"]


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["full", "lora"])
def test_compiled_layers_have_the_losses_of_plain_ones_and_compile_once(card: Bench, method: str) -> None:
    found = {}
    for how in ("off", "on"):
        training.clean_up(card)
        made = training.prepare(card, Case("x", "8B", method, "real", {"train": {"compile": how}}), layers=2)
        found[how] = losses(made, 3)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        losses(made, 3)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "a later step compiled anew"
    assert found["on"] == pytest.approx(found["off"], rel=2e-3)


@pytest.mark.gpu
def test_memory_that_ends_halves_the_micro_batch_and_keeps_the_loss(card: Bench) -> None:
    case = Case("x", "7B", "lora", "1k", {"train": {"checkpointing": "none", "compile": "off", "micro_batch": 4}})
    made = training.prepare(card, case, layers=4)
    wanted = made.take(0)[0]
    needed = device.peak_gib(card.place)
    del made
    training.clean_up(card)
    with training.memory_limit(card, 0.75 * needed):
        again = training.prepare(card, case, layers=4)
        assert again.take(0)[0] == pytest.approx(wanted, rel=2e-3)
    assert again.trainer.micro_batch < 4
    assert "memory ran out in step 1" in again.warnings[0]
