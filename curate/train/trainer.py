"""The trainer: a model, its optimizer and its packed data, and one optimizer step over them.

A step runs its packed rows forward and backward in micro-batches and scales the summed loss once, by the supervised
tokens of the whole global batch. Weights change only in the optimizer's update. A failure before that (memory, a
compiler, a loss that is not finite) leaves them unchanged: a step that ran out of memory is repeated with smaller
micro-batches, the same rows and the same random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curate.errors import CheckpointError, RunError
from curate.model import adapters, device
from curate.model.adapters import Trainable
from curate.model.attention import selection as attentions
from curate.model.attention.selection import ChosenKernel
from curate.train import checkpoint, distributed, neftune
from curate.train.checkpoint import Loaded, State
from curate.train.config import TrainConfig
from curate.train.distributed import World
from curate.train.objectives import reference, selection
from curate.train.objectives.dpo import PairData
from curate.train.objectives.loss import CausalLoss, check_packed_logits, step_factor
from curate.train.objectives.objective import StepSummary
from curate.train.optim import adamw
from curate.train.packing import PackedData
from curate.train.planning.plan import Plan
from curate.train.results.init_from import FROM_SCRATCH, Initial
from curate.train.run.events import Reporter

RandomState = dict[str, Tensor]  # by device kind
INITIAL_LOSS_SCALE = 65536.0  # this and the interval as in torch's GradScaler
GROWTH_INTERVAL = 2000  # finite steps after which an fp16 loss is scaled up again


class LostStep(Exception):
    """Memory ran out while weights were being updated: only a checkpoint is consistent."""


@dataclass(frozen=True)
class TrainerInputs:
    """The inputs of a trainer, except the model."""

    config: TrainConfig
    plan: Plan
    attention: ChosenKernel
    packed: PackedData
    world: World
    init: Initial = field(default=FROM_SCRATCH, kw_only=True)
    reporter: Reporter = field(default_factory=Reporter, kw_only=True)


@dataclass(frozen=True)
class StepResult:
    """A finished step."""

    step: int  # from 1
    rows: Sequence[int]  # packed rows, over all ranks
    lr: float
    loss: float  # per supervised token of the global batch, or per pair
    norm: float  # of the gradients, before clipping
    supervised: int  # tokens
    seconds: float
    data_seconds: float  # of them, spent on preparing tensors
    skipped: bool  # an fp16 gradient overflowed, so only the loss scale changed
    metrics: Mapping[str, float] = field(default_factory=dict)  # more that the objective measures


@dataclass
class LossScale:
    """The factor on an fp16 loss, so that small gradients do not underflow; constant 1 for any other type."""

    active: bool
    value: float = 1.0
    finite_steps: int = 0  # since the last change

    @classmethod
    def for_dtype(cls, dtype: str) -> LossScale:
        """Return the initial scale for a dtype by name."""
        return cls(True, INITIAL_LOSS_SCALE) if dtype == "fp16" else cls(False)

    def update(self, finite: bool) -> None:
        """Halve the scale after an overflow; double it after many finite steps."""
        if not self.active:
            return
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.finite_steps >= GROWTH_INTERVAL:
            self.value, self.finite_steps = self.value * 2, 0


class Trainer:
    """Owns model, optimizer and data, and takes steps. It has all state that changes during training.

    Every rank has one, and must call the same methods in the same order.
    """

    def __init__(self, model: nn.Module, inputs: TrainerInputs) -> None:
        """Prepare a loaded model for training: adapters, attention, activation checkpointing, compilation, ranks.

        Raises CurateError if the method, the checkpoint of `--init` or packed rows do not suit the model, PlanError if
        the optimizer's states do not fit into memory.
        """
        config, plan = inputs.config, inputs.plan
        self.data = inputs.packed
        self.world = inputs.world
        self.reporter = inputs.reporter
        self.max_norm = config.optimizer.clip
        self.micro_batch = plan.micro_batch  # packed rows
        self.checkpointed = plan.checkpointed  # layers
        self.compiled = plan.compiled
        self.loss_scale = LossScale.for_dtype(plan.hardware.dtype)
        self.trainable: Trainable
        if inputs.init.adapter is not None:
            model, self.trainable = adapters.resume_adapter(model, inputs.init.adapter)
        else:
            model, self.trainable = adapters.apply_method(model, config.method)
        self.attention = attentions.install_kernel(model, inputs.attention)
        checkpoint_activations(model, plan.checkpointed)
        self.objective = selection.choose(config.objective)
        causal_loss = self.objective.module(model.train())
        check_packed_logits(causal_loss, self.attention)
        if inputs.init.weights is not None:
            _load_weights(causal_loss, inputs.init.weights)
        # Of the model before the first step: the reference of a pair. Ranks have whole weights here.
        self.fingerprint = reference.fingerprint(model) if config.objective.sides == 2 else ""
        if config.optimizer.neftune:
            neftune.add(causal_loss, config.optimizer.neftune)
        if plan.compiled:
            _compile_layers(model)
        self.module = distributed.wrap_model(causal_loss, self.world, shard=config.method.full)
        self.parameters = _find_trained(distributed.inner(self.module))  # after sharding, which replaces parameters
        torch.manual_seed(config.train.seed + self.world.rank)  # each rank has its own dropout
        self.optimizer = adamw.build(self.parameters.items(), config.optimizer, plan.form)

    def use_reference(self, log_probabilities: NDArray[np.float64]) -> None:
        """Compare pairs with the reference, which has a log-probability for each example [examples]."""
        self.data = PairData(self.data.examples, self.data.rows, self.data.row_tokens, log_probabilities)

    @property
    def model(self) -> nn.Module:
        """The model as transformers or peft made it."""
        return causal_model(self.module)

    @property
    def all_checkpointed(self) -> bool:
        """Whether every layer keeps only its inputs: activations cannot shrink any further."""
        return self.checkpointed >= len(distributed.layers(self.model))

    def step(self, step: int, rows: Sequence[int], lr: float) -> StepResult:
        """Take a step, numbered from 1, over these packed rows of all ranks. Collective.

        Raises RunError if the loss or a gradient is not finite, or memory cannot be reduced any further; LostStep if
        memory ran out during the update of the weights.
        """
        begin = time.perf_counter()
        while True:
            random_before = random_state(self.world)
            try:
                summary, data_seconds = self._backward(rows)
                break
            except Exception as error:
                recover = self._recovery(error, step)
            recover()  # outside the handler, whose traceback keeps the tensors alive that filled the memory
            set_random_state(random_before, self.world)
        norm, skipped = self._update(step, summary.loss, lr)
        seconds = time.perf_counter() - begin
        loss, supervised, metrics = summary.loss, summary.supervised, summary.metrics
        return StepResult(step, rows, lr, loss, norm, supervised, seconds, data_seconds, skipped, metrics)

    # ---- forward and backward

    def _backward(self, rows: Sequence[int]) -> tuple[StepSummary, float]:
        """Compute the step's gradients; return its loss and the seconds spent on data."""
        torch_device = self.world.device
        begin = time.perf_counter()
        # On CUDA every micro-batch has the same shape, so that the last one of a step is not compiled again.
        min_rows = self.micro_batch if torch_device.type == "cuda" else 1
        micro_batches = distributed.shares(rows, self.micro_batch, self.world)
        batches = [self.data.batch(members, min_rows) for members in micro_batches]
        data_seconds = time.perf_counter() - begin
        factor, count = step_factor(map(self.objective.count, batches), device=torch_device)
        total = torch.zeros((), dtype=torch.float64 if torch_device.type != "mps" else torch.float32).to(torch_device)
        for number, batch in enumerate(batches, 1):
            with distributed.accumulate(self.module, number == len(batches)):
                sums: Tensor = self.module(batch.to(torch_device), self.attention).reshape(-1)
                (sums[0] * (factor * self.loss_scale.value)).backward()
            total = total + sums.detach()  # stays on the device: the CPU waits once per step, not per micro-batch
        summary = self.objective.summarise(distributed.total(total.tolist(), self.world), count)
        return summary, data_seconds

    # ---- the update

    def _update(self, step: int, loss: float, lr: float) -> tuple[float, bool]:
        """Clip the gradients and update the weights; return the gradients' norm and whether the update was skipped."""
        norm = adamw.clip(self.parameters.values(), self.max_norm, scale=self.loss_scale.value)
        finite = bool(torch.isfinite(torch.tensor([norm, loss])).all())
        if not finite and not self.loss_scale.active:
            self.optimizer.zero_grad(set_to_none=True)
            name, value = ("the loss is", loss) if loss != loss else ("the norm of the gradients is", norm)
            raise RunError(
                f"step {step}: {name} {value}; the step changed nothing. Lower the learning rate (--lr), or look for "
                "damaged text in the rows of this step"
            )
        if finite:
            try:
                adamw.set_rate(self.optimizer, lr)
                self.optimizer.step()
            except RuntimeError as error:
                if not device.is_out_of_memory(error):
                    raise
                self.optimizer.zero_grad(set_to_none=True)  # otherwise the next step would add to them
                raise LostStep from None
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_scale.update(finite)
        if self.loss_scale.active and not finite and self.loss_scale.value <= 1.0:
            raise RunError(f"step {step}: fp16 gradients overflow at any loss scale; lower the learning rate (--lr)")
        return norm, not finite

    # ---- recovery

    def _recovery(self, error: Exception, step: int) -> Callable[[], None]:
        """Return a function to call before the step is repeated; raise RunError, or the error itself, if none helps."""
        if device.is_out_of_memory(error):
            self._require_reducible_memory(error, step)
            return lambda: self._reduce_memory(step)
        if self.compiled and is_compiler_error(error):
            name = type(error).__name__
            return lambda: self._uncompile(name)
        raise error

    def _require_reducible_memory(self, error: Exception, step: int) -> None:
        if self.world.size > 1:  # the other ranks wait for this one in the middle of their step
            raise RunError(
                f"step {step}: rank {self.world.rank} ran out of memory at {self.micro_batch} rows at once; continue "
                f"with --resume and --micro-batch {max(1, self.micro_batch // 2)}"
            ) from error
        if self.micro_batch == 1 and self.all_checkpointed:
            raise RunError(
                f"step {step}: memory ran out at one row of {self.data.row_tokens:,} tokens with checkpointing; give a "
                "smaller --max-tokens, or --method lora or qlora"
            ) from error

    def _reduce_memory(self, step: int) -> None:
        """Halve the micro-batch or, at one packed row, checkpoint all activations; the step's rows stay the same."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.micro_batch > 1:
            self.micro_batch = (self.micro_batch + 1) // 2
            change = f"now {self.micro_batch} rows at once"
        else:
            self.checkpointed = len(distributed.layers(self.model))
            checkpoint_activations(self.model, self.checkpointed)
            change = "activations are recomputed in the backward pass from now on"
        self.reporter.warn(f"memory ran out in step {step}: {change}; the step is repeated with the same rows")

    def _uncompile(self, error: str) -> None:
        """Run the layers without the compiler from now on."""
        self.optimizer.zero_grad(set_to_none=True)
        torch._dynamo.reset()
        for layer in distributed.layers(self.model):
            layer._compiled_call_impl = None  # undoes `Module.compile`, for which torch has no public function
        self.compiled = False
        self.reporter.warn(f"layers cannot be compiled here and run uncompiled ({error})")

    def recover_from_oom(self, loaded: Loaded | None, step: int) -> int:
        """Restore a checkpoint and halve the micro-batch after a LostStep; return the checkpoint's step.

        Raises RunError if there is no checkpoint, or memory cannot be reduced any further.
        """
        if loaded is None or (self.micro_batch == 1 and self.all_checkpointed):
            raise RunError(
                f"step {step}: memory ran out while the optimizer updated the weights; give --method lora or qlora, or "
                "--setting optimizer.form=8bit"
            )
        self.micro_batch = (self.micro_batch + 1) // 2
        restored = self.restore(loaded)
        self.reporter.warn(
            f"memory ran out in step {step}: back to step {restored}, now {self.micro_batch} rows at once"
        )
        return restored

    # ---- to and from a checkpoint

    def state(self, step: int, facts: dict[str, Any]) -> State:
        """Return the state after a step, with everything that an exact resumption needs. Collective.

        `facts` are added to those of the trainer. Sharded tensors stay sharded.
        """
        activations = "none" if not self.checkpointed else "full" if self.all_checkpointed else "auto"
        return State(
            step=step,
            weights=dict(self.parameters),
            optimizer=self.optimizer.state_dict(),
            rng=tuple(distributed.gather(random_state(self.world), self.world)),
            facts={
                **facts,
                "scale": self.loss_scale.value,
                "good": self.loss_scale.finite_steps,
                "micro_batch": self.micro_batch,
                "checkpointing": activations,
            },
        )

    def restore(self, loaded: Loaded) -> int:
        """Continue from a checkpoint; return its step. Raises CheckpointError if it belongs to another run."""
        state = loaded.state
        distributed.load_weights(self.parameters, state.weights)
        try:
            self.optimizer.load_state_dict(state.optimizer)
            if state.rng:  # with more ranks than before, some share a state
                set_random_state(dict(state.rng[self.world.rank % len(state.rng)]), self.world)
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
            if device.is_out_of_memory(error):
                raise
            raise CheckpointError(f"the states in {str(loaded.path)!r} do not fit this run: {error}") from error
        self.loss_scale.value, self.loss_scale.finite_steps = state.facts["scale"], state.facts["good"]
        return state.step


# ---- preparing the model


def causal_model(module: nn.Module) -> nn.Module:
    """Return the model as transformers or peft made it, without CausalLoss, DDP or FSDP2 around it."""
    causal_loss = distributed.inner(module)
    return causal_loss.model if isinstance(causal_loss, CausalLoss) else causal_loss


def checkpoint_activations(model: nn.Module, count: int) -> None:
    """Let a model's first `count` layers keep only their inputs, and recompute activations in the backward pass.

    The first ones, because the backward pass reaches them after the later layers have freed their activations.
    """
    if not count:
        return
    base: Any = attentions.base_model(model)
    # transformers 5.24 renamed the method
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable(
        {"use_reentrant": False}
    )  # the reentrant form needs inputs with gradients, which a frozen base does not have
    layers: Sequence[Any] = distributed.layers(model)
    for layer in layers[count:]:
        layer.gradient_checkpointing = False


def _find_trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _load_weights(causal_loss: CausalLoss, path: Path) -> None:
    """Load a checkpoint's weights into a model that is not distributed over ranks yet."""
    distributed.load_weights(_find_trained(causal_loss), checkpoint.load(path).weights)


def _compile_layers(model: nn.Module) -> None:
    """Compile each layer by itself: all have the same code, so that one compilation serves all of them."""
    for layer in distributed.layers(model):
        layer.compile()


def is_compiler_error(error: Exception) -> bool:
    """Return whether an error came from torch's compiler and not from the code that it compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))


# ---- random states, so that dropout and noise are the same after a resumption


def random_state(world: World) -> RandomState:
    """Return this rank's random states."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return states


def set_random_state(states: RandomState, world: World) -> None:
    """Restore this rank's random states."""
    torch.set_rng_state(states["cpu"])
    if world.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], world.device)
