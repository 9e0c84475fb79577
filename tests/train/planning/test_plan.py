"""The plan before a run: published step counts, choices with reasons, and suggestions for a run that does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from curate.errors import PlanError, RecipeError
from curate.model import device
from curate.model.sizes import Linear, Shape, Work
from curate.train import config
from curate.train.config import TrainConfig
from curate.train.planning.inputs import Hardware, Load, Steps
from curate.train.planning.plan import Plan, Planner

GIB = 2**30
VICUNA = Load(  # 125,000 conversations, 370M tokens, according to the model card of v1.3
    examples=125_000,
    rows=181_000,
    row_tokens=2048,
    work=Work(370_000_000, 250_000_000, 370_000_000 * 1500),
    held_out=Work(500_000, 300_000, 500_000 * 1500),
    utilisation=0.998,
)
MANY_A_ROW = replace(VICUNA, examples=100_000, rows=32_000)


def llama2_7b() -> Shape:
    sides = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096)}
    sides |= {"gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096)}
    linears = tuple(Linear(f"{name}_proj", *pair, 32) for name, pair in sides.items())
    table = 32000 * 4096
    return Shape(6_738_415_616, table, table, linears, 32, 4096, 11008, 32, 32, 128, 32000, 4096)


def card(gib: float, ranks: int = 1, disk: float = 1000, dtype: str = "bf16") -> Hardware:
    return Hardware("cuda", f"a card of {gib:g} GiB", int(gib * GIB), dtype, 800e12, ranks, int(disk * GIB))


def planned(hardware: Hardware, load: Load = MANY_A_ROW, preset: str = "default", **changes: dict[str, Any]) -> Plan:
    settings = config.override(config.load(preset), changes)
    return Planner(settings, llama2_7b(), load, hardware, attention="flex").plan()


def steps(settings: TrainConfig, load: Load) -> Steps:
    return Planner(settings, llama2_7b(), load, card(80), attention="flex").steps


def test_a_global_batch_counts_examples() -> None:
    counted = steps(TrainConfig(), MANY_A_ROW)  # 3.125 a row
    assert (counted.rows, counted.examples) == (41, 128.125)
    assert counted.count == 2342  # 100,000 examples × 3 epochs ÷ 128 is 2,344
    assert "128 pieces per step = 41 rows of 2,048 tokens" in planned(card(80)).reasons


def test_the_last_step_may_be_smaller_and_max_steps_sets_the_number() -> None:
    load = replace(MANY_A_ROW, examples=10, rows=10)
    few = config.override(TrainConfig(), {"train": {"global_batch": 4, "epochs": 1.0}})
    counted = steps(few, load)
    assert (counted.count, counted.rows, counted.total_rows) == (3, 4, 10)
    counted = steps(config.override(few, {"train": {"max_steps": 7}}), load)
    assert (counted.count, counted.total_rows, counted.epochs) == (7, 28, 2.8)


def test_a_batch_smaller_than_a_row_is_reported() -> None:
    plan = planned(card(80), train={"global_batch": 2})
    assert any("global_batch is 2 pieces, but a row has 3.1" in reason for reason in plan.reasons)


@pytest.mark.parametrize(
    ("gib", "changes", "expected"),
    [
        (141, {"method": {"kind": "full"}}, ("master", False)),
        (109, {"method": {"kind": "full"}}, ("master", True)),
        (85, {"method": {"kind": "full"}}, ("8bit", False)),
        (60, {"method": {"kind": "full"}}, ("stochastic", True)),
        (80, {"method": {"kind": "lora"}}, ("master", False)),
        (22, {"method": {"kind": "lora"}}, ("master", True)),
        (14, {"method": {"kind": "qlora"}}, ("master", True)),
    ],
    ids=["full 141", "full 109", "full 85", "full 60", "LoRA 80", "LoRA 22", "QLoRA 14"],
)
def test_a_7b_model_uses_the_most_exact_form_that_fits(
    gib: float, changes: dict[str, Any], expected: tuple[str, bool]
) -> None:
    plan = planned(card(gib), **changes)
    assert plan.fits_memory
    assert (plan.form, plan.checkpointed > 0) == expected
    assert plan.needs <= gib * GIB


def test_only_as_many_layers_as_necessary_are_checkpointed() -> None:
    plan = planned(card(22), method={"kind": "lora"})
    assert 0 < plan.checkpointed < 32
    assert any(f"activations of {plan.checkpointed} of 32 layers are recomputed" in text for text in plan.reasons)
    spared = planned(card(22), method={"kind": "lora"}, train={"checkpointing": "full"})
    assert spared.checkpointed == 32
    assert plan.seconds is not None and spared.seconds is not None
    assert plan.seconds < 0.95 * spared.seconds
    counts = [planned(card(gib), method={"kind": "lora"}).checkpointed for gib in (19, 20, 21, 22, 23, 24)]
    assert counts == sorted(counts, reverse=True)


def test_fp16_weights_are_never_rounded_stochastically() -> None:
    full: dict[str, Any] = {"method": {"kind": "full"}}
    assert planned(card(60), **full).form == "stochastic"
    plan = planned(card(60, dtype="fp16"), **full)
    assert not plan.fits
    assert not any("stochastic" in text for text in plan.suggestions)


def test_a_24_gb_card_has_room_for_7b() -> None:
    small: dict[str, Any] = {"train": {"micro_batch": 1, "checkpointing": "full"}}
    assert planned(card(14), method={"kind": "qlora"}, **small).fits
    assert planned(card(22), method={"kind": "lora"}, **small).fits


def test_a_run_that_does_not_fit_is_refused_with_suggestions() -> None:
    plan = planned(card(24), method={"kind": "full"})
    assert not plan.fits
    with pytest.raises(PlanError) as caught:
        plan.require_fit()
    message = str(caught.value)
    assert "24.0 GiB are free (a card of 24 GiB)" in message
    assert "--method lora (" in message and "--method qlora (" in message and "4 such devices with torchrun" in message
    assert "\n" not in message


def test_requested_settings_are_kept_and_marked_as_requested() -> None:
    plan = planned(card(141), method={"kind": "lora"}, train={"micro_batch": 2, "checkpointing": "full"})
    assert (plan.micro_batch, plan.grad_accum, plan.checkpointed) == (2, 21, 32)
    assert "2 rows at once: as set" in plan.reasons
    assert "activations checkpointed: yes, as set" in plan.reasons


def test_a_micro_batch_spreads_a_step_evenly() -> None:
    plan = planned(card(141), method={"kind": "lora"})  # 8 rows of 2,048 at most: 41 rows in 6 portions of 7
    assert (plan.micro_batch, plan.grad_accum) == (7, 6)
    assert planned(card(141, ranks=4), method={"kind": "lora"}).grad_accum == 2


def test_a_full_7b_state_is_94_gb_and_the_disk_must_hold_it() -> None:
    plan = planned(card(141, disk=150), method={"kind": "full"}, optimizer={"form": "master"})
    assert plan.checkpoint == 14 * 6_738_415_616  # weights in bf16, three fp32 tensors of the optimizer
    with pytest.raises(PlanError, match=r"of disk, and 150.0 GiB are free .* is 87.9 GiB"):
        plan.require_fit()
    assert planned(card(141, disk=150), method={"kind": "lora"}).fits


def test_more_ranks_share_the_states_and_the_time() -> None:
    single, eight = (
        planned(card(80, ranks=ranks), method={"kind": "full"}, optimizer={"form": "master"}) for ranks in (1, 8)
    )
    assert not single.fits and eight.fits
    assert eight.parts["optimizer states"] * 8 == pytest.approx(single.parts["optimizer states"])
    assert eight.seconds is not None and single.seconds is not None
    assert eight.seconds < single.seconds / 5


def test_the_time_for_vicuna_is_close_to_the_published_time() -> None:
    # Its model card names about 12 hours on 8 A100 (312e12) for 13B; 7B cost 140 of 300 dollars.
    a100 = Hardware("cuda", "A100", 80 * GIB, "bf16", 270e12, 8, 1000 * GIB)
    plan = planned(a100, VICUNA, preset="vicuna-7b")
    assert plan.seconds is not None
    assert 3 < plan.seconds / 3600 < 18


def test_a_plan_is_plain_values() -> None:
    import json

    values = planned(card(80)).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["steps"] == 2342 and values["peak_gib"] <= values["needs_gib"] <= values["available_gib"]


def test_this_machine_can_be_measured() -> None:
    torch.set_num_threads(1)
    measured = device.measure_device(torch.device("cpu"))
    assert (measured.kind, measured.dtype) == ("cpu", "fp32")
    assert measured.memory > 100 << 20
    assert measured.rate > 1e8
    assert device.measure_device(torch.device("cpu"), memory_gib=0.25).memory == GIB // 4
    assert device.peak_gib(torch.device("cpu")) > 0.05


def test_a_type_that_the_device_lacks_is_refused() -> None:
    assert device.choose_dtype(torch.device("cpu"), "bf16") == ("bf16", "as asked")
    with pytest.raises(RecipeError, match="fp16 needs a CUDA device"):
        device.choose_dtype(torch.device("cpu"), "fp16")


def test_out_of_memory_is_recognised_on_a_cpu_too() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert device.is_out_of_memory(caught.value)
    assert device.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not device.is_out_of_memory(RuntimeError("shape mismatch"))
