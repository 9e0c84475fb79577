"""One AdamW step on tensors: with torch's fused kernel, with 8-bit moments, or with stochastic rounding.

torch has no kernel for the last two. They are compiled on CUDA, so that one kernel reads and writes each tensor once,
and run on one chunk of a tensor at a time, so that temporaries stay small.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as ranks
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from curate.model import device
from curate.train.optim import eight_bit

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names for the first and the second moment
_CHUNK = 1 << 24  # elements of a tensor updated at once: each fp32 temporary takes 64 MiB
_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")  # modules whose errors are the compiler's


@dataclass
class Slot:
    """A parameter and its optimizer states."""

    name: str
    parameter: nn.Parameter
    decays: bool  # weight decay applies
    state: dict[str, Tensor] = field(default_factory=dict)  # this rank's parts, if the parameter is sharded

    @property
    def weight(self) -> Tensor:
        """This rank's weights at their highest precision: the master copy if there is one."""
        return self.state.get("master", local(self.parameter))


@dataclass(frozen=True)
class StepScalars:
    """The scalars of one step."""

    step: int  # from 1
    rate: float  # learning rate
    decay: float  # weight decay
    beta1: float
    beta2: float
    epsilon: float

    def to_tensor(self, target: torch.device) -> Tensor:
        """Return the scalars that `_adamw` reads, fp32 [6] on `target`.

        A tensor, because compiled code takes Python numbers as constants: each step would be compiled again.
        """
        corrections = 1 - self.beta1**self.step, math.sqrt(1 - self.beta2**self.step)  # of the bias towards 0
        values = self.rate * self.decay, self.rate / corrections[0], self.beta1, self.beta2, corrections[1]
        return torch.tensor([*values, self.epsilon], dtype=torch.float32).to(target, non_blocking=True)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor, any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def update_kind(slot: Slot) -> str:
    """Return the key in `UPDATES` for a parameter, by the states it has."""
    if "exp_avg_scale" in slot.state:
        return "8bit"
    return "stochastic" if slot.state["exp_avg"].dtype == torch.bfloat16 else "master"


# ---- updates


def _gradient(slot: Slot) -> Tensor:
    return local(cast(Tensor, slot.parameter.grad))  # callers skip parameters without one


def _update_exactly(slots: Sequence[Slot], scalars: StepScalars) -> None:
    """Update fp32 weights or master copies with torch's fused kernel, then round the copies into the weights."""
    weights = [slot.weight for slot in slots]
    target = weights[0].device
    adamw(
        weights,
        [_gradient(slot).float() for slot in slots],
        [slot.state["exp_avg"] for slot in slots],
        [slot.state["exp_avg_sq"] for slot in slots],
        [],  # no maxima: not AMSGrad
        list(torch.full((len(slots),), float(scalars.step - 1), device=target).unbind()),  # the kernel adds 1
        fused=target.type in ("cpu", "cuda"),
        amsgrad=False,
        beta1=scalars.beta1,
        beta2=scalars.beta2,
        lr=scalars.rate,
        weight_decay=scalars.decay,
        eps=scalars.epsilon,
        maximize=False,
    )
    copies = [slot for slot in slots if "master" in slot.state]
    if copies:
        torch._foreach_copy_([local(slot.parameter) for slot in copies], [slot.weight for slot in copies])


def _adamw(weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, scalars: Tensor) -> tuple[Tensor, ...]:
    """Return weight, first and second moment after a step of AdamW (arXiv 1711.05101), all fp32.

    `scalars` [6] is `StepScalars.to_tensor`; the other tensors have one shape.
    """
    decay, rate, beta1, beta2, correction, epsilon = scalars.unbind()
    first = gradient + beta1 * (first - gradient)
    square = gradient * gradient
    second = square + beta2 * (second - square)
    return weight * (1 - decay) - rate * first / (second.sqrt() / correction + epsilon), first, second


def _update_8bit(slots: Sequence[Slot], scalars: StepScalars) -> None:
    """Update weights or master copies with 8-bit moments, then round the copies into the weights."""
    target = slots[0].weight.device
    step = scalars.to_tensor(target)
    maps = eight_bit.signed_map(target), eight_bit.unsigned_map(target)
    update = kernel(update_8bit_blocks, target.type)
    for slot in slots:
        state, size = slot.state, eight_bit.block_size(slot.parameter.shape)
        tensors = [slot.weight, _gradient(slot).contiguous(), state["exp_avg"], state["exp_avg_sq"]]
        blocks = [tensor.view(-1, size) for tensor in tensors]  # [blocks, block size]
        scales = [state[f"{name}_scale"].view(-1, 1) for name in MOMENTS]  # [blocks, 1]
        for parts in _chunks([*blocks, *scales], _CHUNK // size):
            update(*parts, step, *maps)
        if "master" in state:
            local(slot.parameter).copy_(state["master"])


def update_8bit_blocks(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    first_scale: Tensor,
    second_scale: Tensor,
    scalars: Tensor,
    signed: Tensor,
    unsigned: Tensor,
) -> None:
    """Update blocks [blocks, block size] in place; scales are [blocks, 1], `signed` and `unsigned` the maps."""
    moments = eight_bit.dequantise(first, first_scale, signed), eight_bit.dequantise(second, second_scale, unsigned)
    weight_after, first_after, second_after = _adamw(weight, gradient.float(), *moments, scalars)
    weight.copy_(weight_after)
    eight_bit.quantise(first_after, first, first_scale, signed)
    eight_bit.quantise(second_after, second, second_scale, unsigned)


def _update_stochastic(slots: Sequence[Slot], scalars: StepScalars) -> None:
    """Update bf16 weights and moments with stochastic rounding.

    The noise follows from step and parameter, so a checkpoint needs no state for it, and replicas of a parameter on
    several ranks stay equal.
    """
    target = slots[0].weight.device
    step = scalars.to_tensor(target)
    update = kernel(update_stochastic_flat, target.type)
    generator = torch.Generator(target)
    for slot in slots:
        generator.manual_seed(_seed(slot, scalars.step))
        tensors = [slot.weight, _gradient(slot).contiguous(), slot.state["exp_avg"], slot.state["exp_avg_sq"]]
        for parts in _chunks([tensor.view(-1) for tensor in tensors], _CHUNK):
            noise = torch.empty(parts[0].shape, dtype=torch.int32, device=target)
            noise.random_(-(2**31), 2**31, generator=generator)  # all 32 bits
            update(*parts, noise, step)


def _seed(slot: Slot, step: int) -> int:
    """Return a 63-bit seed from step, parameter name and, for a sharded parameter, rank."""
    rank = ranks.get_rank() if isinstance(slot.parameter, DTensor) else 0
    digest = hashlib.blake2b(f"{step}/{rank}/{slot.name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def update_stochastic_flat(
    weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, noise: Tensor, scalars: Tensor
) -> None:
    """Update flat bf16 tensors in place; `noise` is int32, its lower half for the weight, its upper for `second`.

    The first moment changes by about a tenth at each step, which survives rounding to nearest. The second changes by a
    thousandth, which does not.
    """
    weight_after, first_after, second_after = _adamw(
        weight.float(), gradient.float(), first.float(), second.float(), scalars
    )
    weight.copy_(round_stochastically(weight_after, noise))
    first.copy_(first_after)
    second.copy_(round_stochastically(second_after, noise >> 16))


def round_stochastically(values: Tensor, noise: Tensor) -> Tensor:
    """Round fp32 to bf16, up or down, with the mean preserved; the lower 16 bits of `noise`, int32, are uniform.

    bf16 is fp32 without its lower 16 bits. Adding a uniform number to them carries into the upper bits with a
    probability equal to the fraction that is cut off.
    """
    bits = values.view(torch.int32) + (noise & 0xFFFF)
    return (bits & -0x10000).view(torch.float32).to(torch.bfloat16)


def _chunks(tensors: Sequence[Tensor], length: int) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors along their first dimension into views of `length`; the last ones may be shorter."""
    return zip(*(tensor.split(length) for tensor in tensors), strict=True)


UPDATES: dict[str, Callable[[Sequence[Slot], StepScalars], None]] = {  # by update kind
    "master": _update_exactly,
    "8bit": _update_8bit,
    "stochastic": _update_stochastic,
}
_KERNELS: dict[tuple[Callable[..., None], str], Callable[..., None]] = {}


def kernel(update: Callable[..., None], kind: str) -> Callable[..., None]:
    """Return an update for a kind of device: compiled on CUDA, unchanged elsewhere."""
    if kind != "cuda":
        return update
    if (update, kind) not in _KERNELS:
        _KERNELS[update, kind] = WithFallback(update)
    return _KERNELS[update, kind]


class WithFallback:
    """A compiled update that runs uncompiled, a little slower, where the compiler fails."""

    def __init__(self, plain: Callable[..., None], backend: Any = "inductor") -> None:
        self.plain = plain
        self.compiled: Callable[..., None] | None = torch.compile(plain, dynamic=True, backend=backend)

    def __call__(self, *tensors: Tensor) -> None:
        if self.compiled is None:
            return self.plain(*tensors)
        try:
            return self.compiled(*tensors)
        except Exception as error:
            if device.is_out_of_memory(error) or not type(error).__module__.startswith(_COMPILERS):
                raise
            self.compiled = None  # compilation failed before the update ran, so no tensor has changed
            return self.plain(*tensors)
