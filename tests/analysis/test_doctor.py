"""`curate doctor`: what is said of a machine, and the line to type for what is missing."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curate import doctor as look
from curate.analysis.doctor import Gpu, read_gpus
from curate.display import text as terminal
from curate.report.terminal.doctor import render_doctor
from tests.support import ROOT

SMI = "NVIDIA H100 80GB HBM3, 81559, 570.86.15, 9.0\nNVIDIA GB10, [N/A], 580.95.05, 12.1\n"


def doctor_in(folder: Path, *path: Path, **environment: str) -> Any:
    """Run `curate doctor --json` in a folder, with other folders first on the path of modules."""
    where = os.pathsep.join(map(str, [*path, ROOT]))
    line = [sys.executable, "-m", "curate", "doctor", "--json"]
    done = subprocess.run(
        line, cwd=folder, env={**os.environ, "PYTHONPATH": where, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def distribution(folder: Path, *requires: str) -> Path:
    """Lay the metadata of a `curate-chat` that asks for these packages into a folder."""
    info = folder / "curate_chat-9.9.dist-info"
    info.mkdir(parents=True)
    lines = [f"Requires-Dist: {one}" for one in requires]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", "Name: curate-chat", "Version: 9.9", *lines]))
    return folder


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir()
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return folder


def test_this_machine_is_told() -> None:
    found = look(ROOT)
    assert found.machine.cores >= 1
    assert {package.name for package in found.packages if package.extra is None} >= {"polars", "rich", "click"}
    assert all(package.enough for package in found.packages if package.extra is None)
    assert {disk.use for disk in found.machine.disks} >= {"sets", "scratch"}
    file = io.StringIO()
    terminal.console(file=file, width=80).print(render_doctor(found))
    page = file.getvalue()
    assert "polars" in page
    assert all(terminal.cells(line) <= 80 for line in page.splitlines())


def test_what_is_missing_comes_with_the_line_to_type(tmp_path: Path) -> None:
    wanted = (
        "click>=8",
        "rich>=999.1",
        'no-such-thing>=2.0; extra == "train"',
        'nor-this; extra == "train"',
        'pytest>=999; extra == "dev"',
    )
    found = doctor_in(tmp_path, distribution(tmp_path / "site", *wanted))
    told = {one["missing"]: one["command"] for one in found["advice"]}
    assert told["rich >=999.1"] == f"pip install -e {shlex.quote(str(ROOT))}"
    assert told["no-such-thing >=2.0, nor-this"] == f"pip install -e {shlex.quote(f'{ROOT}[train]')}"
    assert not any("pytest" in missing for missing in told)


def test_gpus_are_read_as_their_driver_tells_them(tmp_path: Path) -> None:
    assert read_gpus(SMI) == [
        Gpu("NVIDIA H100 80GB HBM3", 79.6, "570.86.15", "9.0"),
        Gpu("NVIDIA GB10", 0.0, "580.95.05", "12.1"),
    ]
    tools = program(tmp_path / "bin", "nvidia-smi", f"printf '{SMI}'".replace("\n", "\\n"))
    found = doctor_in(tmp_path, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert [gpu["driver"] for gpu in found["gpus"]] == ["570.86.15", "580.95.05"]
    assert found["gpu_note"] is None


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo 'Failed to initialize NVML'; exit 9", "nvidia-smi: Failed to initialize NVML"),
        ("exit 1", "no reason given"),
    ],
)
def test_a_driver_that_does_not_answer_says_why(tmp_path: Path, script: str, note: str) -> None:
    tools = program(tmp_path / "bin", "nvidia-smi", script)
    found = doctor_in(tmp_path, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert found["gpus"] == []
    assert note in found["gpu_note"]


def test_a_torch_without_cuda_beside_a_gpu_is_told(tmp_path: Path) -> None:
    site = distribution(tmp_path / "site", 'torch>=2.0; extra == "train"')
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text("raise ImportError('only looked at')")
    (site / "torch-2.13.0.dist-info").mkdir()
    (site / "torch-2.13.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n"
    )
    version = site / "torch" / "version.py"
    tools = program(tmp_path / "bin", "nvidia-smi", f"printf '{SMI}'".replace("\n", "\\n"))
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    version.write_text("cuda: Optional[str] = None\n")
    assert "CUDA in torch 2.13.0+cpu" in [one["missing"] for one in doctor_in(tmp_path, site, PATH=path)["advice"]]
    version.write_text("cuda: Optional[str] = '12.8'\n")
    found = doctor_in(tmp_path, site, PATH=path)
    assert (found["torch_cuda"], [one for one in found["advice"] if "CUDA" in one["missing"]]) == ("12.8", [])


def test_tokenizers_of_the_hubs_cache_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--meta-llama--Llama-2-7b-hf" / "snapshots" / "0a1b"
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(b"x")
    found = doctor_in(tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert {"name": "meta-llama/Llama-2-7b-hf", "path": str(folder / "tokenizer.model")} in found["tokenizers"]
