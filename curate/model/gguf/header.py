"""The header of a GGUF file: its metadata and the place of each tensor, checked against the file's size.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files come from others, so every length is
checked before anything of that length is read.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from curate.errors import ModelError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # version 1 counted in 32 bits
_MAX_KEYS, _MAX_TENSORS, _MAX_ITEMS = 10_000, 1_000_000, 4_000_000  # a thousand times what models have, or ten
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_SAMPLE = 4096  # bytes of each tensor that the digest covers
# Metadata types of a fixed size, as struct's formats; 8 is a string, 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class Encoding(NamedTuple):
    """How a tensor's values are stored: blocks of some values in some bytes."""

    name: str
    values: int
    bytes: int


ENCODINGS = {  # by number (enum ggml_type in ggml.h)
    0: Encoding("F32", 1, 4),
    1: Encoding("F16", 1, 2),
    2: Encoding("Q4_0", 32, 18),
    3: Encoding("Q4_1", 32, 20),
    6: Encoding("Q5_0", 32, 22),
    7: Encoding("Q5_1", 32, 24),
    8: Encoding("Q8_0", 32, 34),
    10: Encoding("Q2_K", 256, 84),
    11: Encoding("Q3_K", 256, 110),
    12: Encoding("Q4_K", 256, 144),
    13: Encoding("Q5_K", 256, 176),
    14: Encoding("Q6_K", 256, 210),
    16: Encoding("IQ2_XXS", 256, 66),
    17: Encoding("IQ2_XS", 256, 74),
    18: Encoding("IQ3_XXS", 256, 98),
    19: Encoding("IQ1_S", 256, 50),
    20: Encoding("IQ4_NL", 32, 18),
    21: Encoding("IQ3_S", 256, 110),
    22: Encoding("IQ2_S", 256, 82),
    23: Encoding("IQ4_XS", 256, 136),
    29: Encoding("IQ1_M", 256, 56),
    30: Encoding("BF16", 1, 2),
    34: Encoding("TQ1_0", 256, 54),
    35: Encoding("TQ2_0", 256, 66),
    39: Encoding("MXFP4", 32, 17),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in the file."""

    name: str
    shape: tuple[int, ...]  # in torch's order, the reverse of the file's
    type: int  # key of ENCODINGS
    start: int  # bytes from the beginning of the file
    bytes: int

    @property
    def encoding(self) -> Encoding:
        """How its values are stored."""
        return ENCODINGS[self.type]


@dataclass(frozen=True)
class Header:
    """Everything in a GGUF file but the tensors' values."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    digest: str  # SHA-256 of the header and of the beginning of each tensor: tells models of one shape apart

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as `llama`, which also begins the names of its settings."""
        return str(self.metadata.get("general.architecture"))

    @property
    def encodings(self) -> list[str]:
        """The encodings of the matrices, the most frequent first; norms and biases are in fp32 in every file."""
        names = [tensor.encoding.name for tensor in self.tensors.values() if len(tensor.shape) > 1]
        return sorted(set(names), key=lambda name: (-names.count(name), name))

    def read(self, tensor: TensorInfo, most: int | None = None) -> bytearray:
        """Return the stored bytes of a tensor, at most the first `most`."""
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            return bytearray(file.read(tensor.bytes if most is None else min(most, tensor.bytes)))

    def weights_hash(self) -> str:
        """Return a SHA-256 of the weights alone: names, shapes, encodings and the beginning of each tensor."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}\0{tensor.shape}\0{tensor.encoding.name}\0".encode())
            digest.update(self.read(tensor, _SAMPLE))
        return digest.hexdigest()


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file; raises ModelError for one that is damaged, incomplete or of another kind."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError:  # of mmap
        raise ModelError(f"{str(path)!r} is empty; download it again") from None


def _parse(path: Path, data: mmap.mmap) -> Header:
    cursor = _Cursor(data, path)
    cursor.check_magic()
    tensors, keys = cursor.count("tensors", _MAX_TENSORS), cursor.count("settings", _MAX_KEYS)
    metadata = dict(cursor.setting() for _ in range(keys))
    entries = [cursor.tensor() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment not in (1 << power for power in range(21)):
        raise cursor.damaged(f"general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    placed = [cursor.place(name, shape, encoding, start + offset) for name, shape, encoding, offset in entries]
    if len({tensor.name for tensor in placed}) < len(placed):
        raise cursor.damaged("two tensors have one name")
    digest = hashlib.sha256(data[: cursor.at])
    for tensor in placed:
        digest.update(data[tensor.start : tensor.start + min(tensor.bytes, _SAMPLE)])
    return Header(path, metadata, {tensor.name: tensor for tensor in placed}, digest.hexdigest())


class _Cursor:
    """Reads a header from its beginning; raises ModelError where the file ends too early or a length is absurd."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def damaged(self, why: str) -> ModelError:
        return ModelError(f"{str(self.path)!r} is damaged, or not a whole GGUF file: {why}; download it again")

    def check_magic(self) -> None:
        if self.data[:4] != MAGIC:
            raise ModelError(f"{str(self.path)!r} does not begin like a GGUF file; download it again")
        self.at = 4
        version = self.number("<I")
        if version not in _VERSIONS:
            raise ModelError(
                f"{str(self.path)!r} is GGUF version {version} or big-endian; curate reads versions 2 and 3, "
                "little-endian: convert it again with a recent llama.cpp"
            )

    def take(self, size: int) -> int:
        """Return where the next `size` bytes start, and move behind them."""
        start = self.at
        if size > len(self.data) - start:
            raise self.damaged(f"{size:,} bytes are announced at {start:,}, it has {len(self.data):,}")
        self.at = start + size
        return start

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self.data, self.take(struct.calcsize(form)))[0]

    def count(self, what: str, most: int) -> int:
        value = int(self.number("<Q"))
        if value > most:
            raise self.damaged(f"it announces {value:,} {what}")
        return value

    def text(self) -> str:
        size = self.number("<Q")
        start = self.take(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError:
            raise self.damaged(f"the text at {start:,} is not UTF-8") from None

    def setting(self) -> tuple[str, Any]:
        return self.text(), self.value(self.number("<I"))

    def value(self, kind: int, *, inside: bool = False) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY or inside:
            raise self.damaged(f"a setting at {self.at:,} has the type {kind}")
        return self.array(self.number("<I"))

    def array(self, kind: int) -> list[Any]:
        count = self.count("items in a list", _MAX_ITEMS)
        if kind not in _SCALARS:
            return [self.value(kind, inside=True) for _ in range(count)]
        form = f"<{count}{_SCALARS[kind][1]}"
        return list(struct.unpack_from(form, self.data, self.take(struct.calcsize(form))))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return a tensor's name, shape, encoding and offset."""
        name, dimensions = self.text(), self.number("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self.damaged(f"tensor {name!r} has {dimensions:,} dimensions")
        shape = [int(self.number("<Q")) for _ in range(dimensions)]
        return name, tuple(reversed(shape)), int(self.number("<I")), int(self.number("<Q"))

    def place(self, name: str, shape: tuple[int, ...], number: int, start: int) -> TensorInfo:
        """Return a tensor whose bytes are all in the file."""
        encoding = ENCODINGS.get(number)
        if encoding is None:
            raise ModelError(
                f"tensor {name!r} of {str(self.path)!r} is stored in the encoding number {number}, which curate does "
                "not know; give a file in another, such as Q8_0 or BF16"
            )
        if 0 in shape or shape[-1] % encoding.values:
            raise self.damaged(f"tensor {name!r} has the shape {shape}, in blocks of {encoding.values}")
        size = math.prod(shape) // encoding.values * encoding.bytes
        if start + size > len(self.data):
            raise self.damaged(f"tensor {name!r} ends at byte {start + size:,}, the file at {len(self.data):,}")
        return TensorInfo(name, shape, number, start, size)
