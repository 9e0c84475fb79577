"""AdamW in three forms, its learning-rate schedule, and gradient clipping.

    master        fp32 moments, and an fp32 master copy of bf16 or fp16 weights; torch's fused AdamW
    8bit          the same master copy, with 8-bit moments (`curate.train.optim.eight_bit`)
    stochastic    bf16 weights and moments with stochastic rounding, and no master copy

A bf16 weight has 8 significant bits: an update smaller than 1/512 of the weight, as most are, is lost when rounded to
nearest. The master copy keeps such updates; stochastic rounding keeps them on average. `state_dict` has everything that
an exact resumption needs, with DTensors for sharded parameters, so that it loads with another number of ranks.
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
from curate.train.optim.updates import MOMENTS, Slot, StepScalars, local, update_kind

_BUCKET = 1 << 26  # elements of one fused update: its fp32 copies of the gradients take 256 MiB
_NORM_CHUNK = 1 << 16  # elements: 512 KiB in fp64, which stays in cache
# Norms and IA3 scales, and embeddings, whose rows of rare tokens would decay without ever being trained.
_UNDECAYED = re.compile(r"(^|[._])(embed\w*|wte|wpe|ia3_l|norm\w*|ln_\w+|\w*layernorm)([._]|$)", re.IGNORECASE)


def decays(name: str, parameter: Tensor) -> bool:
    """Return whether weight decay applies to a parameter: to matrices, but not biases, norms, scales or embeddings."""
    return parameter.ndim >= 2 and not _UNDECAYED.search(name)


class AdamW:
    """AdamW (arXiv 1711.05101) over the parameters of one model.

    States are allocated when it is created, so that a lack of memory shows before the first step. `rate` is the
    learning rate of the next step. A parameter without a gradient does not change.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        form: OptimizerForm,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.form = form
        self.rate = 0.0
        self.steps = 0  # taken so far
        self.betas, self.epsilon, self.weight_decay = betas, epsilon, weight_decay
        self._slots = [Slot(name, parameter, decays(name, parameter)) for name, parameter in named_parameters]
        for slot in self._slots:
            slot.state = _zero_states(slot.parameter, form)
        self._buckets = list(_buckets(self._slots))  # one update each: few launches of kernels for many parameters

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free the gradients, or set them to zero in place."""
        for slot in self._slots:
            if set_to_none:
                slot.parameter.grad = None
            elif slot.parameter.grad is not None:
                slot.parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights with their gradients. Not collective: a rank updates its part of sharded parameters."""
        self.steps += 1  # first: the correction of the moments' bias counts steps from 1
        for bucket in self._buckets:
            slots = [slot for slot in bucket if slot.parameter.grad is not None]
            if not slots:
                continue
            decay = self.weight_decay if slots[0].decays else 0.0  # the same for all slots of a bucket
            scalars = StepScalars(self.steps, self.rate, decay, *self.betas, self.epsilon)
            updates.UPDATES[update_kind(slots[0])](slots, scalars)

    # ---- to and from a checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resumption needs; states of sharded parameters are DTensors, sharded in the same way.

        Parameters are numbered in the order in which they were given.
        """
        state = {
            number: {name: _as_sharded(value, slot.parameter) for name, value in slot.state.items()}
            for number, slot in enumerate(self._slots)
        }
        return {"form": self.form, "step": self.steps, "state": state}

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`, with whole or sharded tensors.

        Raises CheckpointError if the state is of another form, or of other parameters.
        """
        if saved.get("form") != self.form:
            raise CheckpointError(
                f"the checkpoint's optimizer has the form {saved.get('form')!r}, this run's has {self.form!r}; "
                f"use --setting optimizer.form={saved.get('form')}"
            )
        if len(saved["state"]) != len(self._slots):
            raise CheckpointError(
                f"the checkpoint has optimizer states of {len(saved['state'])} parameters, this run trains "
                f"{len(self._slots)}"
            )
        for number, slot in enumerate(self._slots):
            _load_states(slot, saved["state"][number])
        self.steps = int(saved["step"])


def _load_states(slot: Slot, saved: Mapping[str, Tensor]) -> None:
    """Copy this rank's part of saved states; raises CheckpointError if one is missing or has another shape."""
    for name, value in slot.state.items():
        tensor = saved.get(name)
        if tensor is None:
            raise CheckpointError(f"the checkpoint has no {name} of {slot.name}")
        shape = _as_sharded(value, slot.parameter).shape
        if tensor.shape != shape:
            raise CheckpointError(
                f"the checkpoint's {name} of {slot.name} has shape {tuple(tensor.shape)}, not {tuple(shape)}"
            )
        part = tensor if isinstance(tensor, DTensor) else distributed.shard_like(tensor, slot.parameter)
        value.copy_(local(part))


def _as_sharded(part: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's part of a state as a DTensor sharded like the parameter; unchanged if that is not sharded.

    A state has its parameter's shape, except that 8-bit scales [rows, blocks] have one column for each block.
    """
    if not isinstance(parameter, DTensor):
        return part
    is_scale = part.shape != local(parameter).shape
    shape = torch.Size((*parameter.shape[:-1], part.shape[-1]) if is_scale else parameter.shape)
    stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    # `from_local` infers wrong shapes if the number of rows is not a multiple of the ranks.
    sharded: Tensor = DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )
    return sharded


# ---- states


def _zero_states(parameter: nn.Parameter, form: OptimizerForm) -> dict[str, Tensor]:
    """Return the states of this rank's part of a parameter before the first step.

    Raises RecipeError for stochastic rounding of fp16 weights.
    """
    weight = local(parameter)
    if form == "stochastic" and weight.dtype == torch.float16:
        raise RecipeError(
            "optimizer.form = 'stochastic' needs bf16 weights: small moments underflow in fp16; use '8bit'"
        )
    if form == "stochastic" and weight.dtype == torch.bfloat16:
        return {name: torch.zeros_like(weight) for name in MOMENTS}
    # An fp32 weight needs no master copy; in the form `stochastic` it has fp32 moments too.
    state = {} if weight.dtype == torch.float32 else {"master": weight.float()}
    if form == "8bit" and eight_bit.is_supported(weight, parameter.shape):
        for name in MOMENTS:
            state[name], state[f"{name}_scale"] = eight_bit.zeros(weight)
    else:
        state |= {name: torch.zeros_like(weight, dtype=torch.float32) for name in MOMENTS}
    return state


def _buckets(slots: Iterable[Slot]) -> Iterator[list[Slot]]:
    """Yield groups of parameters with the same update kind and decay, of at most `_BUCKET` elements.

    A larger parameter has a bucket of its own.
    """
    open_buckets: dict[tuple[str, bool], list[Slot]] = {}
    for slot in slots:
        key = update_kind(slot), slot.decays
        bucket = open_buckets.setdefault(key, [])
        if bucket and sum(local(member.parameter).numel() for member in (*bucket, slot)) > _BUCKET:
            yield open_buckets.pop(key)
            bucket = open_buckets.setdefault(key, [])
        bucket.append(slot)
    yield from open_buckets.values()


# ---- building, learning rate, gradient norm


def build(
    named_parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings, form: OptimizerForm
) -> AdamW:
    """Return an optimizer with its states allocated; raises PlanError if they do not fit into memory."""
    try:
        return AdamW(
            named_parameters,
            form=form,
            betas=(settings.beta1, settings.beta2),
            epsilon=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
    except RuntimeError as error:
        if not device.is_out_of_memory(error):
            raise
    raise PlanError(  # outside the handler, whose traceback keeps the allocated states alive
        "memory ran out while the optimizer allocated its states; use --method lora or qlora, or "
        "--setting optimizer.form=8bit"
    )


def set_rate(optimizer: AdamW, rate: float) -> None:
    """Set the learning rate of the following steps."""
    optimizer.rate = rate


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the global 2-norm of all gradients, a scalar on their device.

    Collective for sharded gradients: every rank must call this, and gets the same norm.
    """
    if not gradients:
        return torch.zeros(())
    sums: dict[Any, Tensor] = {}  # of squares, by process group; None for unsharded gradients, equal on all ranks
    for group in {_group(gradient) for gradient in gradients}:
        parts = [local(gradient) for gradient in gradients if _group(gradient) == group]
        sums[group] = _sum_of_squares(parts)
        if group is not None:  # each rank has summed its own part
            ranks.all_reduce(sums[group], group=group)
    return torch.stack(list(sums.values())).sum().sqrt()


def _sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of the squares of all elements: in fp32 on a GPU, in fp64 on the CPU.

    A GPU sums in a tree. On the CPU torch sums a whole tensor in a few fp32 lanes: the relative error of the norm is
    7e-5 for 4 million elements and 1.3e-2 for 131 million, and depends on how many ranks share the tensor. fp64 avoids
    both; chunks avoid an fp64 copy of a whole gradient.
    """
    if tensors[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=torch.float32)).square().sum()
    chunks = [chunk for tensor in tensors for chunk in tensor.reshape(-1).split(_NORM_CHUNK)]
    return torch.stack(torch._foreach_norm(chunks, 2, dtype=torch.float64)).square().sum()


def _group(gradient: Tensor) -> Any:
    return gradient.device_mesh.get_group() if isinstance(gradient, DTensor) else None


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], max_norm: float, *, scale: float = 1.0) -> float:
    """Divide gradients by the loss scale, and clip their global norm unless `max_norm` is 0.

    Returns the norm before clipping, without the loss scale. If it is not finite, the gradients do not change.
    Collective for sharded gradients.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm_before = float(norm(gradients)) / scale  # `float` waits for the device
    factor = 1 / scale
    if max_norm:
        factor *= min(1.0, max_norm / (norm_before + 1e-6))  # the epsilon of torch.nn.utils.clip_grad_norm_
    if factor != 1.0 and math.isfinite(norm_before):
        torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
    return norm_before


# ---- the learning-rate schedule


def schedule(settings: OptimizerSettings, total: int) -> Callable[[int], float]:
    """Return a function from step, counted from 0, to a factor on the peak learning rate.

    The factor rises linearly during warm-up, then falls to `settings.final` over `total` steps. These are transformers'
    schedules, except that the first step of the warm-up has a rate above 0: with 0 the step would change nothing.
    """
    warmup_steps = settings.warmup_steps or math.ceil(settings.warmup * total)
    curve = _CURVES[settings.schedule]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / max(1, total - warmup_steps))
        return settings.final + (1 - settings.final) * curve(done)

    return factor


# From 1 to 0, as `done`, the share of the steps after warm-up, goes from 0 to 1.
_CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
