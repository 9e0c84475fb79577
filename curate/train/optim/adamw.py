"""AdamW in three forms, its schedule, and the clipping of gradients.

    master        the moments in fp32, and an fp32 copy of weights that are bf16 or fp16: torch's fused AdamW
    8bit          the same copy, the moments in 8 bits (`curate.train.optim.eight_bit`)
    stochastic    bf16 weights and moments and no copy; what is rounded away is rounded up as often as it is worth

A bf16 weight has 8 significant bits: a step smaller than 1/512 of it, as most are, is lost when rounded to the nearest.
The copy keeps such steps; rounding up with their probability keeps them on average. All that is needed to go on exactly
is in `state_dict`, whole tensors for sharded parameters, so that it loads at another number of ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as ranks
from torch.distributed.tensor import DTensor

from curate.errors import CheckpointError, PlanError, RecipeError
from curate.model import device
from curate.model.choices import OptimizerForm
from curate.train import distributed
from curate.train.config import OptimizerSettings
from curate.train.optim import eight_bit, updates
from curate.train.optim.updates import MOMENTS, Numbers, Slot, local, update_kind

_BUCKET = 1 << 26  # elements whose fp32 gradients are made at once: 256 MiB
_NORM_PIECE = 1 << 16  # elements: 512 KiB in fp64, which stays in cache
# Vectors of any kind, and tables of embeddings, whose rows of rare tokens would decay without ever being trained.
_UNDECAYED = re.compile(r"(^|[._])(embed\w*|wte|wpe|ia3_l|norm\w*|ln_\w+|\w*layernorm)([._]|$)", re.IGNORECASE)


def decays(name: str, parameter: Tensor) -> bool:
    """Tell whether weight decay concerns a parameter: matrices alone, not biases, norms, scales and embeddings."""
    return parameter.ndim >= 2 and not _UNDECAYED.search(name)


class AdamW:
    """AdamW (arXiv 1711.05101) over parameters of one model, its states made at once, before memory is taken by rows.

    `rate` is the learning rate of the next step. A parameter without a gradient is left as it is.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        form: OptimizerForm,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.form = form
        self.rate = 0.0
        self.steps = 0
        self.betas, self.epsilon, self.weight_decay = betas, epsilon, weight_decay
        self._slots = [Slot(name, parameter, decays(name, parameter)) for name, parameter in named]
        for slot in self._slots:
            slot.state = _states(slot.parameter, form)
        self._buckets = list(_buckets(self._slots))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of the gradients."""
        for slot in self._slots:
            if set_to_none:
                slot.parameter.grad = None
            elif slot.parameter.grad is not None:
                slot.parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Change the weights by their gradients."""
        self.steps += 1
        for bucket in self._buckets:
            moved = [slot for slot in bucket if slot.parameter.grad is not None]
            if not moved:
                continue
            decay = self.weight_decay if moved[0].decays else 0.0
            numbers = Numbers(self.steps, self.rate, decay, *self.betas, self.epsilon)
            updates.UPDATES[update_kind(moved[0])](moved, numbers)

    # ---- to and from a checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return all that going on exactly needs; the tensors of sharded parameters are sharded as they are."""
        state = {
            number: {name: _spread(value, slot.parameter) for name, value in slot.state.items()}
            for number, slot in enumerate(self._slots)
        }
        return {"form": self.form, "step": self.steps, "state": state}

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, whole or sharded; raises CheckpointError where it is another's."""
        if saved.get("form") != self.form:
            raise CheckpointError(
                f"the checkpoint's optimizer has the form {saved.get('form')!r}, this run's {self.form!r}; "
                f"go on with --setting optimizer.form={saved.get('form')}"
            )
        if len(saved["state"]) != len(self._slots):
            raise CheckpointError(
                f"the checkpoint has states of {len(saved['state'])} parameters, this run trains {len(self._slots)}"
            )
        for number, slot in enumerate(self._slots):
            _fill(slot, saved["state"][number])
        self.steps = int(saved["step"])


def _fill(slot: Slot, saved: Mapping[str, Tensor]) -> None:
    for name, value in slot.state.items():
        found = saved.get(name)
        if found is None:
            raise CheckpointError(f"the checkpoint has no {name} of {slot.name}")
        if found.shape != _spread(value, slot.parameter).shape:
            wanted = tuple(_spread(value, slot.parameter).shape)
            raise CheckpointError(
                f"the checkpoint's {name} of {slot.name} has shape {tuple(found.shape)}, not {wanted}"
            )
        part = found if isinstance(found, DTensor) else distributed.shard_like(found, slot.parameter)
        value.copy_(local(part))


def _spread(part: Tensor, parameter: Tensor) -> Tensor:
    """Return a rank's part of a state as the sharded tensor that it belongs to; a state has its parameter's rows."""
    if not isinstance(parameter, DTensor):
        return part
    same = part.shape == local(parameter).shape
    shape = torch.Size(parameter.shape if same else (*parameter.shape[:-1], part.shape[-1]))
    stride = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
    made: Tensor = DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )
    return made


# ---- states


def _states(parameter: nn.Parameter, form: OptimizerForm) -> dict[str, Tensor]:
    weight = local(parameter)
    if form == "stochastic" and weight.dtype == torch.float16:
        raise RecipeError(
            "optimizer.form stochastic needs bf16 weights, for fp16 has no room for small moments; use 8bit"
        )
    if form == "stochastic" and weight.dtype == torch.bfloat16:
        return {name: torch.zeros_like(weight) for name in MOMENTS}
    state = {} if weight.dtype == torch.float32 else {"master": weight.float()}
    if form == "8bit" and eight_bit.suits(weight, parameter.shape):
        for name in MOMENTS:
            state[name], state[f"{name}_scale"] = eight_bit.zeros(weight)
    else:
        state |= {name: torch.zeros_like(weight, dtype=torch.float32) for name in MOMENTS}
    return state


def _buckets(slots: Iterable[Slot]) -> Iterator[list[Slot]]:
    """Yield the parameters that are updated together: in one way, with one decay, not too many at once."""
    open_ones: dict[tuple[str, bool], list[Slot]] = {}
    for slot in slots:
        key = update_kind(slot), slot.decays
        bucket = open_ones.setdefault(key, [])
        if bucket and sum(local(one.parameter).numel() for one in (*bucket, slot)) > _BUCKET:
            yield open_ones.pop(key)
            bucket = open_ones.setdefault(key, [])
        bucket.append(slot)
    yield from open_ones.values()


# ---- what the run calls


def build(named: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings, form: OptimizerForm) -> AdamW:
    """Return the optimizer of some parameters, with its states; raises PlanError where they do not fit the memory."""
    try:
        return AdamW(
            named,
            form=form,
            betas=(settings.beta1, settings.beta2),
            epsilon=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
    except RuntimeError as error:
        if not device.is_out_of_memory(error):
            raise
    raise PlanError(
        "memory ran out while the optimizer made its states; give --method lora or qlora, or "
        "--setting optimizer.form=8bit"
    )


def set_rate(optimizer: AdamW, rate: float) -> None:
    """Set the learning rate of the steps to come."""
    optimizer.rate = rate


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together, over the ranks where they are sharded."""
    if not gradients:
        return torch.zeros(())
    sums: dict[Any, Tensor] = {}
    for place in {_group(gradient) for gradient in gradients}:
        parts = [local(gradient) for gradient in gradients if _group(gradient) == place]
        sums[place] = _squares(parts)
        if place is not None:
            ranks.all_reduce(sums[place], group=place)
    return torch.stack(list(sums.values())).sum().sqrt()


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of the squares of all elements: fp32 on a GPU, fp64 on the CPU.

    A GPU adds in a tree. On the CPU torch adds up a whole tensor in a few fp32 lanes, which loses 7e-5 of the norm of
    4 million elements and 1.3e-2 of that of 131 million, and less of it the more ranks share the tensor. There the
    sum is taken in fp64, in pieces so that no fp64 copy of a whole gradient is made.
    """
    if tensors[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=torch.float32)).square().sum()
    pieces = [piece for tensor in tensors for piece in tensor.reshape(-1).split(_NORM_PIECE)]
    return torch.stack(torch._foreach_norm(pieces, 2, dtype=torch.float64)).square().sum()


def _group(gradient: Tensor) -> Any:
    return gradient.device_mesh.get_group() if isinstance(gradient, DTensor) else None


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], most: float, *, scale: float = 1.0) -> float:
    """Divide gradients by a loss's `scale`, shrink them to the norm `most` (0: never); return their norm before that.

    Where the norm is no number they stay as they are.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    found = float(norm(gradients)) / scale
    factor = 1 / scale
    if most:
        factor *= min(1.0, most / (found + 1e-6))  # as torch's own clipping has it
    if factor != 1.0 and math.isfinite(found):
        torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
    return found


# ---- the rate


def schedule(settings: OptimizerSettings, total: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step, counted from 0: warm-up, then down to `final`.

    As transformers' schedules, but that warm-up begins at its first step's worth rather than with a step of rate 0.
    """
    warm = settings.warmup_steps or math.ceil(settings.warmup * total)
    shape = _SHAPES[settings.schedule]

    def at(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, total - warm))
        return settings.final + (1 - settings.final) * shape(done)

    return at


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
