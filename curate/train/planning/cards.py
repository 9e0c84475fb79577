"""GPUs that a run can be planned for without having one: memory, matrix rate, bandwidth and interconnect of each.

All figures are those of the vendor's data sheet or architecture paper, named in `source`. Rates are dense: where a data
sheet gives only the rate with 2:4 sparsity, it is halved; a rate in FP8 or FP4 is halved again for each doubling of the
width. None of them is measured here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from curate.errors import RecipeError, did_you_mean

GIB = 2**30
# Share of a card's memory that torch can allocate from: torch's own messages report 23.65 GiB of an RTX 4090's 24, and
# 79.15 of an A100's 80. Inline ECC takes a sixteenth of GDDR6 in addition: 22.2 of an L4's 24.
USABLE, USABLE_WITH_ECC = 0.98, 0.92
PCIE_3, PCIE_4, PCIE_5 = 16.0, 32.0, 64.0  # GB/s in each direction of 16 lanes

_NVIDIA = "https://www.nvidia.com/en-us/"
_CENTER = _NVIDIA + "data-center/"
_WORKSTATION = _NVIDIA + "products/workstations/"
_BLACKWELL = "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_AMPERE = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
_VOLTA = "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
_T4 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"


@dataclass(frozen=True)
class Card:
    """One GPU, as its data sheet describes it."""

    name: str
    memory_gb: int
    tflops: float  # dense, 10^12 operations per second, of bf16 products summed in fp32; of fp16 where bf16 is false
    bandwidth: float  # of the memory, GB/s
    link: float  # to another card in the same machine, GB/s in each direction
    source: str
    aliases: tuple[str, ...] = ()  # other names, as `_key` returns them
    bf16: bool = True
    usable: float = USABLE  # share of the memory

    @property
    def memory(self) -> int:
        """Bytes that torch can allocate from."""
        return usable_memory(self.memory_gb, self.usable)

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.tflops * 1e12


def usable_memory(memory_gb: float, share: float = USABLE) -> int:
    """Return the bytes that torch can allocate from on a card that is sold with `memory_gb`."""
    return int(memory_gb * GIB * share)


# Name, memory, dense rate, memory bandwidth, link. NVLink's data sheets give both directions together.
CARDS = (
    Card("B200", 180, 2250, 8000, 900, _CENTER + "hgx/", ("b200sxm",)),
    Card("H200", 141, 989, 4800, 450, _CENTER + "h200/", ("h200sxm",)),
    Card("H200 NVL", 141, 835, 4800, 450, _CENTER + "h200/"),
    Card("H100", 80, 989, 3350, 450, _CENTER + "h100/", ("h100sxm", "h100sxm5", "h10080gbhbm3")),
    Card("H100 NVL", 94, 835, 3900, 300, _CENTER + "h100/"),
    Card("H100 PCIe", 80, 756, 2000, PCIE_5, _CENTER + "h100/"),
    Card("A100 80GB", 80, 312, 2039, 300, _CENTER + "a100/", ("a100", "a100sxm480gb", "a100sxm80gb")),
    Card("A100 80GB PCIe", 80, 312, 1935, PCIE_4, _CENTER + "a100/", ("a100pcie80gb",)),
    Card("A100 40GB", 40, 312, 1555, 300, _CENTER + "a100/", ("a100", "a100sxm440gb", "a100sxm40gb", "a100pcie40gb")),
    Card("L40S", 48, 362, 864, PCIE_4, _CENTER + "l40s/", usable=USABLE_WITH_ECC),
    Card("L40", 48, 181, 864, PCIE_4, _CENTER + "l40/", usable=USABLE_WITH_ECC),
    Card("L4", 24, 121, 300, PCIE_4, _CENTER + "l4/", usable=USABLE_WITH_ECC),
    Card("A40", 48, 149.7, 696, PCIE_4, _CENTER + "a40/", usable=USABLE_WITH_ECC),
    Card("A30", 24, 165, 933, PCIE_4, _CENTER + "products/a30-gpu/"),
    Card("A10", 24, 125, 600, PCIE_4, _CENTER + "products/a10-gpu/", usable=USABLE_WITH_ECC),
    Card("V100 32GB", 32, 125, 900, 150, _VOLTA, ("v100", "v100sxm232gb", "v100sxm32gb"), bf16=False),
    Card("V100 16GB", 16, 125, 900, 150, _VOLTA, ("v100", "v100sxm216gb", "v100sxm16gb"), bf16=False),
    Card("T4", 16, 65, 320, PCIE_3, _T4, bf16=False, usable=USABLE_WITH_ECC),
    Card(
        "RTX PRO 6000 Blackwell",
        96,
        500,
        1792,
        PCIE_5,
        _WORKSTATION + "rtx-pro-6000/",
        ("pro6000", "6000", "6000blackwell"),
    ),
    Card("RTX 6000 Ada", 48, 364.2, 960, PCIE_4, _WORKSTATION + "rtx-6000/", ("6000", "6000adageneration")),
    Card("RTX A6000", 48, 154.8, 768, PCIE_4, _WORKSTATION + "rtx-a6000/", ("a6000",)),
    Card("RTX 5090", 32, 209.5, 1792, PCIE_5, _BLACKWELL),
    Card("RTX 5080", 16, 112.6, 960, PCIE_5, _BLACKWELL),
    Card("RTX 5070 Ti", 16, 87.9, 896, PCIE_5, _BLACKWELL),
    Card("RTX 4090", 24, 165.2, 1008, PCIE_4, _ADA),
    Card("RTX 4080", 16, 97.5, 716.8, PCIE_4, _ADA),
    Card("RTX 3090 Ti", 24, 80, 1008, PCIE_4, _AMPERE),
    Card("RTX 3090", 24, 71, 936, PCIE_4, _AMPERE),
    Card("RTX 3080", 10, 59.5, 760, PCIE_4, _AMPERE),
)


def find_card(text: str) -> Card:
    """Return the card of that name; raises RecipeError, with what to type, for one that is unknown or ambiguous."""
    key = _key(text)
    found = [card for card in CARDS if key in _keys(card)]
    if len(found) == 1:
        return found[0]
    if found:
        either = " or ".join(_typed(card) for card in found)
        raise RecipeError(f"--for {text!r} can be more than one card; type {either}")
    hint = did_you_mean(_typed_text(text), map(_typed, CARDS))
    shown = text if len(text) <= 40 else text[:40] + "…"
    raise RecipeError(f"--for {shown!r} is no card that curate knows{hint} (any other: by its memory, --for 24GB)")


def _keys(card: Card) -> Iterator[str]:
    """Yield the names that a card is found by."""
    yield from card.aliases
    key = _key(card.name)
    yield key
    yield f"{key}{card.memory_gb}gb"


def _key(text: str) -> str:
    """Return a name without what people leave out: the vendor, spaces, hyphens and letter case."""
    words = re.sub(r"nvidia|geforce|quadro|tesla|\bgpu\b", " ", text.lower())
    return re.sub(r"rtx|[^a-z0-9]", "", words)


def _typed(card: Card) -> str:
    """Return the name to type for a card, such as rtx-4090."""
    return _typed_text(card.name)


def _typed_text(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
