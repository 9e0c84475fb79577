"""Ranks: who this process is among those that torchrun started, what they share, and how a model is spread over them.

Adapters are trained with DistributedDataParallel, every weight with FSDP2's fully_shard. One process needs none of it,
and every function here then returns what it was given. Several machines go by the same path: torchrun's environment
says who is who.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from curate.errors import CurateError

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a checkpoint of 94 GB is written by rank 0 alone while the others wait


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, `local_rank` on its machine, and the device it works on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0


def start(device: str | None = None, environment: Mapping[str, str] = os.environ) -> World:
    """Join the ranks that torchrun's environment names, or be the only one.

    `device` is `cpu` or `cuda`, by default CUDA where there is one. Raises CurateError where the environment is broken.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rank, size, local = (_number(environment, key, default) for key, default in _PLACES.items())
    if kind == "cuda":
        if not torch.cuda.device_count():
            raise CurateError("torch sees no CUDA GPU here: curate doctor tells why; --device cpu trains without one")
        if local >= torch.cuda.device_count():
            raise CurateError(
                f"rank {rank} wants GPU {local}, of which there are {torch.cuda.device_count()}; "
                f"start torchrun with --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local)
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if size > 1 and not ranks.is_initialized():
        backend, identity = ("nccl", place) if kind == "cuda" else ("gloo", None)
        try:
            ranks.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, device_id=identity)
        except ValueError as error:  # torch names the variable that is missing
            raise CurateError(f"WORLD_SIZE is {size}, but {error}; start several processes with torchrun") from None
    return World(rank, size, local, place)


_PLACES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def _number(environment: Mapping[str, str], key: str, default: int) -> int:
    value = environment.get(key, str(default))
    if not value.isdigit():
        raise CurateError(f"{key} = {value!r} is no number; start several processes with torchrun")
    return int(value)


def joined() -> bool:
    """Tell whether this process has joined other ranks."""
    return ranks.is_available() and ranks.is_initialized()


def finish() -> None:
    """Leave the other ranks."""
    if joined():
        ranks.destroy_process_group()


# ---- what all must know


def broadcast(value: T, world: World) -> T:
    """Return rank 0's value on every rank."""
    if world.size == 1:
        return value
    box = [value]
    ranks.broadcast_object_list(box, src=0, device=world.device)
    return box[0]


def gather(value: T, world: World) -> list[T]:
    """Return every rank's value on every rank, in order of rank."""
    if world.size == 1:
        return [value]
    found: list[Any] = [None] * world.size
    ranks.all_gather_object(found, value)
    return found


def total(values: Sequence[float], world: World) -> list[float]:
    """Return the sums of numbers over all ranks."""
    if world.size == 1:
        return list(values)
    kind = torch.float32 if world.device.type == "mps" else torch.float64
    sums = torch.tensor(values, dtype=kind, device=world.device)
    ranks.all_reduce(sums)
    return [float(value) for value in sums]


def any_rank(flag: bool, world: World) -> bool:
    """Return whether a thing is so on any rank."""
    return total([float(flag)], world)[0] > 0


# ---- rows


def shares(rows: Sequence[T], micro_batch: int, world: World) -> list[list[T]]:
    """Return this rank's micro-batches of a step's rows: as many on every rank, the last ones maybe short or empty."""
    stride = micro_batch * world.size
    starts = range(world.rank * micro_batch, world.rank * micro_batch + len(rows) + stride, stride)
    count = -(-len(rows) // stride)
    return [list(rows[start : start + micro_batch]) for start in starts[:count]]


# ---- the model


def wrap_model(module: nn.Module, world: World, *, shard: bool) -> nn.Module:
    """Return the module ready for several ranks: sharded by layer in place (`shard`), else wrapped for DDP."""
    if world.size == 1:
        return module
    if not shard:
        where = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=where, gradient_as_bucket_view=True)
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Gradients are summed over ranks in fp32, whatever the weights are.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in layers(module):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    return module


def layers(module: nn.Module) -> list[nn.Module]:
    """Return the model's transformer layers: the longest list of modules in it."""
    lists = [list(part) for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=[])


def inner(module: nn.Module) -> nn.Module:
    """Return the module without DDP around it."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextmanager
def accumulating(module: nn.Module, last: bool) -> Iterator[None]:
    """Hold back the exchange of DDP's gradients until a step's last micro-batch; FSDP2 sums shards each time."""
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def is_sharded(module: nn.Module) -> bool:
    """Return whether the module's parameters are spread over the ranks."""
    return isinstance(module, FSDPModule)


# ---- states that were saved whole


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor on the device of another, cut as that one is cut over the ranks."""
    if isinstance(like, DTensor):
        there = tensor.to(like.device)
        return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device)


def load_weights(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into the parameters of the same names; raises CurateError where the names differ."""
    if missing := sorted(set(parameters) ^ set(saved)):
        raise CurateError(f"the checkpoint holds other parameters than this run trains, {missing[0]!r} for one")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != saved[name].shape:
                found, wanted = tuple(saved[name].shape), tuple(parameter.shape)
                raise CurateError(f"the checkpoint's {name} has shape {found}, this run's {wanted}")
            parameter.copy_(shard_like(saved[name], parameter))
