"""Check what this machine has that curate can use, and how to install what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from curate._version import __version__
from curate.display.displayed import Displayed
from curate.display.figures import GIB, KIB, MIB, number
from curate.engine.base import default_workers
from curate.errors import DISTRIBUTION, TokenizerError, install_command
from curate.files import cache_folder
from curate.tokenization import files

LOW_DISK_GIB = 5  # free; a run needs about as much space as the dump
QUERY = ("name", "memory.total", "driver_version", "compute_cap")  # of nvidia-smi
SMI_SECONDS = 20
REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?[^;]*(?:;\s*extra == ['\"](\w+)['\"])?")
TORCH_CUDA = re.compile(r"^cuda[^=]*= *'([\d.]+)'", re.M)  # in torch/version.py
DEVELOPMENT = "dev"  # an extra that users do not need


@dataclass(frozen=True)
class Disk:
    """A place where curate writes, and its free space."""

    use: str
    path: str
    free_gib: float
    total_gib: float


@dataclass(frozen=True)
class Machine:
    """Cores that this process may use, memory (the smaller of the machine's and the container's limit), and disks."""

    system: str
    cores: int
    memory_gib: float | None
    free_gib: float | None
    disks: tuple[Disk, ...]


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as its driver reports it; `compute` is its compute capability."""

    name: str
    memory_gib: float
    driver: str
    compute: str


@dataclass(frozen=True)
class Package:
    """A required package; `version` is None if it is missing, `extra` is None for the base installation."""

    name: str
    version: str | None
    wanted: str
    extra: str | None
    enough: bool


@dataclass(frozen=True)
class LocalTokenizer:
    """A tokenizer on this disk: the name to pass to --tokenizer, and its file."""

    name: str
    path: str


@dataclass(frozen=True)
class Advice:
    """Something that is missing, what needs it, and the command that fixes it."""

    missing: str
    needed_for: str
    command: str


@dataclass(frozen=True)
class Doctor(Displayed):
    """What this machine has; `torch_cuda` is the CUDA version that torch was built for, or None."""

    version: str
    python: str
    executable: str
    machine: Machine
    gpus: tuple[Gpu, ...]
    gpu_note: str | None
    torch_cuda: str | None
    packages: tuple[Package, ...]
    tokenizers: tuple[LocalTokenizer, ...]
    advice: tuple[Advice, ...]


def doctor(folder: str | Path = ".") -> Doctor:
    """Examine this machine; `folder` is where sets will be written."""
    packages = _packages()
    gpus, note = _gpus()
    machine = _machine(Path(folder))
    cuda = _torch_cuda()
    tokenizers = _tokenizers()
    return Doctor(
        version=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        machine=machine,
        gpus=gpus,
        gpu_note=note,
        torch_cuda=cuda,
        packages=packages,
        tokenizers=tokenizers,
        advice=_advice(packages, gpus, cuda, tokenizers, machine),
    )


def _advice(
    packages: tuple[Package, ...],
    gpus: tuple[Gpu, ...],
    cuda: str | None,
    tokenizers: tuple[LocalTokenizer, ...],
    machine: Machine,
) -> tuple[Advice, ...]:
    advice: list[Advice] = []
    if not packages:
        advice.append(Advice(f"{DISTRIBUTION}, as an installed package", "everything", install_command()))
    for extra, use in (
        (None, "everything"),
        ("llama3", "LLaMA-3's tokenizer, the default"),
        ("train", "curate finetune"),
    ):
        missing = [f"{p.name} {p.wanted}".strip() for p in packages if p.extra == extra and not p.enough]
        if missing:
            advice.append(Advice(", ".join(missing), use, install_command(extra)))
    default = any(tokenizer.name == files.DEFAULT_TOKENIZER for tokenizer in tokenizers)
    if not default and not any("[llama3]" in item.command for item in advice):
        advice.append(Advice("LLaMA-3's tokenizer", "the default", "pip install --force-reinstall llama-models"))
    torch = next((p for p in packages if p.name == "torch" and p.version), None)
    if gpus and torch and cuda is None:
        advice.append(
            Advice(f"CUDA in torch {torch.version}", "training on the GPU", "pip install --force-reinstall torch")
        )
    for disk in machine.disks:
        if disk.free_gib < LOW_DISK_GIB:
            room = f"room in {disk.path} ({number(disk.free_gib)} GiB free)"
            advice.append(Advice(room, disk.use, f"df -h {disk.path}"))
    return tuple(advice)


# ---- packages


def _packages() -> tuple[Package, ...]:
    """Return the packages that the distribution requires, from its metadata; none if it is not installed."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    packages = []
    for line in requirements:
        match = REQUIREMENT.match(line)
        if match is None or match[3] == DEVELOPMENT:
            continue
        version = _version(match[1])
        enough = version is not None and _at_least(version, match[2] or "0")
        packages.append(Package(match[1], version, f">={match[2]}" if match[2] else "", match[3], enough))
    return tuple(packages)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _at_least(version: str, minimum: str) -> bool:
    def parts(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]]

    return parts(version) >= parts(minimum)


def _torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for, from its version file, since importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        match = TORCH_CUDA.search((Path(spec.origin).parent / "version.py").read_text("utf-8"))
    except OSError:
        return None
    return match[1] if match else None


# ---- the machine


def _machine(folder: Path) -> Machine:
    total, free = _memory()
    paths = {"sets": folder, "scratch": Path(tempfile.gettempdir()), "tokenizers": cache_folder().parent}
    disks = [
        Disk(use, str(path.resolve()), round(usage.free / GIB, 1), round(usage.total / GIB, 1))
        for use, path in paths.items()
        if path.exists() and (usage := shutil.disk_usage(path))
    ]
    return Machine(platform.platform(), default_workers(), total, free, tuple(disks))


def _memory() -> tuple[float | None, float | None]:
    """Return total and available memory in GiB, capped at the container's limit if there is one."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None, None
    kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    total, free = kib["MemTotal"] * KIB / GIB, kib["MemAvailable"] * KIB / GIB
    limit, used = _container("memory.max"), _container("memory.current")
    if limit is not None:
        total, free = min(total, limit / GIB), min(free, (limit - (used or 0)) / GIB)
    return round(total, 1), round(free, 1)


def _container(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """Return the NVIDIA GPUs; if there are none, the reason."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        driver = Path("/proc/driver/nvidia/version").exists()
        return (), "NVIDIA driver found, but not nvidia-smi" if driver else "no NVIDIA driver"
    command = [tool, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi does not answer: {type(error).__name__}"
    if result.returncode:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["no reason given"]
        return (), f"nvidia-smi: {lines[0]}"
    return tuple(read_gpus(result.stdout)), None


def read_gpus(csv: str) -> list[Gpu]:
    """Parse the output of nvidia-smi for `QUERY`, one line for each GPU; an unknown memory size becomes 0."""
    gpus = []
    for line in csv.strip().splitlines():
        name, mib, driver, compute = (part.strip() for part in line.split(","))
        memory = round(int(mib) * MIB / GIB, 1) if mib.isdigit() else 0.0
        gpus.append(Gpu(name, memory, driver, compute))
    return gpus


# ---- tokenizers


def _tokenizers() -> tuple[LocalTokenizer, ...]:
    """Return the default tokenizer if it is installed, and those in the Hub's cache."""
    tokenizers = []
    with suppress(TokenizerError):
        tokenizers.append(LocalTokenizer(files.DEFAULT_TOKENIZER, str(files.find_tokenizer_files(None).vocabulary)))
    return (*tokenizers, *_find_cached())


def _find_cached() -> list[LocalTokenizer]:
    try:
        from huggingface_hub import constants
    except ImportError:
        return []
    cached: dict[str, LocalTokenizer] = {}
    for file in files.VOCABULARY_FILES:
        for path in sorted(Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{file}")):
            name = path.parents[2].name.removeprefix("models--").replace("--", "/")
            cached.setdefault(name, LocalTokenizer(name, str(path)))
    return [cached[name] for name in sorted(cached)]
