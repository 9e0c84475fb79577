"""Training on a GPU: memory as planned, 24 GB cards, fp16, compiled layers, running out of memory, resuming.

`pytest -m gpu` runs these and the GPU's tests of the other modules. Tests that need no GPU run on a CPU too.
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
    """Return a device for toy-sized models."""
    bench = training.bench(request.param, toy=True)
    yield bench
    training.clean_up(bench)


@pytest.fixture
def card() -> Iterator[Bench]:
    """Return the GPU for full-size models."""
    bench = training.bench("cuda", toy=False)
    yield replace(bench, tokens_per_step=16_384, seconds=0.0)
    training.clean_up(bench)


def losses(bench: training.PreparedCase, count: int) -> list[float]:
    return [bench.take(number)[0] for number in range(count)]


# ---- on any device


def test_fp16_weights_learn_with_a_scaled_loss(toy: Bench) -> None:
    half = replace(toy, info=replace(toy.info, dtype="fp16"))
    bench = training.prepare(half, Case("fp16", "7B", "full", "1k", {"optimizer": {"form": "master"}}))
    trainer = bench.trainer
    rows = bench.rows(0)
    trainer.loss_scale.value = 2.0**60  # too much for fp16: the step is skipped, nothing changes
    before = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    outcome = trainer.step(1, rows, 1e-3)
    assert outcome.skipped
    assert trainer.loss_scale.value == 2.0**59
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.parameters.items())
    trainer.loss_scale.value = 1024.0
    step_losses = [trainer.step(number, rows, 1e-3).loss for number in range(2, 8)]
    assert step_losses[-1] < step_losses[0] - 0.3


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_run(toy: Bench) -> None:
    outcome = training.resume(toy, Case("resumed", "7B", "full", "real"))
    if toy.torch_device.type == "cpu":
        assert outcome["bit_for_bit"]
    assert outcome["largest_difference"] < 1e-4


@pytest.mark.parametrize("method", ["full", "lora"])
def test_activation_checkpointing_changes_no_loss(toy: Bench, method: str) -> None:
    runs = []
    for layers in (0, 1, 2):
        bench = training.prepare(toy, Case("x", "7B", method, "1k", {"train": {"checkpointing": "none"}}))
        step.checkpoint_activations(bench.trainer.model, layers)
        flags = [layer.gradient_checkpointing for layer in distributed.layers(bench.trainer.model)]
        assert flags == [index < layers for index in range(2)]
        runs.append(losses(bench, 3))
    for step_losses in runs[1:]:
        assert step_losses == pytest.approx(runs[0], rel=1e-5 if toy.info.dtype == "fp32" else 2e-3)


def test_four_bit_matrices_train_as_loaded_by_a_run(toy: Bench) -> None:
    pytest.importorskip("bitsandbytes")
    bench = training.prepare(toy, Case("qlora", "7B", "qlora", "1k"))
    frozen = [parameter for name, parameter in bench.trainer.model.named_parameters() if not parameter.requires_grad]
    assert sum(parameter.dtype == torch.uint8 for parameter in frozen) == 7 * 2
    rows = bench.rows(0)
    step_losses = [bench.trainer.step(number, rows, 5e-3).loss for number in range(1, 7)]
    assert step_losses[-1] < step_losses[0]


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
def test_the_planned_peak_is_within_a_tenth_of_the_measured_peak(
    card: Bench, shape: str, method: str, changes: dict[str, Any]
) -> None:
    bench = training.prepare(card, Case("x", shape, method, "1k", changes), layers=4)
    device.reset_peak(card.torch_device)
    losses(bench, 2)
    measured = device.peak_gib(card.torch_device)
    assert bench.plan.peak / GIB == pytest.approx(measured, rel=0.1)
    assert not bench.warnings


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
def test_compiled_layers_have_equal_losses_and_compile_once(card: Bench, method: str) -> None:
    by_setting = {}
    for compiled in ("off", "on"):
        training.clean_up(card)
        bench = training.prepare(card, Case("x", "8B", method, "real", {"train": {"compile": compiled}}), layers=2)
        by_setting[compiled] = losses(bench, 3)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        losses(bench, 3)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "a later step compiled anew"
    assert by_setting["on"] == pytest.approx(by_setting["off"], rel=2e-3)


@pytest.mark.gpu
def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_loss(card: Bench) -> None:
    case = Case("x", "7B", "lora", "1k", {"train": {"checkpointing": "none", "compile": "off", "micro_batch": 4}})
    bench = training.prepare(card, case, layers=4)
    wanted = bench.take(0)[0]
    needed = device.peak_gib(card.torch_device)
    del bench
    training.clean_up(card)
    with training.memory_limit(card, 0.75 * needed):
        again = training.prepare(card, case, layers=4)
        assert again.take(0)[0] == pytest.approx(wanted, rel=2e-3)
    assert again.trainer.micro_batch < 4
    assert "memory ran out in step 1" in again.warnings[0]
