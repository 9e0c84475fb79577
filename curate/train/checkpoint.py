"""Checkpoints: the state of a run on disk, written whole, with checksums; only the newest few are kept.

    checkpoints/step-000120/
      weights-00001.safetensors …     the parameters that are trained, whole, whatever the number of ranks
      optimizer-00001.safetensors …   the optimizer's tensors; gone where only weights are kept
      rng.safetensors                 random states, one set for each rank
      state.json                      step, facts of the run, and the shape of the optimizer's state
      manifest.json                   size and SHA-256 of each file; written last

Nothing is pickled. Tensors that are sharded over ranks are gathered one at a time, so that a checkpoint loads at
another world size; rank 0 alone writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from curate import files
from curate.display.figures import gib
from curate.errors import CheckpointError

FORMAT = 1
FOLDER = "checkpoints"
MANIFEST, STATE = "manifest.json", "state.json"
WEIGHTS, OPTIMIZER, RNG = "weights", "optimizer", "rng"
SHARD = 4 << 30  # bytes of tensors in one file
DTYPES = {  # names of the safetensors format
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class State:
    """The state of a run at a step. `optimizer` is any nesting of dicts, lists, tensors and plain values, or None.

    `rng` holds the random states of each rank, `facts` whatever else the run needs as JSON.
    """

    step: int
    weights: Tensors
    optimizer: Any = None
    rng: tuple[Tensors, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A state that was read, its path, and warnings about newer checkpoints that are damaged."""

    state: State
    path: Path
    warnings: tuple[str, ...]


def save(run: Path, state: State, *, keep: int = 2, full_states: int = 1, writes: bool = True) -> Path:
    """Write a checkpoint whole or not at all, then thin out the older ones.

    Every rank calls it, so that sharded tensors can be gathered; only the one with `writes` touches the disk.
    Raises CheckpointError where the disk is full or refuses; what stood before still stands.
    """
    final = run / FOLDER / f"step-{state.step:06}"
    try:
        with files.replacing(final, sync=True) if writes else nullcontext(final) as folder:
            if writes:
                folder.mkdir(parents=True)
            written = _write(folder, state, writes)
            if writes:
                _write_json(folder / MANIFEST, {"format": FORMAT, "step": state.step, "full": True, "files": written})
        if writes:
            _thin_out(run, state.step, keep, full_states)
    except OSError as error:
        raise CheckpointError(_why(final, error)) from error
    return final


def checkpoints(run: Path) -> list[Path]:
    """Return a run's checkpoints, the newest first."""
    folders = (run / FOLDER).glob("step-*") if (run / FOLDER).is_dir() else ()
    return sorted((folder for folder in folders if folder.name[5:].isdigit()), key=lambda path: -int(path.name[5:]))


def load_latest(run: Path) -> Loaded | None:
    """Return the newest complete checkpoint, or None; damaged ones are named in `warnings`."""
    warnings: list[str] = []
    for path in checkpoints(run):
        try:
            return Loaded(load(path), path, tuple(warnings))
        except CheckpointError as error:
            warnings.append(f"{error}; it is passed over")
    if warnings:
        raise CheckpointError(f"no checkpoint in {str(run / FOLDER)!r} is whole: {warnings[0]}")
    return None


def load(path: Path) -> State:
    """Read one checkpoint onto the CPU; raises CheckpointError where a file is missing or its checksum differs."""
    manifest = verify(path)
    try:
        values = json.loads((path / STATE).read_text("utf-8"))
        names = sorted(manifest["files"])
        weights, optimizer, rng = (_read(path, names, kind) for kind in (WEIGHTS, OPTIMIZER, RNG))
        state = State(
            step=values["step"],
            weights=weights,
            optimizer=_join(values["optimizer"], optimizer) if manifest["full"] else None,
            rng=_by_rank(rng),
            facts=values["facts"],
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {error}") from error
    return state


def verify(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest after checking every file against it."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"checkpoint {str(path)!r} has format {manifest['format']!r}, not {FORMAT}")
        for name, fact in manifest["files"].items():
            with (path / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != fact["bytes"]:
                    raise CheckpointError(
                        f"checkpoint {str(path)!r} is damaged: {name} has not its {fact['bytes']} bytes"
                    )
                if hashlib.file_digest(file, "sha256").hexdigest() != fact["sha256"]:
                    raise CheckpointError(f"checkpoint {str(path)!r} is damaged: {name} has another SHA-256")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {str(path)!r} is damaged: {error}") from error
    return manifest


def state_bytes(state: State) -> int:
    """Return the bytes that a state takes on disk, without the few kilobytes of JSON."""
    tensors: dict[str, Tensor] = {}
    _split(state.optimizer, OPTIMIZER, tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in [*state.weights.values(), *tensors.values()])


# ---- writing


def _write(folder: Path, state: State, writes: bool) -> dict[str, dict[str, object]]:
    """Write all files except the manifest; return the size and checksum of each."""
    optimizer: dict[str, Tensor] = {}
    skeleton = _split(state.optimizer, OPTIMIZER, optimizer)
    rng = {f"{rank}.{name}": tensor for rank, states in enumerate(state.rng) for name, tensor in states.items()}
    written: dict[str, dict[str, object]] = {}
    failure: OSError | None = None
    for kind, tensors in (WEIGHTS, state.weights), (OPTIMIZER, optimizer), (RNG, rng):
        for number, shard in enumerate(_shards(tensors), 1):
            path = folder / (f"{kind}.safetensors" if kind == RNG else f"{kind}-{number:05}.safetensors")
            try:
                written |= _write_tensors(path, shard, writes and failure is None)
            except OSError as error:  # the other ranks are still gathering: go on with them to the end
                failure = error
    if failure is not None:
        raise failure
    if writes:
        values = {"step": state.step, "facts": dict(state.facts), "optimizer": skeleton}
        written |= _write_json(folder / STATE, values)
    return written


def _shards(tensors: Tensors) -> Iterator[dict[str, Tensor]]:
    """Divide tensors into files of a few gigabytes each."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        if shard and size + nbytes > SHARD:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += nbytes
    if shard:
        yield shard


def _write_tensors(path: Path, tensors: Tensors, writes: bool) -> dict[str, dict[str, object]]:
    """Write one file in the safetensors format, tensor by tensor: one copy of one tensor in memory, hashed on the way.

    The library's own writer wants all of a file's tensors on the CPU at once, and a second pass for the checksum.
    """
    if not writes:
        for tensor in tensors.values():
            gather_tensor(tensor)
        return {}
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    gathered = map(_bytes, tensors.values())
    try:
        return _write_chunks(path, chain([struct.pack("<Q", len(text)), text], gathered))
    finally:
        for _ in gathered:  # after a failure, what the other ranks still gather
            pass


def _bytes(tensor: Tensor) -> memoryview:
    flat = gather_tensor(tensor).detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def gather_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor with all its parts; every rank must call it for one that is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _write_json(path: Path, values: object) -> dict[str, dict[str, object]]:
    return _write_chunks(path, [json.dumps(values, indent=1).encode()])


def _write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, dict[str, object]]:
    """Write a file; return its size and SHA-256 under its name."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
    return {path.name: {"bytes": size, "sha256": digest.hexdigest()}}


def _why(final: Path, error: OSError) -> str:
    said = error.strerror or str(error)
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with suppress(OSError):
            room = f" ({gib(shutil.disk_usage(final.parent).free)} GiB free)"
    return f"checkpoint {str(final)!r} was not written: {said}{room}; earlier ones are as they were"


# ---- thinning out


def _thin_out(run: Path, step: int, keep: int, full_states: int) -> None:
    """Remove checkpoints older than the last `keep`, and keep only the weights of those older than `full_states`.

    One of a later step than that just written is damaged, else the run would have gone on from it: it goes too.
    """
    later = [path for path in checkpoints(run) if int(path.name[5:]) > step]
    for path in later:
        _remove(path)
    for place, path in enumerate(checkpoints(run)):
        if place >= keep:
            _remove(path)
        elif place >= full_states:
            _keep_weights(path)
    for left in (run / FOLDER).glob(".step-*"):
        files.remove(left)


def _remove(path: Path) -> None:
    """Rename a checkpoint before removing its files, so that a kill in between leaves no damaged checkpoint."""
    hidden = files.partial_name(path)
    files.remove(hidden)
    path.rename(hidden)
    files.remove(hidden)


def _keep_weights(path: Path) -> None:
    with suppress(OSError, ValueError, KeyError):  # a damaged one stays as it is, and is named when it is read
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        if not manifest["full"]:
            return
        gone = [name for name in manifest["files"] if name.startswith((OPTIMIZER, RNG))]
        manifest |= {"full": False, "files": {name: f for name, f in manifest["files"].items() if name not in gone}}
        with files.replacing(path / MANIFEST, sync=True) as partial:
            _write_json(partial, manifest)
        for name in gone:
            (path / name).unlink(missing_ok=True)


# ---- the optimizer's state as plain values and tensors


def _split(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move a tree's tensors into `tensors`, each under its path; return the rest as JSON."""
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):  # as pairs: keys may be numbers
        return {"items": [[key, _split(value, f"{name}.{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        parts = [_split(value, f"{name}.{place}", tensors) for place, value in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": parts}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    raise TypeError(f"{name} holds a {type(tree).__name__}, which a checkpoint does not keep")


def _join(skeleton: Any, tensors: Tensors) -> Any:
    (kind, value), *_ = skeleton.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "items":
        return {key: _join(item, tensors) for key, item in value}
    if kind in ("list", "tuple"):
        parts = [_join(item, tensors) for item in value]
        return tuple(parts) if kind == "tuple" else parts
    return value


def _read(path: Path, names: list[str], kind: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in names:
        if name.startswith(kind) and name.endswith(".safetensors"):
            found |= load_file(path / name)
    return found


def _by_rank(rng: Tensors) -> tuple[dict[str, Tensor], ...]:
    ranks: dict[int, dict[str, Tensor]] = {}
    for key, tensor in rng.items():
        rank, _, name = key.partition(".")
        ranks.setdefault(int(rank), {})[name] = tensor
    return tuple(ranks[rank] for rank in sorted(ranks))
