"""Distributed training: the ranks that torchrun started, what they exchange, and how a model is distributed over them.

Adapters are trained with DistributedDataParallel (DDP); full fine-tuning shards all weights with FSDP2's `fully_shard`.
With a single process, the exchanging functions return their argument. Several machines need nothing else: torchrun
numbers the ranks across them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
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
# The other ranks wait while rank 0 writes a checkpoint: 94 GB for 7B parameters.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process among all ranks."""

    rank: int  # from 0
    size: int  # number of ranks
    local_rank: int  # from 0 on each machine; also the number of the GPU
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this rank writes files and reports events: rank 0."""
        return self.rank == 0


def start(device: str | None = None, environment: Mapping[str, str] = os.environ) -> World:
    """Join the process group of torchrun's environment; without one, this process is the only rank.

    `device` is `cpu` or `cuda`, by default CUDA if there is a GPU. Raises CurateError if the environment is incomplete,
    or there is no GPU for this rank.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rank, size, local = (_number(environment, key, default) for key, default in _RANK_VARIABLES.items())
    if kind == "cuda":
        if not torch.cuda.device_count():
            raise CurateError("torch finds no CUDA GPU; curate doctor shows why, and --device cpu trains without one")
        if local >= torch.cuda.device_count():
            raise CurateError(
                f"rank {rank} needs GPU {local}, but this machine has {torch.cuda.device_count()}; "
                f"start torchrun with --nproc-per-node {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local)
    own_device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if size > 1 and not ranks.is_initialized():
        backend, identity = ("nccl", own_device) if kind == "cuda" else ("gloo", None)
        try:
            ranks.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, device_id=identity)
        except ValueError as error:  # torch names the variable that is missing
            raise CurateError(f"WORLD_SIZE is {size}, but {error}; start several processes with torchrun") from None
        except RuntimeError as error:  # the rendezvous, or NCCL
            cause = str(error).strip().splitlines()[0]
            raise CurateError(
                f"the {size} processes cannot connect ({backend}): {cause}; check MASTER_ADDR and MASTER_PORT"
            ) from None
    return World(rank, size, local, own_device)


_RANK_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # set by torchrun; defaults for one process


def _number(environment: Mapping[str, str], key: str, default: int) -> int:
    value = environment.get(key, str(default))
    if not value.isdigit():
        raise CurateError(
            f"the environment variable {key} = {value!r} is not a number; start several processes with torchrun"
        )
    return int(value)


def tell_torchrun(message: str, environment: Mapping[str, str] = os.environ) -> None:
    """Leave the message of an error where torchrun looks for it: its own report, printed last, then quotes it.

    The format is that of torch.distributed.elastic.multiprocessing.errors.
    """
    if file := environment.get("TORCHELASTIC_ERROR_FILE"):
        error = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": error}), "utf-8")


def is_initialized() -> bool:
    """Return whether this process has joined other ranks."""
    return ranks.is_available() and ranks.is_initialized()


def finish() -> None:
    """Leave the process group, if this process has joined one."""
    if is_initialized():
        ranks.destroy_process_group()


# ---- exchange. Collective: every rank must make the same calls in the same order


def broadcast(value: T, world: World) -> T:
    """Return rank 0's value on every rank; values are pickled."""
    if world.size == 1:
        return value
    values = [value]
    ranks.broadcast_object_list(values, src=0, device=world.device)  # overwrites the list
    return values[0]


def gather(value: T, world: World) -> list[T]:
    """Return the values of all ranks, in order of rank, on every rank; values are pickled."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    ranks.all_gather_object(values, value)
    return values


def total(values: Sequence[float], world: World) -> list[float]:
    """Return the sum of each number over all ranks, on every rank."""
    if world.size == 1:
        return list(values)
    dtype = torch.float32 if world.device.type == "mps" else torch.float64  # MPS has no fp64
    sums = torch.tensor(values, dtype=dtype, device=world.device)
    ranks.all_reduce(sums)
    return [float(value) for value in sums]


def any_rank(flag: bool, world: World) -> bool:
    """Return whether the flag is set on any rank; all ranks get the same answer."""
    return total([float(flag)], world)[0] > 0


# ---- rows


def shares(rows: Sequence[T], micro_batch: int, world: World) -> list[list[T]]:
    """Return this rank's micro-batches of a step's packed rows.

    All ranks get the same number of micro-batches, because each pass may exchange data; the last may be short or
    empty. Rows are dealt out by micro-batch: 0 to rank 0, 1 to rank 1, and so on.
    """
    stride = micro_batch * world.size  # rows of one micro-batch on each rank
    starts = range(world.rank * micro_batch, world.rank * micro_batch + len(rows) + stride, stride)
    count = -(-len(rows) // stride)  # rounded up
    return [list(rows[start : start + micro_batch]) for start in starts[:count]]


# ---- the model


def wrap_model(module: nn.Module, world: World, *, shard: bool) -> nn.Module:
    """Prepare a module for several ranks: shard it by layer in place (`shard`), or wrap it in DDP."""
    if world.size == 1:
        return module
    if not shard:
        where = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=where, gradient_as_bucket_view=True)
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Gradients of any dtype are summed over the ranks in fp32.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in layers(module):  # each by itself, so that only one or two layers are gathered at a time
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)  # what is in no layer: embeddings, norm and head
    return module


def layers(module: nn.Module) -> list[nn.Module]:
    """Return the model's transformer layers: its longest ModuleList."""
    lists = [list(part) for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=[])


def inner(module: nn.Module) -> nn.Module:
    """Return the module without DDP's wrapper."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextmanager
def accumulate(module: nn.Module, last: bool) -> Iterator[None]:
    """Skip the exchange of gradients except in the last micro-batch of a step (DDP).

    FSDP2 reduces every time: to skip it, each rank would have to hold unsharded gradients.
    """
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def is_sharded(module: nn.Module) -> bool:
    """Return whether the module's parameters are sharded over the ranks."""
    return isinstance(module, FSDPModule)


# ---- loading whole tensors


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, sharded over the ranks and on the device like another one."""
    if isinstance(like, DTensor):
        # src_data_rank=None: every rank has read the whole tensor, so none is sent
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device)


def load_weights(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into the parameters of the same names; raises CurateError if names or shapes differ."""
    if different := sorted(set(parameters) ^ set(saved)):
        raise CurateError(f"the checkpoint has different parameters from this run, such as {different[0]!r}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != saved[name].shape:
                theirs, ours = tuple(saved[name].shape), tuple(parameter.shape)
                raise CurateError(f"the checkpoint's {name} has shape {theirs}, this run's has {ours}")
            parameter.copy_(shard_like(saved[name], parameter))
