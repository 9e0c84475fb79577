"""What a configuration may name: methods, attention kernels, number types and optimizer forms, each listed once.

The configuration, the command line, the plan and the modules that implement a choice all use these lists.
Nothing here imports torch, so that `curate finetune --help` stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from curate.settings import limits

MethodName = Literal["full", "lora", "dora", "qlora", "ia3", "peft"]
AttentionName = Literal["flex", "sdpa", "flash", "varlen"]
DType = Literal["bf16", "fp16", "fp32"]
OptimizerForm = Literal["master", "8bit", "stochastic"]

ATTENTION: tuple[AttentionName, ...] = get_args(AttentionName)
DTYPES: dict[DType, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # with torch's names
OPTIMIZER_FORMS: tuple[OptimizerForm, ...] = get_args(OptimizerForm)  # from the most exact to the smallest
ALL_LINEAR = "all-linear"  # peft's word for every linear layer except the head


@dataclass(frozen=True)
class Method:
    """A way to choose the trained parameters: its default peak learning rate and what it does to the base model."""

    learning_rate: float
    adapter: bool = True  # the base is frozen
    quantised: bool = False  # the base is kept in 4 bits (NF4)
    named_by_adapter: bool = True  # an adapter on disk names the method


METHODS: dict[MethodName, Method] = {
    "full": Method(2e-5, adapter=False, named_by_adapter=False),  # Vicuna's and Alpaca's rate
    "lora": Method(2e-4),  # ten times that of full fine-tuning (QLoRA's for 7B and 13B)
    "dora": Method(2e-4),
    "qlora": Method(2e-4, quantised=True),
    "ia3": Method(5e-3),  # in peft's own comparison it scores 45.5, against 31.1 at the rate of the others
    "peft": Method(2e-4, named_by_adapter=False),  # any other method of peft, set by `method.peft`
}


@dataclass(frozen=True)
class MethodSettings:
    """Which parameters are trained. `targets` are names of linear layers, or the one word `all-linear`."""

    kind: MethodName = "lora"
    rank: int = limits(64, 1)
    alpha: float = limits(32.0, 0.0)
    dropout: float = limits(0.0, 0.0, 1.0)
    rslora: bool = True  # scale by alpha / sqrt(rank) instead of alpha / rank
    targets: tuple[str, ...] = (ALL_LINEAR,)
    peft: Mapping[str, object] = field(default_factory=dict)  # for kind `peft`: peft_type and its arguments

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return not METHODS[self.kind].adapter

    @property
    def quantised(self) -> bool:
        """Whether the base model is kept in 4 bits."""
        return METHODS[self.kind].quantised
