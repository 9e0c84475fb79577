"""The device a rank works on: its memory, the numbers it computes with, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from curate.display.figures import GIB
from curate.errors import RecipeError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SIDE = {"cuda": 8192, "cpu": 512}  # of the square matrices that the rate is measured with
_SECONDS = 0.1  # that the measurement takes at least


@dataclass(frozen=True)
class Device:
    """What a run may count on: `memory` bytes for all that it holds, and `rate`, floating-point operations a second.

    The rate is measured: matrix products of the run's own type, large enough to reach the device's ceiling.
    """

    kind: str
    name: str
    memory: int
    dtype: str
    reason: str  # why that type
    rate: float


def look(place: torch.device, *, dtype: str = "auto", memory_gib: float = 0.0) -> Device:
    """Measure a device; `memory_gib` holds the run to a part of it. Raises RecipeError for a type it does not have."""
    chosen, reason = choose_dtype(place, dtype)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return Device(
        kind=place.type,
        name=name,
        memory=_limited(place, memory_gib),
        dtype=chosen,
        reason=reason,
        rate=matrix_rate(place, DTYPES[chosen]),
    )


def choose_dtype(place: torch.device, wanted: str = "auto") -> tuple[str, str]:
    """Choose the type that weights and activations have, with the reason."""
    if place.type != "cuda":
        if wanted == "fp16":
            raise RecipeError("dtype fp16 needs a CUDA device; use auto, fp32 or bf16")
        return ("fp32", "on a CPU, where it is exact and no slower") if wanted == "auto" else (wanted, "as asked")
    bf16 = torch.cuda.get_device_capability(place) >= (8, 0)
    if wanted == "bf16" and not bf16:
        raise RecipeError(f"{torch.cuda.get_device_name(place)} has no bf16; use auto or fp16")
    if wanted != "auto":
        return wanted, "as asked"
    return ("bf16", "which this device has") if bf16 else ("fp16", "with a scaled loss: this device has no bf16")


def _limited(place: torch.device, memory_gib: float) -> int:
    free = _free(place)
    if not memory_gib:
        return free
    wanted = int(memory_gib * GIB)
    if place.type == "cuda":  # so that going over it fails here as it would on a card of that size
        whole = torch.cuda.get_device_properties(place).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, wanted / whole), place)
    return min(free, wanted)


def _free(place: torch.device) -> int:
    """Return the bytes that are free, and those that this process holds already."""
    if place.type == "cuda":
        free, _ = torch.cuda.mem_get_info(place)
        return free + torch.cuda.memory_reserved(place)
    found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_system_limits()]
    return min(found[1:] or found[:1])


def _system_limits() -> list[int]:
    """Return what Linux says is available, and what is left of the container's own limit."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        found += [int(limit) - int(used)] if limit.isdigit() else []
    except (OSError, ValueError, TypeError):  # no Linux, or no limit
        pass
    return found


def matrix_rate(place: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of large matrix products: the ceiling that MFU is measured by."""
    side = _SIDE.get(place.type, 1024)
    left, right = (torch.ones(side, side, device=place, dtype=dtype) for _ in range(2))
    best = 0.0
    for count in (1, 1, 4):  # the first ones warm up
        begin = _now(place)
        done = 0
        while _now(place) - begin < _SECONDS / 3 or not done:
            for _ in range(count):
                torch.mm(left, right)
            done += count
        best = max(best, done * 2.0 * side**3 / (_now(place) - begin))
    return best


def _now(place: torch.device) -> float:
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter()


def reset_peak(place: torch.device) -> None:
    """Begin to watch for the highest memory anew, where a device can."""
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)


def peak_gib(place: torch.device) -> float:
    """Return the most memory that was held so far: of a GPU the tensors', on a CPU the whole process's."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place) / GIB
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out; the CPU's allocator has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)
