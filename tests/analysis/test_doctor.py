"""`curate doctor`: the report on a machine, and the command that installs what is missing."""

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
    """Run `curate doctor --json` in a folder, with these folders first on the module path."""
    where = os.pathsep.join(map(str, [*path, ROOT]))
    line = [sys.executable, "-m", "curate", "doctor", "--json"]
    done = subprocess.run(
        line, cwd=folder, env={**os.environ, "PYTHONPATH": where, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def distribution(folder: Path, *requires: str) -> Path:
    """Write the metadata of a `curate-chat` that requires these packages into a folder."""
    info = folder / "curate_chat-9.9.dist-info"
    info.mkdir(parents=True)
    lines = [f"Requires-Dist: {requirement}" for requirement in requires]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", "Name: curate-chat", "Version: 9.9", *lines]))
    return folder


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir()
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return folder


def test_this_machine_is_described() -> None:
    report = look(ROOT)
    assert report.machine.cores >= 1
    assert {package.name for package in report.packages if package.extra is None} >= {"polars", "rich", "click"}
    assert all(package.enough for package in report.packages if package.extra is None)
    assert {disk.use for disk in report.machine.disks} >= {"sets", "scratch"}
    file = io.StringIO()
    terminal.console(file=file, width=80).print(render_doctor(report))
    page = file.getvalue()
    assert "polars" in page
    assert all(terminal.cells(line) <= 80 for line in page.splitlines())


def test_missing_packages_come_with_the_command_that_installs_them(tmp_path: Path) -> None:
    wanted = (
        "click>=8",
        "rich>=999.1",
        'no-such-thing>=2.0; extra == "train"',
        'nor-this; extra == "train"',
        'pytest>=999; extra == "dev"',
    )
    report = doctor_in(tmp_path, distribution(tmp_path / "site", *wanted))
    commands = {advice["missing"]: advice["command"] for advice in report["advice"]}
    assert commands["rich >=999.1"] == f"pip install -e {shlex.quote(str(ROOT))}"
    assert commands["no-such-thing >=2.0, nor-this"] == f"pip install -e {shlex.quote(f'{ROOT}[train]')}"
    assert not any("pytest" in missing for missing in commands)


def test_gpus_are_read_from_the_driver(tmp_path: Path) -> None:
    assert read_gpus(SMI) == [
        Gpu("NVIDIA H100 80GB HBM3", 79.6, "570.86.15", "9.0"),
        Gpu("NVIDIA GB10", 0.0, "580.95.05", "12.1"),
    ]
    tools = program(tmp_path / "bin", "nvidia-smi", f"printf '{SMI}'".replace("\n", "\\n"))
    report = doctor_in(tmp_path, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert [gpu["driver"] for gpu in report["gpus"]] == ["570.86.15", "580.95.05"]
    assert report["gpu_note"] is None


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo 'Failed to initialize NVML'; exit 9", "nvidia-smi: Failed to initialize NVML"),
        ("exit 1", "no reason given"),
    ],
)
def test_a_driver_that_does_not_answer_is_reported(tmp_path: Path, script: str, note: str) -> None:
    tools = program(tmp_path / "bin", "nvidia-smi", script)
    report = doctor_in(tmp_path, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert report["gpus"] == []
    assert note in report["gpu_note"]


def test_torch_without_cuda_on_a_machine_with_a_gpu_is_reported(tmp_path: Path) -> None:
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
    assert "CUDA in torch 2.13.0+cpu" in [
        advice["missing"] for advice in doctor_in(tmp_path, site, PATH=path)["advice"]
    ]
    version.write_text("cuda: Optional[str] = '12.8'\n")
    report = doctor_in(tmp_path, site, PATH=path)
    assert (report["torch_cuda"], [advice for advice in report["advice"] if "CUDA" in advice["missing"]]) == (
        "12.8",
        [],
    )


def test_tokenizers_in_the_hub_cache_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--meta-llama--Llama-2-7b-hf" / "snapshots" / "0a1b"
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(b"x")
    report = doctor_in(tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
    assert {"name": "meta-llama/Llama-2-7b-hf", "path": str(folder / "tokenizer.model")} in report["tokenizers"]
