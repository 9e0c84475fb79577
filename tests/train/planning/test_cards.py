"""Another machine to plan for: cards by the names that people type, several of them, or an amount of memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from curate.errors import RecipeError
from curate.train.config import ModelSettings
from curate.train.planning import machines, speed
from curate.train.planning.cards import CARDS
from curate.train.planning.machines import find_machine
from tests.train.planning.test_plan import MANY_A_ROW, card, planned

GIB = 2**30


@pytest.mark.parametrize(
    ("typed", "name", "count"),
    [
        ("h200", "H200", 1),
        ("H200 NVL", "H200 NVL", 1),
        ("NVIDIA H100 80GB HBM3", "H100", 1),
        ("h100-pcie", "H100 PCIe", 1),
        ("2x RTX 4090", "RTX 4090", 2),
        ("rtx4090", "RTX 4090", 1),
        ("4090", "RTX 4090", 1),
        ("NVIDIA GeForce RTX 3090", "RTX 3090", 1),
        ("4 × 3090 ti", "RTX 3090 Ti", 4),
        ("a100-40gb", "A100 40GB", 1),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", 1),
        ("A100-PCIE-40GB", "A100 40GB", 1),
        ("h100 x 8", "H100", 8),
        ("h100x8", "H100", 8),
        ("8*h100", "H100", 8),
        ("L40S 48GB", "L40S", 1),
        ("Tesla T4", "T4", 1),
        ("RTX 6000 Ada", "RTX 6000 Ada", 1),
        ("A6000", "RTX A6000", 1),
    ],
)
def test_a_card_is_found_by_the_names_that_people_type(typed: str, name: str, count: int) -> None:
    machine = find_machine(typed)
    assert (machine.name, machine.count) == (name, count)


@pytest.mark.parametrize(
    ("typed", "gib", "count", "kind"),
    [
        ("24GB", 24 * 0.98, 1, "cuda"),
        ("24", 24 * 0.98, 1, "cuda"),
        ("2x 80 GiB", 80 * 0.98, 2, "cuda"),
        ("11.5g", 11.5 * 0.98, 1, "cuda"),
        ("24000MB", 24 * 0.98, 1, "cuda"),
        ("24576 MiB x2", 24 * 0.98, 2, "cuda"),
        ("0.5TB", 512 * 0.98, 1, "cuda"),
        ("cpu:64GB", 64, 1, "cpu"),
        ("cpu:16", 16, 1, "cpu"),
    ],
)
def test_an_amount_of_memory_is_planned_without_a_time(typed: str, gib: float, count: int, kind: str) -> None:
    machine = find_machine(typed)
    assert (machine.memory, machine.count, machine.kind) == (int(gib * GIB), count, kind)
    hardware, _ = machines.hardware_of(machine, ModelSettings())
    plan = planned(hardware, method={"kind": "lora"})
    assert plan.seconds is None and plan.fits_disk
    assert plan.to_dict()["tflops"] is None


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("rtx 4091", "did you mean 'rtx-4090'"),
        ("h1000", "did you mean 'h100'"),
        ("a100", "type a100-80gb or a100-40gb"),
        ("rtx 6000", "type rtx-pro-6000-blackwell or rtx-6000-ada"),
        ("banana", "by its memory, --for 24GB"),
        ("0x h100", "give 1 to 8"),
        ("16x h100", "give 1 to 8"),
        ("0GB", "no amount of memory"),
        ("9000GB", "no amount of memory"),
        ("2x cpu:16GB", "has 2 CPUs"),
        ("-3GB", "no amount of memory"),
        ("1e9GB", "no amount of memory"),
        ("nanGB", "no amount of memory"),
        ("24MB", "no amount of memory"),
        ("cpu:-1", "as in cpu:64GB"),
        ("999999x h100", "give 1 to 8"),
        ("9" * 5000 + "x h100", "9…' is not one machine"),
        ("", "a card (h200"),
        ("cpu", "cpu:64GB"),
    ],
)
def test_a_machine_that_is_unknown_or_ambiguous_is_refused_with_what_to_type(typed: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_machine(typed)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_card_is_found_by_its_own_name_and_names_its_source() -> None:
    for known in CARDS:
        assert find_machine(known.name).card == known
        assert find_machine(f"2x nvidia {known.name.lower().replace(' ', '-')}").card == known
        assert known.source.startswith("https://")
        assert 0.9 * known.memory_gb * GIB < known.memory < known.memory_gb * GIB


def test_the_dtype_is_what_the_card_has() -> None:
    assert machines.hardware_of(find_machine("t4"), ModelSettings())[0].dtype == "fp16"
    assert machines.hardware_of(find_machine("l4"), ModelSettings())[0].dtype == "bf16"
    assert machines.expected_attention(find_machine("t4"), "auto")[0] == "sdpa"
    with pytest.raises(RecipeError, match="T4 has no bf16"):
        machines.hardware_of(find_machine("t4"), ModelSettings(dtype="bf16"))


def test_a_7b_adapter_fits_a_24_gb_card_and_a_full_fine_tune_eight_h100() -> None:
    one, _ = machines.hardware_of(find_machine("rtx-4090"), ModelSettings())
    plan = planned(one, method={"kind": "qlora"})
    assert plan.fits and plan.seconds is not None and plan.seconds > 3600
    assert not planned(one, method={"kind": "full"}).fits
    eight, _ = machines.hardware_of(find_machine("8x h100"), ModelSettings())
    assert planned(eight, method={"kind": "full"}).fits


def test_ranks_over_a_slow_link_take_longer_than_over_a_fast_one() -> None:
    fast, _ = machines.hardware_of(find_machine("8x h100"), ModelSettings())
    assert fast.card is not None
    slow = replace(fast, card=replace(fast.card, link=4.0))
    full, lora = ({"kind": kind} for kind in ("full", "lora"))
    seconds = [planned(hardware, method=full).seconds for hardware in (fast, slow)]
    assert seconds[0] is not None and seconds[1] is not None and seconds[1] > 2 * seconds[0]
    adapters = [planned(hardware, method=lora).seconds for hardware in (fast, slow)]
    assert adapters[0] == pytest.approx(adapters[1])  # DDP sends little, while it computes


def test_a_single_rank_exchanges_nothing() -> None:
    plan = planned(card(80), MANY_A_ROW, method={"kind": "lora"})
    assert not any("ranks" in reason for reason in plan.reasons)
    assert plan.efficiency == speed.efficiency("cuda", full=False)
