"""One step of AdamW on tensors: exactly by torch's fused kernel, through 8 bits, or rounded by chance.

An update that torch has no kernel for is compiled on CUDA, where it then reads and writes each tensor once; there and
elsewhere it is taken piece by piece, so that what it makes on the way stays small.
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

MOMENTS = ("exp_avg", "exp_avg_sq")  # the names that torch has for them
_PIECE = 1 << 24  # elements of one tensor that are updated at once, where temporaries are made of them
_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")


@dataclass
class Slot:
    """A parameter and its optimizer states; of a sharded one, this rank's part."""

    name: str
    parameter: nn.Parameter
    decays: bool
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def weight(self) -> Tensor:
        """The most exact form of this rank's weights."""
        return self.state.get("master", local(self.parameter))


@dataclass(frozen=True)
class Numbers:
    """The scalars of one step."""

    step: int  # from 1
    rate: float
    decay: float
    beta1: float
    beta2: float
    epsilon: float

    def on(self, place: torch.device) -> Tensor:
        """Return the scalars as a tensor [6], so that a compiled update is not compiled again for each step."""
        corrections = 1 - self.beta1**self.step, math.sqrt(1 - self.beta2**self.step)
        values = self.rate * self.decay, self.rate / corrections[0], self.beta1, self.beta2, corrections[1]
        return torch.tensor([*values, self.epsilon], dtype=torch.float32).to(place, non_blocking=True)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor, any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def update_kind(slot: Slot) -> str:
    """Return the form of update for a parameter, by the states it has."""
    if "exp_avg_scale" in slot.state:
        return "8bit"
    return "stochastic" if slot.state["exp_avg"].dtype == torch.bfloat16 else "master"


# ---- updates


def _gradient(slot: Slot) -> Tensor:
    return local(cast(Tensor, slot.parameter.grad))  # callers skip parameters without one


def _update_exactly(slots: Sequence[Slot], numbers: Numbers) -> None:
    """Update fp32 weights or copies by torch's fused kernel, then round copies into the weights."""
    weights = [slot.weight for slot in slots]
    place = weights[0].device
    adamw(
        weights,
        [_gradient(slot).float() for slot in slots],
        [slot.state["exp_avg"] for slot in slots],
        [slot.state["exp_avg_sq"] for slot in slots],
        [],
        list(torch.full((len(slots),), float(numbers.step - 1), device=place).unbind()),
        fused=place.type in ("cpu", "cuda"),
        amsgrad=False,
        beta1=numbers.beta1,
        beta2=numbers.beta2,
        lr=numbers.rate,
        weight_decay=numbers.decay,
        eps=numbers.epsilon,
        maximize=False,
    )
    copies = [slot for slot in slots if "master" in slot.state]
    if copies:
        torch._foreach_copy_([local(slot.parameter) for slot in copies], [slot.weight for slot in copies])


def _moved(weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
    """Return weight and moments after a step, all fp32."""
    decay, rate, beta1, beta2, correction, epsilon = numbers.unbind()
    first = gradient + beta1 * (first - gradient)
    square = gradient * gradient
    second = square + beta2 * (second - square)
    return weight * (1 - decay) - rate * first / (second.sqrt() / correction + epsilon), first, second


def _update_8bit(slots: Sequence[Slot], numbers: Numbers) -> None:
    place = slots[0].weight.device
    tensor = numbers.on(place)
    maps = eight_bit.signed_map(place), eight_bit.unsigned_map(place)
    update = kernel(move_8bit, place.type)
    for slot in slots:
        state, size = slot.state, eight_bit.block(slot.parameter.shape)
        rows = [slot.weight, _gradient(slot).contiguous(), state["exp_avg"], state["exp_avg_sq"]]
        flat = [tensor.view(-1, size) for tensor in rows]
        scales = [state[f"{name}_scale"].view(-1, 1) for name in MOMENTS]
        for parts in _pieces([*flat, *scales], _PIECE // size):
            update(*parts, tensor, *maps)
        if "master" in state:
            local(slot.parameter).copy_(state["master"])


def move_8bit(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    first_scale: Tensor,
    second_scale: Tensor,
    numbers: Tensor,
    signed: Tensor,
    unsigned: Tensor,
) -> None:
    """Update blocks [blocks, block], the moments out of and back into 8 bits."""
    moments = eight_bit.read(first, first_scale, signed), eight_bit.read(second, second_scale, unsigned)
    moved, *moments_after = _moved(weight, gradient.float(), *moments, numbers)
    weight.copy_(moved)
    eight_bit.write(moments_after[0], first, first_scale, signed)
    eight_bit.write(moments_after[1], second, second_scale, unsigned)


def _update_stochastic(slots: Sequence[Slot], numbers: Numbers) -> None:
    """Update bf16 weights and moments; the noise depends on step and parameter alone, so nothing need be remembered.

    Copies of a parameter on several ranks get the same noise, and stay the same.
    """
    place = slots[0].weight.device
    tensor = numbers.on(place)
    update = kernel(move_stochastic, place.type)
    source = torch.Generator(place)
    for slot in slots:
        source.manual_seed(_seed(slot, numbers.step))
        rows = [slot.weight, _gradient(slot).contiguous(), slot.state["exp_avg"], slot.state["exp_avg_sq"]]
        for parts in _pieces([row.view(-1) for row in rows], _PIECE):
            noise = torch.empty(parts[0].shape, dtype=torch.int32, device=place)
            noise.random_(-(2**31), 2**31, generator=source)
            update(*parts, noise, tensor)


def _seed(slot: Slot, step: int) -> int:
    """Return a seed of 63 bits, from the step, the parameter's name and, where it is sharded, the rank."""
    rank = ranks.get_rank() if isinstance(slot.parameter, DTensor) else 0
    digest = hashlib.blake2b(f"{step}/{rank}/{slot.name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def move_stochastic(
    weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, noise: Tensor, numbers: Tensor
) -> None:
    """Update flat bf16 tensors with 32 bits of noise for each element: half of them for the weight, half for `second`.

    The first moment changes by a tenth at each step and can be rounded to the nearest; the second, by a thousandth.
    """
    moved = _moved(weight.float(), gradient.float(), first.float(), second.float(), numbers)
    weight.copy_(rounded(moved[0], noise))
    first.copy_(moved[1])
    second.copy_(rounded(moved[2], noise >> 16))


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """Round fp32 to bf16, up or down so that the mean is kept; `noise` is int32, its lower 16 bits uniform.

    bf16 is fp32 without its lower 16 bits: adding a uniform number to them carries as often as they are worth.
    """
    bits = values.view(torch.int32) + (noise & 0xFFFF)
    return (bits & -0x10000).view(torch.float32).to(torch.bfloat16)


def _pieces(tensors: Sequence[Tensor], length: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(length) for tensor in tensors), strict=True)


UPDATES: dict[str, Callable[[Sequence[Slot], Numbers], None]] = {
    "master": _update_exactly,
    "8bit": _update_8bit,
    "stochastic": _update_stochastic,
}
_KERNELS: dict[tuple[Callable[..., None], str], Callable[..., None]] = {}


def kernel(update: Callable[..., None], kind: str) -> Callable[..., None]:
    """Return an update for a kind of device: compiled on CUDA, where it then reads and writes each tensor once."""
    if kind != "cuda":
        return update
    if (update, kind) not in _KERNELS:
        _KERNELS[update, kind] = WithFallback(update)
    return _KERNELS[update, kind]


class WithFallback:
    """An update that is compiled, unless there is no compiler: then as it is written, somewhat slower."""

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
            self.compiled = None  # it failed before it ran, so nothing has changed yet
            return self.plain(*tensors)
