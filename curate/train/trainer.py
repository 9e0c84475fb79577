"""One optimizer step: micro-batches forward and backward, the loss shared out over them all, and what can go wrong.

Weights change in the optimizer's step alone. Whatever fails before it (memory, a loss that is no number) leaves the run
as it was: a step that ran out of memory is taken again in smaller portions, with the same rows and the same draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from curate.errors import RunError
from curate.model import device
from curate.model.attention import choose as attentions
from curate.model.attention.choose import Attention
from curate.train import distributed, packing
from curate.train.distributed import World
from curate.train.examples import Examples
from curate.train.loss import CausalLoss, share
from curate.train.optim import adamw
from curate.train.packing import Batch

Say = Callable[[str], None]
Random = dict[str, Tensor]
GROWTH_STEPS = 2000  # good steps after which an fp16 loss is scaled up again


class LostStep(Exception):
    """Memory ran out while weights were being changed: only a checkpoint is whole."""


@dataclass(frozen=True)
class Outcome:
    """What a step came to: the loss per supervised token, the gradients' norm before clipping, seconds it waited.

    `skipped`: an fp16 gradient overflowed, so nothing was changed but the scale.
    """

    loss: float
    norm: float
    supervised: int
    waited: float
    skipped: bool = False


@dataclass
class Scale:
    """The factor on an fp16 loss, so that small gradients are not lost; 1 and still for any other type."""

    active: bool
    value: float = 1.0
    good: int = 0

    def after(self, finite: bool) -> None:
        """Halve it after an overflow; double it after many good steps."""
        if not self.active:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.good >= GROWTH_STEPS:
            self.value, self.good = self.value * 2, 0


def scale_for(dtype: str) -> Scale:
    """Return the scale of a type."""
    return Scale(dtype == "fp16", 65536.0 if dtype == "fp16" else 1.0)


@dataclass
class Trainer:
    """What is being trained and by what; the one thing here that changes as the run goes on."""

    module: nn.Module  # CausalLoss, in DDP, sharded, or bare
    attention: Attention
    optimizer: Any
    examples: Examples
    rows: Sequence[Sequence[int]]
    row_tokens: int
    world: World
    clip: float
    micro_batch: int
    scale: Scale
    say: Say
    checkpointed: int = 0  # layers
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = distributed.inner(self.module).named_parameters()
        self.parameters = {name: parameter for name, parameter in named if parameter.requires_grad}

    @property
    def model(self) -> nn.Module:
        """The model itself, as transformers or peft made it."""
        whole = distributed.inner(self.module)
        return whole.model if isinstance(whole, CausalLoss) else whole

    @property
    def all_checkpointed(self) -> bool:
        """Whether every layer keeps its inputs alone: no fewer activations can be kept."""
        return self.checkpointed >= len(distributed.layers(self.model))

    def take(self, step: int, rows: Sequence[int], lr: float) -> Outcome:
        """Take a step over these rows, counted from 1 for what is said of it.

        Raises RunError where the loss or a gradient is no number, or memory ends; LostStep where the weights are lost.
        """
        while True:
            draws = random_state(self.world)
            try:
                outcome = self._gradients(rows)
            except RuntimeError as error:
                self._refuse_if_not_memory(error, step)
            else:
                break
            self._make_smaller(step)  # outside the handler, whose error still holds the tensors that filled the memory
            set_random_state(draws, self.world)
        return self._update(step, outcome, lr)

    # ---- forward and backward

    def _gradients(self, rows: Sequence[int]) -> Outcome:
        """Make the step's gradients; its norm is still open."""
        begin = time.perf_counter()
        batches = [self._batch(part) for part in distributed.shares(rows, self.micro_batch, self.world)]
        waited = time.perf_counter() - begin
        factor, supervised = share(batches, device=self.world.device)
        total = torch.zeros((), dtype=torch.float64 if self.world.device.type != "mps" else torch.float32)
        total = total.to(self.world.device)
        for number, batch in enumerate(batches, 1):
            with distributed.accumulating(self.module, number == len(batches)):
                summed: Tensor = self.module(batch.to(self.world.device), self.attention)
                (summed * (factor * self.scale.value)).backward()
            total += summed.detach()
        loss = distributed.total([float(total)], self.world)[0] / max(supervised, 1)
        return Outcome(loss, 0.0, supervised, waited)

    def _batch(self, part: Sequence[int]) -> Batch:
        """Return the tensors of some rows; on CUDA always as many, so that the last ones compile nothing anew."""
        members = [list(self.rows[row]) for row in part]
        wanted = self.micro_batch if self.world.device.type == "cuda" else 1
        members += [[] for _ in range(wanted - len(members))]
        return packing.batch(self.examples, members, self.row_tokens)

    # ---- the change

    def _update(self, step: int, outcome: Outcome, lr: float) -> Outcome:
        norm = adamw.clip(self.parameters.values(), self.clip, scale=self.scale.value)
        finite = torch.isfinite(torch.tensor([norm, outcome.loss])).all().item()
        if not finite and not self.scale.active:
            self.optimizer.zero_grad(set_to_none=True)
            what = "the loss" if outcome.loss != outcome.loss else "the gradients"
            raise RunError(
                f"step {step}: {what} came to {outcome.loss if what == 'the loss' else norm}; nothing was changed by "
                "this step. Lower the rate (--lr), or look at the rows of this step for damaged text"
            )
        if finite:
            try:
                adamw.set_rate(self.optimizer, lr)
                self.optimizer.step()
            except RuntimeError as error:
                if not device.is_out_of_memory(error):
                    raise
                self.optimizer.zero_grad(set_to_none=True)  # or the step that is taken again would add to them
                raise LostStep from None
        self.optimizer.zero_grad(set_to_none=True)
        self.scale.after(bool(finite))
        if self.scale.active and not finite and self.scale.value <= 1.0:
            raise RunError(f"step {step}: the fp16 loss is no number at any scale; lower the rate (--lr)")
        return Outcome(outcome.loss, norm, outcome.supervised, outcome.waited, not finite)

    # ---- memory

    def _refuse_if_not_memory(self, error: RuntimeError, step: int) -> None:
        if not device.is_out_of_memory(error):
            raise error
        if self.world.size > 1:  # the others wait for this rank in the middle of their step
            raise RunError(
                f"step {step}: rank {self.world.rank} ran out of memory at {self.micro_batch} rows at once; go on with "
                f"--resume and --micro-batch {max(1, self.micro_batch // 2)}"
            ) from error
        if self.micro_batch == 1 and self.all_checkpointed:
            raise RunError(
                f"step {step}: memory ran out at one row of {self.row_tokens:,} tokens with checkpointing; give a "
                "smaller --max-tokens, or --method lora or qlora"
            ) from error

    def _make_smaller(self, step: int) -> None:
        """Take half as many rows at once, or keep fewer activations; the step's rows stay what they are."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.micro_batch > 1:
            self.micro_batch = (self.micro_batch + 1) // 2
            what = f"now {self.micro_batch} rows at once"
        else:
            self.checkpointed = len(distributed.layers(self.model))
            checkpoint_activations(self.model, self.checkpointed)
            what = "activations are made again in the backward pass from now on"
        self.say(f"memory ran out in step {step}: {what}; the step is taken again, its rows are the same")


def checkpoint_activations(model: nn.Module, count: int) -> None:
    """Have a model's first `count` layers keep their inputs alone, and make the rest again in the backward pass.

    The first, because their turn in the backward pass comes when later ones have given back what they kept.
    """
    if not count:
        return
    whole: Any = attentions.base(model)
    named = "activation_checkpointing_enable"  # so since transformers 5.24
    enable = getattr(whole, named, None) or whole.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    layers: Sequence[Any] = distributed.layers(model)
    for layer in layers[count:]:
        layer.gradient_checkpointing = False


# ---- random states, without which dropout and noise would differ after a resumption


def random_state(world: World) -> Random:
    """Return this rank's random states."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return states


def set_random_state(states: Random, world: World) -> None:
    """Put this rank's random states back."""
    torch.set_rng_state(states["cpu"])
    if world.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], world.device)
