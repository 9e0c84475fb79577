"""The tensors of weight files: names, types, shapes and values, read from their headers without loading a file."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from curate.errors import ModelError
from curate.settings import decode_json

MAX_HEADER = 100_000_000  # bytes of a safetensors header, the library's own limit
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class Entry:
    """A tensor in the header of a safetensors file; `data_offsets` count from the end of the header, in bytes."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


@dataclass(frozen=True)
class Values:
    """A tensor on disk; `read` returns at most `count` values as stored, from a position in row-major order."""

    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]


def read_header(file: Path) -> tuple[dict[str, Entry], int]:
    """Return the tensors of a safetensors file by name, and where their bytes start in the file.

    The format: 8 bytes with the header's length, little-endian, the header as JSON, then the tensors
    (https://huggingface.co/docs/safetensors). Raises ValueError for a header that is damaged or does not fit the file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(size - 8, MAX_HEADER):
            raise ValueError("it has no header")
        try:
            header = json.loads(stream.read(length))
        except RecursionError:
            raise ValueError("its header is nested too deeply") from None
    entries = decode_json(dict[str, Entry], {key: value for key, value in _items(header) if key != "__metadata__"})
    for name, entry in entries.items():
        _check_entry(name, entry)
    return entries, 8 + length


def _items(header: object) -> Iterable[tuple[str, Any]]:
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header.items()


def _check_entry(name: str, entry: Entry) -> None:
    """Raise ValueError unless the bytes of a tensor are as many as its shape says."""
    if len(entry.data_offsets) != 2 or entry.data_offsets[0] > entry.data_offsets[1]:
        raise ValueError(f"{name!r} has the offsets {entry.data_offsets}")
    size = entry.data_offsets[1] - entry.data_offsets[0]
    if entry.dtype in _BYTES and size != math.prod(entry.shape) * _BYTES[entry.dtype]:
        raise ValueError(f"{name!r} has {size:,} bytes, which do not fit its shape {entry.shape}")


def stored(files: Iterable[Path], stack: ExitStack) -> Iterator[tuple[str, Values]]:
    """Yield the tensors of weight files by name; the files stay open until `stack` closes.

    Raises ModelError for a damaged file, or a .bin file that is not of tensors alone.
    """
    for file in files:
        yield from _safetensors(file, stack) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path, stack: ExitStack) -> Iterator[tuple[str, Values]]:
    try:
        entries, data = read_header(file)
        stream = stack.enter_context(file.open("rb"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(file)!r} is damaged ({error}); download it again") from None
    for name, entry in entries.items():
        yield name, Values(tuple(entry.shape), _reader(stream, entry, data))


def _reader(stream: BinaryIO, entry: Entry, data_start: int) -> Callable[[int, int], Tensor]:
    dtype = FLOATS.get(entry.dtype, torch.uint8)  # other types as bytes
    first, end = entry.data_offsets

    def read(position: int, count: int) -> Tensor:
        start = first + position * dtype.itemsize
        data = os.pread(stream.fileno(), min(count * dtype.itemsize, end - start), data_start + start)
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)

    return read


def _pickled(file: Path) -> Iterator[tuple[str, Values]]:
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped into memory
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        raise ModelError(f"{str(file)!r} contains code, or is damaged; give a model with safetensors") from None
    for name, tensor in state.items() if isinstance(state, dict) else ():
        if isinstance(tensor, Tensor):
            yield str(name), Values(tuple(tensor.shape), _slicer(tensor))


def _slicer(tensor: Tensor) -> Callable[[int, int], Tensor]:
    flat = tensor.detach().reshape(-1)
    flat = flat if tensor.dtype in FLOATS.values() else flat.view(torch.uint8)
    return lambda position, count: flat[position : position + count].clone()
