"""The device of a rank: its memory, its dtype, and its measured rate of matrix products."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from curate.display.figures import GIB, number, plural
from curate.errors import RecipeError
from curate.model import choices

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, attribute) for name, attribute in choices.DTYPES.items()}
_SIDE = {"cuda": 8192, "cpu": 512}  # of the square matrices that the rate is measured with; large enough for the peak
_SECONDS = 0.1  # of measurement, at least


@dataclass(frozen=True)
class Device:
    """A device as measured."""

    kind: str  # torch's: cuda, cpu, mps
    name: str
    memory: int  # bytes that the run may use
    dtype: str  # of weights and activations
    reason: str  # for the dtype
    rate: float  # floating-point operations per second of large matrix products in that dtype


def measure_device(device: torch.device, *, dtype: str = "auto", memory_gib: float = 0.0) -> Device:
    """Measure a device; `memory_gib` limits the run to a part of it. Raises RecipeError for a dtype it lacks."""
    chosen, reason = choose_dtype(device, dtype)
    return Device(
        kind=device.type,
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(torch.get_num_threads()),
        memory=_usable_memory(device, memory_gib),
        dtype=chosen,
        reason=reason,
        rate=matrix_rate(device, DTYPES[chosen]),
    )


def _cpu_name(threads: int) -> str:
    return f"{number(threads)} CPU {plural(threads, 'thread')}"


def choose_dtype(device: torch.device, wanted: str = "auto") -> tuple[str, str]:
    """Return the dtype of weights and activations, and the reason for it.

    Raises RecipeError for one that the device lacks.
    """
    if device.type != "cuda":
        if wanted == "fp16":
            raise RecipeError("dtype fp16 needs a CUDA device; use auto, fp32 or bf16")
        return ("fp32", "on a CPU, where it is exact and no slower") if wanted == "auto" else (wanted, "as asked")
    bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    if wanted == "bf16" and not bf16:
        raise RecipeError(f"{torch.cuda.get_device_name(device)} has no bf16; use auto or fp16")
    if wanted != "auto":
        return wanted, "as asked"
    return ("bf16", "which this device has") if bf16 else ("fp16", "with a scaled loss: this device has no bf16")


def _usable_memory(device: torch.device, memory_gib: float) -> int:
    """Return the bytes that a run may use; 0 GiB is no limit."""
    free = _free(device)
    if not memory_gib:
        return free
    wanted = int(memory_gib * GIB)
    if device.type == "cuda":  # exceeding the limit fails as it would on a GPU of that size
        total = torch.cuda.get_device_properties(device).total_memory  # bytes
        torch.cuda.set_per_process_memory_fraction(min(1.0, wanted / total), device)
    return min(free, wanted)


def _free(device: torch.device) -> int:
    """Return the bytes that are free, including those that this process holds on a GPU already."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return min(_system_limits() or [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")])


def _system_limits() -> list[int]:
    """Return the bytes that Linux reports as available, and those left of the container's limit, if there are any."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        limits += [int(limit) - int(used)] if limit.isdigit() else []
    except (OSError, ValueError, TypeError):  # no Linux, or no limit
        pass
    return limits


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of large matrix products: the ceiling for MFU."""
    side = _SIDE.get(device.type, 1024)
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for count in (1, 1, 4):  # the first rounds warm up
        begin = _now(device)
        done = 0
        while _now(device) - begin < _SECONDS / 3 or not done:
            for _ in range(count):
                torch.mm(left, right)
            done += count
        best = max(best, done * 2.0 * side**3 / (_now(device) - begin))
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory of a GPU; a CPU's cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Return the peak memory so far: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    # ru_maxrss is in bytes on macOS, in KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; the CPU's allocator has no error class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)
