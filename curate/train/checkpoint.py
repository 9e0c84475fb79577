"""Checkpoints: the state of a run on disk, written whole or not at all, with checksums; only the newest few are kept.

    checkpoints/step-000120/
      weights-00001.safetensors …     the trained parameters, unsharded
      optimizer-00001.safetensors …   the optimizer's tensors, unsharded; deleted if only weights are kept
      rng.safetensors                 random states, one set for each rank; deleted if only weights are kept
      state.json                      step, facts of the run, and the structure of the optimizer's state
      manifest.json                   size and SHA-256 of each file; written last

Nothing is pickled, so that reading a checkpoint runs no code from it. Tensors that are sharded over ranks are gathered
one at a time, so that a checkpoint loads at another number of ranks. Only rank 0 writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
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
from curate.errors import CheckpointError, UnsafePathError
from curate.settings import decode_json
from curate.train.run.folder import CHECKPOINTS

FORMAT = 1  # of a checkpoint; one with another number is refused
MANIFEST, STATE = "manifest.json", "state.json"
WEIGHTS, OPTIMIZER, RNG = "weights", "optimizer", "rng"
SHARD = 4 << 30  # bytes of tensors in one file, at most; a larger tensor has a file of its own
DTYPES = {  # their names in the safetensors format
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

# The names that a manifest may list.
FILE_NAME = re.compile(r"(?:weights|optimizer)-[0-9]{5,}\.safetensors|rng\.safetensors|state\.json")
CHECKPOINT_NAME = re.compile(r"step-[0-9]+")
UNREADABLE = (OSError, ValueError, RecursionError, UnsafePathError)  # of JSON in a file of curate's own

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class State:
    """The state of a run after a step. Tensors may be sharded when it is saved, and are whole when it is read."""

    step: int  # steps that are done
    weights: Tensors  # the trained parameters by name
    optimizer: Any = None  # nested dicts, lists, tuples, tensors and plain values; None if only weights were kept
    rng: tuple[Tensors, ...] = ()  # random states of each rank, by device kind
    facts: Mapping[str, Any] = field(default_factory=dict)  # what else the run needs, as JSON


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint, in its manifest."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says; `full`: with the optimizer and random states, not the weights alone."""

    format: int
    step: int
    full: bool
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class StateFile:
    """What `state.json` says; `optimizer` is the skeleton of `_split`."""

    step: int
    facts: dict[str, Any]
    optimizer: Any = None


@dataclass(frozen=True)
class Loaded:
    """A state that was read from a checkpoint."""

    state: State
    path: Path
    warnings: tuple[str, ...]  # about newer checkpoints, which are damaged


def save(run: Path, state: State, *, keep: int = 2, full_states: int = 1, writes: bool = True) -> Path:
    """Write a checkpoint whole or not at all, then delete older ones; return its path.

    The newest `keep` checkpoints are kept, and the newest `full_states` of those with everything that resuming needs.
    Collective: every rank must call this, because sharded tensors are gathered; only the one with `writes` touches the
    disk. Raises CheckpointError if the disk is full or fails; earlier checkpoints are then unchanged.
    """
    final = run / CHECKPOINTS / f"step-{state.step:06}"
    try:
        with files.replacing(final, folder=True, sync=True) if writes else nullcontext(final) as folder:
            if writes:
                folder.mkdir(parents=True)
            written = _write(folder, state, writes)
            if writes:
                _write_json(folder / MANIFEST, asdict(Manifest(FORMAT, state.step, True, written)))
        if writes:
            _thin_out(run, state.step, keep, full_states)
    except OSError as error:
        raise CheckpointError(_disk_message(final, error)) from error
    return final


def checkpoints(run: Path) -> list[Path]:
    """Return a run's checkpoints, the newest first; they may be damaged.

    Links are ignored. Raises UnsafePathError if the folder of the checkpoints is a link.
    """
    folder = run / CHECKPOINTS
    files.refuse_links(folder)
    paths = [path for path in folder.glob("step-*") if CHECKPOINT_NAME.fullmatch(path.name) and not path.is_symlink()]
    return sorted(paths, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name[5:])  # step-000120


def load_latest(run: Path, check: Callable[[Mapping[str, Any]], object] = dict) -> Loaded | None:
    """Return the newest complete checkpoint, None if there is no checkpoint at all.

    `check` raises ValueError for facts that are damaged. Damaged checkpoints are skipped and named in `warnings`.
    Raises CheckpointError if all of them are damaged.
    """
    warnings: list[str] = []
    for path in checkpoints(run):
        try:
            return Loaded(_load_checked(path, check), path, tuple(warnings))
        except CheckpointError as error:
            warnings.append(f"{error}; it is skipped")
    if warnings:
        raise CheckpointError(f"no checkpoint in {str(run / CHECKPOINTS)!r} is intact: {warnings[0]}")
    return None


def _load_checked(path: Path, check: Callable[[Mapping[str, Any]], object]) -> State:
    state = load(path)
    try:
        check(state.facts)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} is damaged: in the facts of its state, {error}") from error
    return state


def load(path: Path) -> State:
    """Read one checkpoint onto the CPU; raises CheckpointError if a file is missing or its checksum differs."""
    manifest = verify(path)
    try:
        values = decode_json(StateFile, json.loads(_read_bytes(path / STATE)))
        if values.step != manifest.step:
            raise ValueError(f"{STATE} is of step {values.step}, not {manifest.step}")
        names = sorted(manifest.files)
        weights, optimizer, rng = (_read(path, names, kind) for kind in (WEIGHTS, OPTIMIZER, RNG))
        state = State(
            step=values.step,
            weights=weights,
            optimizer=_join(values.optimizer, optimizer) if manifest.full else None,
            rng=_by_rank(rng),
            facts=values.facts,
        )
    except (*UNREADABLE, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {error}") from error
    return state


def verify(path: Path) -> Manifest:
    """Return a checkpoint's manifest after checking every file against it; raises CheckpointError if one differs."""
    try:
        manifest = _read_manifest(path)
        for name, entry in manifest.files.items():
            with files.open_own(path / name) as file:
                size = os.fstat(file.fileno()).st_size
                if size != entry.bytes:  # first, because it needs no read of the file
                    raise ValueError(f"{name} has {size} bytes, not {entry.bytes}")
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    raise ValueError(f"the SHA-256 of {name} is wrong")
    except UNREADABLE as error:
        raise CheckpointError(f"checkpoint {str(path)!r} is damaged: {error}") from error
    return manifest


def _read_manifest(path: Path) -> Manifest:
    """Read a checkpoint's manifest; raises one of UNREADABLE, for instance if it names a file outside the folder."""
    manifest = decode_json(Manifest, json.loads(_read_bytes(path / MANIFEST)))
    if manifest.format != FORMAT:
        raise ValueError(f"its format is {manifest.format}, not {FORMAT}")
    if STATE not in manifest.files:
        raise ValueError(f"its manifest has no checksum of {STATE}")
    for name in manifest.files:
        if not FILE_NAME.fullmatch(name):
            raise ValueError(f"its manifest names {name!r}, which is no file of a checkpoint")
    return manifest


def _read_bytes(path: Path) -> bytes:
    with files.open_own(path) as file:
        return file.read()


def state_bytes(state: State) -> int:
    """Return the bytes that a state takes on disk, except for the JSON files; sharded tensors count as a whole."""
    tensors: dict[str, Tensor] = {}
    _split(state.optimizer, OPTIMIZER, tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in [*state.weights.values(), *tensors.values()])


# ---- writing


def _write(folder: Path, state: State, writes: bool) -> dict[str, FileEntry]:
    """Write all files except the manifest; return the size and checksum of each by name.

    Collective: every rank gathers the same tensors in the same order.
    """
    optimizer: dict[str, Tensor] = {}
    skeleton = _split(state.optimizer, OPTIMIZER, optimizer)
    rng = {f"{rank}.{name}": tensor for rank, states in enumerate(state.rng) for name, tensor in states.items()}
    written: dict[str, FileEntry] = {}
    failure: OSError | None = None
    for kind, tensors in (WEIGHTS, state.weights), (OPTIMIZER, optimizer), (RNG, rng):
        for number, shard in enumerate(_shards(tensors), 1):
            path = folder / (f"{kind}.safetensors" if kind == RNG else f"{kind}-{number:05}.safetensors")
            try:
                written |= _write_tensors(path, shard, writes and failure is None)
            except OSError as error:  # the other ranks wait in the next gather: continue without writing
                failure = error
    if failure is not None:
        raise failure
    if writes:
        written |= _write_json(folder / STATE, asdict(StateFile(state.step, dict(state.facts), skeleton)))
    return written


def _shards(tensors: Tensors) -> Iterator[dict[str, Tensor]]:
    """Divide tensors into those of each file, in order; every rank gets the same division."""
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


def _write_tensors(path: Path, tensors: Tensors, writes: bool) -> dict[str, FileEntry]:
    """Write one file in the safetensors format, with one tensor at a time in memory; return its size and checksum.

    The writer of the safetensors library needs all tensors of a file on the CPU at once, and a checksum would need a
    second pass. Format: the header's length as 8 bytes, little-endian; the header as JSON; the tensors' bytes.
    Collective: without `writes`, tensors are only gathered.
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
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    gathered = map(_bytes, tensors.values())  # lazy
    try:
        return _write_chunks(path, chain([struct.pack("<Q", len(text)), text], gathered))
    finally:
        for _ in gathered:  # after a failure, gather the remaining tensors: the other ranks do
            pass


def _bytes(tensor: Tensor) -> memoryview:
    """Gather a tensor and return its bytes in row-major order."""
    flat = gather_tensor(tensor).detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def gather_tensor(tensor: Tensor) -> Tensor:
    """Return a whole tensor. Collective for a sharded one: every rank must call this, and gets it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _write_json(path: Path, values: object) -> dict[str, FileEntry]:
    return _write_chunks(path, [json.dumps(values, indent=1).encode()])


def _write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, FileEntry]:
    """Write a file; return its size and SHA-256 under its name."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
    return {path.name: FileEntry(size, digest.hexdigest())}


def _disk_message(final: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    free = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with suppress(OSError):
            free = f" ({gib(shutil.disk_usage(final.parent).free)} GiB free)"
    return f"checkpoint {str(final)!r} was not written: {reason}{free}; earlier ones are as they were"


# ---- deleting old checkpoints


def _thin_out(run: Path, step: int, keep: int, full_states: int) -> None:
    """Delete all but the newest `keep` checkpoints, and all but the weights of those after the first `full_states`.

    Checkpoints of later steps than the one just written are damaged, otherwise the run would have continued from them;
    they are deleted too.
    """
    later = [path for path in checkpoints(run) if _step_of(path) > step]
    for path in later:
        _remove(path)
    for index, path in enumerate(checkpoints(run)):
        if index >= keep:
            _remove(path)
        elif index >= full_states:
            _keep_weights(path)
    for partial in (run / CHECKPOINTS).glob(".step-*"):  # of a kill while writing or deleting
        files.remove(partial, run / CHECKPOINTS)


def _remove(path: Path) -> None:
    """Rename a checkpoint before deleting its files, so that a kill in between leaves no damaged checkpoint."""
    hidden = files.partial_name(path)
    files.remove(hidden, path.parent)
    path.rename(hidden)
    files.remove(hidden, path.parent)


def _keep_weights(path: Path) -> None:
    """Delete the files of a checkpoint that only resuming needs; a damaged checkpoint is left unchanged."""
    with suppress(*UNREADABLE):
        manifest = _read_manifest(path)
        if not manifest.full:
            return
        dropped = [name for name in manifest.files if name.startswith((OPTIMIZER, RNG))]
        kept = {name: entry for name, entry in manifest.files.items() if name not in dropped}
        # The manifest first: after a kill in between, it is still true of the files that it lists.
        with files.replacing(path / MANIFEST, sync=True) as partial:
            _write_json(partial, asdict(replace(manifest, full=False, files=kept)))
        for name in dropped:
            files.remove(path / name, path)


# ---- the optimizer's state as JSON and tensors


def _split(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move a tree's tensors into `tensors`, each under its path; return a skeleton as JSON that `_join` fills again.

    Raises TypeError for a type that JSON does not have.
    """
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):  # pairs, because the keys of a JSON object cannot be numbers
        return {"items": [[key, _split(value, f"{name}.{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        parts = [_split(value, f"{name}.{index}", tensors) for index, value in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": parts}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    raise TypeError(f"{name} holds a {type(tree).__name__}, which a checkpoint does not keep")


def _join(skeleton: Any, tensors: Tensors) -> Any:
    """Return the tree that `_split` took apart; raises KeyError, TypeError or ValueError for another skeleton."""
    match skeleton:
        case {"tensor": name}:
            return tensors[name]
        case {"items": pairs}:
            return {key: _join(item, tensors) for key, item in pairs}
        case {"list": parts}:
            return [_join(part, tensors) for part in parts]
        case {"tuple": parts}:
            return tuple(_join(part, tensors) for part in parts)
        case {"value": value}:
            return value
    raise ValueError(f"{str(skeleton)[:40]!r} is no part of an optimizer's state")


def _read(path: Path, names: list[str], kind: str) -> dict[str, Tensor]:
    """Return the tensors of one kind (WEIGHTS, OPTIMIZER or RNG) from all its files."""
    tensors: dict[str, Tensor] = {}
    for name in names:
        if name.startswith(kind) and name.endswith(".safetensors"):
            tensors |= load_file(path / name)
    return tensors


def _by_rank(rng: Tensors) -> tuple[dict[str, Tensor], ...]:
    """Return the random states of each rank, from names such as `0.cuda`."""
    ranks: dict[int, dict[str, Tensor]] = {}
    for key, tensor in rng.items():
        rank, _, name = key.partition(".")
        ranks.setdefault(int(rank), {})[name] = tensor
    return tuple(ranks[rank] for rank in sorted(ranks))
