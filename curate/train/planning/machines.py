"""Another machine to plan a run for (`--for`): a card by name, several of them, or only an amount of memory."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from curate.errors import RecipeError
from curate.model.choices import AttentionName
from curate.train.config import ModelSettings
from curate.train.planning.cards import Card, find_card, usable_memory
from curate.train.planning.inputs import Hardware

MAX_CARDS = 8  # of one machine; between machines the links are slower, and no data sheet has their rate
MAX_GB = 1_024  # of one device
_CPU_EXAMPLE = "cpu:64GB"
_EXAMPLES = f"a card (h200, '2x rtx-4090'), its memory (24GB) or a CPU's ({_CPU_EXAMPLE})"
# `2x h100`, or `h100 x2` and `h100x2`; but the x of `rtx 4090` is part of the name.
_COUNT = re.compile(r"(?P<count>\d+)\s*[x×*]\s*(?P<rest>.+)|(?P<first>.*[\d\s])[x×*]\s*(?P<times>\d{1,2})", re.I)
_MEMORY = re.compile(
    r"(?P<cpu>cpu[:\s]\s*)?(?P<size>[-+]?(?:[\d.,_]+(?:e[-+]?\d+)?|nan|inf))\s*(?P<unit>[kmgtp](?:i?b)?)?", re.I
)
_IN_GB = {"m": 1e-3, "mb": 1e-3, "mib": 1 / 1024, "g": 1, "gb": 1, "gib": 1, "t": 1024, "tb": 1024, "tib": 1024}


@dataclass(frozen=True)
class Machine:
    """The devices of a machine; `card` is None where only their memory is known."""

    kind: str  # cuda or cpu
    memory: int  # bytes that torch can allocate from, on one device
    name: str  # of one device
    card: Card | None = None
    count: int = 1

    @property
    def bf16(self) -> bool:
        """Whether its devices compute in bf16; assumed of a GPU that is not named."""
        return self.card.bf16 if self.card is not None else True


def find_machine(text: str) -> Machine:
    """Return the machine that `--for` names.

    Raises RecipeError for a card that is unknown or ambiguous, and for a number or amount out of range.
    """
    name, count = _split_count(text.strip())
    text = text if len(text) <= 40 else text[:40] + "…"  # as it is shown
    if not name or name.lower().rstrip(": ") == "cpu":
        raise RecipeError(f"--for {text!r} names no machine that can be planned for; give {_EXAMPLES}")
    if not 1 <= count <= MAX_CARDS:
        raise RecipeError(f"--for {text!r} is not one machine; give 1 to {MAX_CARDS} cards, those of one machine")
    memory = _MEMORY.fullmatch(name)
    if memory and (memory["unit"] or memory["cpu"] or not _is_model_number(memory["size"])):
        return _of_memory(text, _gigabytes(memory), count, cpu=bool(memory["cpu"]))
    card = find_card(name)
    return Machine("cuda", card.memory, card.name, card, count)


def _is_model_number(size: str) -> bool:
    """Return whether a number without a unit is a card's, such as 4090."""
    return size.isdecimal() and len(size) == 4 and int(size) > MAX_GB


def _gigabytes(memory: re.Match[str]) -> float:
    """Return an amount in GB as cards are sold, in which 24 are 24 GiB; NaN if it is none."""
    try:
        return float(memory["size"]) * _IN_GB[(memory["unit"] or "gb").lower()]
    except (ValueError, KeyError):
        return math.nan


def _split_count(text: str) -> tuple[str, int]:
    """Return a device's name and how many there are: `2x h100`, `h100 x 2`, or one."""
    match = _COUNT.fullmatch(text)
    if match is None:
        return text, 1
    name, count = (match["rest"], match["count"]) if match["count"] else (match["first"], match["times"])
    return name.strip(), int(count[:9])


def _of_memory(text: str, size: float, count: int, *, cpu: bool) -> Machine:
    if cpu and count > 1:
        raise RecipeError(f"--for {text!r} has {count} CPUs; a run uses one machine's: give {_CPU_EXAMPLE}")
    if not 1 <= size <= MAX_GB:
        example = _CPU_EXAMPLE if cpu else "24GB"
        raise RecipeError(
            f"--for {text!r} is no amount of memory to plan for; give 1 to {MAX_GB:,} GB, as in {example}"
        )
    if cpu:  # all of it is memory that processes can have
        return Machine("cpu", usable_memory(size, 1.0), f"a CPU with {size:g} GB")
    return Machine("cuda", usable_memory(size), f"a card of {size:g} GB", count=count)


def hardware_of(machine: Machine, settings: ModelSettings) -> tuple[Hardware, str]:
    """Return a machine as the planner's hardware, and the reason for its dtype.

    Raises RecipeError for a dtype that it lacks.
    """
    dtype, reason = _choose_dtype(machine, settings.dtype)
    rate = machine.card.rate if machine.card is not None else None
    if rate is not None and dtype == "fp32":
        rate = None  # the table has no rates of fp32
    hardware = Hardware(
        kind=machine.kind,
        name=machine.name,
        memory=machine.memory,
        dtype=dtype,
        rate=rate,
        ranks=machine.count,
        disk=None,
        card=machine.card,
    )
    return hardware, reason


def _choose_dtype(machine: Machine, wanted: str) -> tuple[str, str]:
    """Return the dtype that a run there would use, as `curate.model.device.choose_dtype` does here."""
    if machine.kind == "cpu":
        if wanted == "fp16":
            raise RecipeError("dtype fp16 needs a CUDA device; use auto, fp32 or bf16")
        return ("fp32", "on a CPU, where it is exact and no slower") if wanted == "auto" else (wanted, "as asked")
    if wanted == "bf16" and not machine.bf16:
        raise RecipeError(f"{machine.name} has no bf16; use --dtype auto or fp16")
    if wanted != "auto":
        return wanted, "as asked"
    return ("bf16", "which it has") if machine.bf16 else ("fp16", "with a scaled loss: it has no bf16")


def expected_attention(machine: Machine, wanted: Literal["auto", AttentionName]) -> tuple[AttentionName, str]:
    """Return the kernel that a run there is expected to use, and why; it cannot be tried here."""
    if machine.kind == "cpu" or not machine.bf16:
        return "sdpa", "expected there: FlexAttention needs a GPU with bf16"
    if wanted == "auto":
        return "flex", "expected there, not tried"
    return wanted, "as asked, not tried"
