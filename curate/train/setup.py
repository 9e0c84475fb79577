"""A settled run brought to life: weights loaded, adapters put in, layers compiled, ranks joined, optimizer built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curate.model import adapters, load
from curate.model.attention import choose as attentions
from curate.model.attention.choose import Attention
from curate.model.device import DTYPES
from curate.train import checkpoint, distributed, loss, neftune
from curate.train import trainer as step
from curate.train.checkpoint import Loaded, State
from curate.train.config import TrainConfig
from curate.train.distributed import World
from curate.train.examples import Examples
from curate.train.init_from import NOTHING, Initial
from curate.train.loss import CausalLoss
from curate.train.memory import Form
from curate.train.optim import adamw
from curate.train.prepare import Prepared
from curate.train.trainer import Trainer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Alive:
    """A run that can take steps, and how many of the model's parameters it trains."""

    trainer: Trainer
    trained: int
    parameters: int


def start(ready: Prepared, world: World, say: Say, warn: Say) -> Alive:
    """Load the model and build what trains it; what is drawn goes by the run's seed."""
    config, planned = ready.config, ready.plan
    torch.manual_seed(config.train.seed)
    say(f"loading {ready.source.name}")
    model = load.load(
        ready.source,
        dtype=DTYPES[ready.device.dtype],
        device=world.device,
        quantise=config.method.kind == "qlora",
        seed=config.train.seed,
        say=say,
    )
    how = How(config, ready.device.dtype, planned.form, planned.micro_batch, planned.checkpointed, planned.compiled)
    fed = Fed(ready.data.train, ready.rows, ready.row_tokens)
    return equip(model, how, ready.attention, fed, world, warn=warn, init=ready.init)


@dataclass(frozen=True)
class How:
    """How a model is trained: its configuration, and what the plan chose for the device."""

    config: TrainConfig
    dtype: str
    form: Form
    micro_batch: int
    checkpointed: int  # layers
    compiled: bool


@dataclass(frozen=True)
class Fed:
    """What a model is fed: conversations, and which of them stand in each row of `row_tokens`."""

    examples: Examples
    rows: Sequence[Sequence[int]]
    row_tokens: int


def equip(
    model: nn.Module,
    how: How,
    attention: Attention,
    fed: Fed,
    world: World,
    *,
    warn: Say,
    init: Initial = NOTHING,
) -> Alive:
    """Make a loaded model ready to take steps; `init` may be an adapter to train on, or a checkpoint's weights."""
    config = how.config
    if init.adapter is not None:
        model, trainable = adapters.resume(model, init.adapter)
    else:
        model, trainable = adapters.apply(model, config.method)
    chosen = attentions.prepare(model, attention)
    step.checkpoint_activations(model, how.checkpointed)
    whole = CausalLoss(model.train())
    loss.check(whole, chosen)
    if init.weights is not None:
        _take_over(whole, init.weights)
    if config.optimizer.neftune:
        neftune.add(whole, config.optimizer.neftune)
    if how.compiled:
        compile_layers(model)
    module = distributed.spread(whole, world, shard=config.method.kind == "full")
    torch.manual_seed(config.train.seed + world.rank)  # each rank's dropout is its own
    trainer = Trainer(
        module=module,
        attention=chosen,
        optimizer=None,
        examples=fed.examples,
        rows=fed.rows,
        row_tokens=fed.row_tokens,
        world=world,
        clip=config.optimizer.clip,
        micro_batch=how.micro_batch,
        scale=step.scale_for(how.dtype),
        say=warn,
        checkpointed=how.checkpointed,
    )
    trainer.optimizer = adamw.build(trainer.parameters.items(), config.optimizer, how.form)
    return Alive(trainer, trainable.count, trainable.total)


def _take_over(whole: CausalLoss, path: Path) -> None:
    """Put a checkpoint's weights into a model that is not yet spread over ranks."""
    trained = {name: parameter for name, parameter in whole.named_parameters() if parameter.requires_grad}
    distributed.load_weights(trained, checkpoint.load(path).weights)


def compile_layers(model: nn.Module) -> None:
    """Compile each layer by itself: all are alike, so one compilation serves them all."""
    for layer in distributed.layers(model):
        layer.compile()


def is_compiler_error(error: Exception) -> bool:
    """Tell whether an error came from torch's compiler and not from what it compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))


def uncompile(model: nn.Module) -> None:
    """Run each layer as it is written again."""
    torch._dynamo.reset()
    for layer in distributed.layers(model):
        layer._compiled_call_impl = None


# ---- to and from a checkpoint


def state(trainer: Trainer, number: int, facts: dict[str, Any]) -> State:
    """Return all that resuming exactly needs; every rank calls it."""
    world = trainer.world
    scale = {"scale": trainer.scale.value, "good": trainer.scale.good}
    kept = "none" if not trainer.checkpointed else "full" if trainer.all_checkpointed else "auto"
    return State(
        step=number,
        weights=dict(trainer.parameters),
        optimizer=trainer.optimizer.state_dict(),
        rng=tuple(distributed.gather(step.random_state(world), world)),
        facts={**facts, **scale, "micro_batch": trainer.micro_batch, "checkpointing": kept},
    )


def restore(trainer: Trainer, loaded: Loaded) -> int:
    """Put a checkpoint's state into what trains; return its step. Raises CheckpointError where it cannot go on."""
    found, world = loaded.state, trainer.world
    distributed.load_weights(trainer.parameters, found.weights)
    trainer.optimizer.load_state_dict(found.optimizer)
    trainer.scale.value, trainer.scale.good = found.facts["scale"], found.facts["good"]
    if found.rng:
        step.set_random_state(dict(found.rng[world.rank % len(found.rng)]), world)
    return found.step
