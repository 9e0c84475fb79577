"""The plan before a run: steps as published, choices with reasons, and what would fit where a run does not."""

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
from curate.train.plan import Hardware, Load, Plan, Planner, Steps

GIB = 2**30
VICUNA = Load(  # 125,000 conversations, 370M tokens, as the model card of v1.3 says
    conversations=125_000,
    rows=181_000,
    row_tokens=2048,
    work=Work(370_000_000, 250_000_000, 370_000_000 * 1500),
    held_out=Work(500_000, 300_000, 500_000 * 1500),
    utilisation=0.998,
)
MANY_A_ROW = replace(VICUNA, conversations=100_000, rows=32_000)


def llama2_7b() -> Shape:
    sides = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096)}
    sides |= {"gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096)}
    linears = tuple(Linear(f"{name}_proj", *pair, 32) for name, pair in sides.items())
    table = 32000 * 4096
    return Shape(6_738_415_616, table, table, linears, 32, 4096, 11008, 32, 32, 128, 32000, 4096)


def card(gib: float, ranks: int = 1, disk: float = 1000, dtype: str = "bf16") -> Hardware:
    return Hardware("cuda", f"a card of {gib:g} GiB", int(gib * GIB), dtype, 800e12, ranks, int(disk * GIB))


def planned(hardware: Hardware, load: Load = MANY_A_ROW, preset: str = "default", **changes: dict[str, Any]) -> Plan:
    made = config.override(config.load(preset), changes)
    return Planner(made, llama2_7b(), load, hardware, attention="flex").plan()


def steps(settings: TrainConfig, load: Load) -> Steps:
    return Planner(settings, llama2_7b(), load, card(80), attention="flex").steps


def test_a_global_batch_counts_conversations() -> None:
    found = steps(TrainConfig(), MANY_A_ROW)  # 3.125 a row
    assert (found.rows, found.conversations) == (41, 128.125)
    assert found.count == 2342  # 100,000 conversations × 3 epochs ÷ 128 is 2,344
    assert "128 conversations per step = 41 rows of 2,048 tokens" in planned(card(80)).reasons


def test_the_last_step_takes_what_is_left_and_max_steps_says_all() -> None:
    load = replace(MANY_A_ROW, conversations=10, rows=10)
    few = config.override(TrainConfig(), {"train": {"global_batch": 4, "epochs": 1.0}})
    found = steps(few, load)
    assert (found.count, found.rows, found.total_rows) == (3, 4, 10)
    found = steps(config.override(few, {"train": {"max_steps": 7}}), load)
    assert (found.count, found.total_rows, found.epochs) == (7, 28, 2.8)


def test_a_batch_smaller_than_a_row_is_said() -> None:
    found = planned(card(80), train={"global_batch": 2})
    assert any("global_batch is 2 conversations, but a row has 3.1" in reason for reason in found.reasons)


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
def test_a_7b_model_fits_in_the_most_exact_way_that_fits(
    gib: float, changes: dict[str, Any], expected: tuple[str, bool]
) -> None:
    found = planned(card(gib), **changes)
    assert found.fits_memory
    assert (found.form, found.checkpointed > 0) == expected
    assert found.needs <= gib * GIB


def test_no_more_layers_are_checkpointed_than_must_be() -> None:
    found = planned(card(22), method={"kind": "lora"})
    assert 0 < found.checkpointed < 32
    assert any(f"activations of {found.checkpointed} of 32 layers are recomputed" in text for text in found.reasons)
    spared = planned(card(22), method={"kind": "lora"}, train={"checkpointing": "full"})
    assert spared.checkpointed == 32
    assert found.seconds < 0.95 * spared.seconds
    counts = [planned(card(gib), method={"kind": "lora"}).checkpointed for gib in (19, 20, 21, 22, 23, 24)]
    assert counts == sorted(counts, reverse=True)


def test_fp16_weights_are_never_rounded_by_chance() -> None:
    full: dict[str, Any] = {"method": {"kind": "full"}}
    assert planned(card(60), **full).form == "stochastic"
    found = planned(card(60, dtype="fp16"), **full)
    assert not found.fits
    assert not any("stochastic" in text for text in found.suggestions)


def test_the_24_gb_cards_have_room_for_7b() -> None:
    small: dict[str, Any] = {"train": {"micro_batch": 1, "checkpointing": "full"}}
    assert planned(card(14), method={"kind": "qlora"}, **small).fits
    assert planned(card(22), method={"kind": "lora"}, **small).fits


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    found = planned(card(24), method={"kind": "full"})
    assert not found.fits
    with pytest.raises(PlanError) as caught:
        found.require_fit()
    said = str(caught.value)
    assert "a card of 24 GiB has 24.0" in said
    assert "--method lora (" in said and "--method qlora (" in said and "4 such devices with torchrun" in said
    assert "\n" not in said


def test_what_was_asked_for_is_kept_and_said_to_be_asked() -> None:
    found = planned(card(141), method={"kind": "lora"}, train={"micro_batch": 2, "checkpointing": "full"})
    assert (found.micro_batch, found.grad_accum, found.checkpointed) == (2, 21, 32)
    assert "2 rows at once: as set" in found.reasons
    assert "activations checkpointed: yes, as set" in found.reasons


def test_a_micro_batch_spreads_a_step_evenly() -> None:
    found = planned(card(141), method={"kind": "lora"})  # 8 rows of 2,048 at most: 41 rows in 6 portions of 7
    assert (found.micro_batch, found.grad_accum) == (7, 6)
    assert planned(card(141, ranks=4), method={"kind": "lora"}).grad_accum == 2


def test_a_full_7b_state_is_94_gb_and_the_disk_must_hold_it() -> None:
    found = planned(card(141, disk=150), method={"kind": "full"}, optimizer={"form": "master"})
    assert found.checkpoint == 14 * 6_738_415_616  # weights in bf16, three fp32 tensors of the optimizer
    with pytest.raises(PlanError, match=r"of disk, 150.0 are free .* is 87.9"):
        found.require_fit()
    assert planned(card(141, disk=150), method={"kind": "lora"}).fits


def test_more_ranks_share_the_states_and_the_time() -> None:
    one, eight = (
        planned(card(80, ranks=ranks), method={"kind": "full"}, optimizer={"form": "master"}) for ranks in (1, 8)
    )
    assert not one.fits and eight.fits
    assert eight.parts["optimizer states"] * 8 == pytest.approx(one.parts["optimizer states"])
    assert eight.seconds < one.seconds / 5


def test_vicunas_time_is_of_the_published_order() -> None:
    # Its model card names about 12 hours on 8 A100 (312e12) for 13B; 7B cost 140 of 300 dollars.
    a100 = Hardware("cuda", "A100", 80 * GIB, "bf16", 270e12, 8, 1000 * GIB)
    found = planned(a100, VICUNA, preset="vicuna-7b")
    assert 3 < found.seconds / 3600 < 18


def test_a_plan_is_plain_values() -> None:
    import json

    said = planned(card(80)).to_dict()
    assert json.loads(json.dumps(said)) == said
    assert said["steps"] == 2342 and said["peak_gib"] <= said["needs_gib"] <= said["available_gib"]


def test_this_machine_can_be_measured() -> None:
    torch.set_num_threads(1)
    found = device.measure_device(torch.device("cpu"))
    assert (found.kind, found.dtype) == ("cpu", "fp32")
    assert found.memory > 100 << 20
    assert found.rate > 1e8
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
