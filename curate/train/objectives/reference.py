"""The reference for pairs: log-probabilities of their answers before the first step, computed once and stored.

They are stored in the run's folder with a checksum and a key for the model and examples they belong to. A resumed run
reads them back instead of recomputing them, since another micro-batch size would round differently. A damaged file, or
one for other examples or another model, is never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import nn

from curate import files
from curate.train import distributed
from curate.train.distributed import World
from curate.train.examples import Examples
from curate.train.run.events import Reporter

FILE = "reference.safetensors"
SAMPLED = 4096  # elements of each weight that a fingerprint reads


@dataclass(frozen=True)
class Reference:
    """The log-probability of each example under the reference, in nats: fp64 [examples]."""

    train: NDArray[np.float64]
    eval: NDArray[np.float64]


def load_or_compute(
    folder: Path, key_: str, compute: Callable[[], Reference], world: World, reporter: Reporter
) -> Reference:
    """Return the reference of a run, read from its folder or computed and written there. Collective."""
    found = None
    if world.main:
        try:
            found = read(folder, key_)
        except FileNotFoundError:
            pass
        except UnusableReference as reason:
            reporter.warn(f"{str(folder / FILE)!r} is not used: {reason}; the reference is computed again")
    found = distributed.broadcast(found, world)
    if found is None:
        reporter.say("computing the reference: what the model makes of all pairs before the first step")
        found = compute()
        if world.main:
            write(folder, found, key_)
    return found


class UnusableReference(Exception):
    """The file cannot be used; the message says why."""


def fingerprint(model: nn.Module) -> str:
    """Return a hash over names, shapes and evenly spaced elements of all weights."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // SAMPLED)].contiguous().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def key(model: str, train: Examples, held_out: Examples) -> str:
    """Return the key of a reference: a hash of the model's fingerprint and of the examples."""
    digest = hashlib.sha256(model.encode())
    for examples in (train, held_out):
        for array in (examples.offsets, examples.ids, examples.loss_mask):
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write(folder: Path, reference: Reference, key_: str) -> None:
    """Write the file of a run's folder, whole or not at all."""
    metadata = {"key": key_, "sha256": _checksum(reference)}
    with files.replacing(folder / FILE) as partial:
        save_file({"train": reference.train, "eval": reference.eval}, partial, metadata)


def read(folder: Path, key_: str) -> Reference:
    """Read the file of a run's folder; raises FileNotFoundError without one, UnusableReference for any other reason."""
    path = folder / FILE
    files.check_replaceable(path)
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            reference = Reference(file.get_tensor("train"), file.get_tensor("eval"))
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UnusableReference("it is damaged") from error
    if metadata.get("sha256") != _checksum(reference):
        raise UnusableReference("it is damaged")
    if metadata.get("key") != key_:
        raise UnusableReference("it belongs to another model or other examples")
    return reference


def _checksum(reference: Reference) -> str:
    digest = hashlib.sha256()
    for array in (reference.train, reference.eval):
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
