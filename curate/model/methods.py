"""Which parameters are trained: the settings of full fine-tuning and of every kind of adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from curate.settings import limits


@dataclass(frozen=True)
class MethodSettings:
    """Which parameters are trained. `targets` are names of linear layers, or the one word `all-linear`."""

    kind: Literal["full", "lora", "dora", "qlora", "ia3", "peft"] = "lora"
    rank: int = limits(64, 1)
    alpha: float = limits(32.0, 0.0)
    dropout: float = limits(0.0, 0.0, 1.0)
    rslora: bool = True  # scale by alpha / sqrt(rank) instead of alpha / rank
    targets: tuple[str, ...] = ("all-linear",)
    peft: Mapping[str, object] = field(default_factory=dict)  # for kind `peft`: peft_type and its arguments
