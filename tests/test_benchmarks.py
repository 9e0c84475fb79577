"""The training benchmark runs with few packages installed, and reports the rows that it skips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

INSTALLED = ("torch", "transformers", "peft", "numpy", "click", "rich")


@pytest.fixture(scope="module")
def minimal_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with links to these packages and their requirements only."""
    folder = tmp_path_factory.mktemp("site")
    pending, visited = list(INSTALLED), set()
    while pending:
        name = canonicalize_name(pending.pop())
        if name in visited:
            continue
        visited.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system, such as CUDA's libraries
            continue
        needs = [Requirement(text) for text in distribution.requires or ()]
        pending += [
            requirement.name
            for requirement in needs
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
        for top in {Path(str(file)).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def run(minimal_packages: Path, *arguments: str) -> str:
    """Run the benchmark with these packages alone."""
    command = [sys.executable, "-S", str(ROOT / "benchmarks" / "finetune.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(minimal_packages)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_every_gpu_row_runs_at_toy_size_with_few_packages(minimal_packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    table = run(minimal_packages, "--device", "cpu", "--toy", "--out", str(out))
    result = json.loads(out.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == run(minimal_packages, "--list", "--toy", "--device", "cpu").splitlines()
    failed = {name: row["error"] for name, row in rows.items() if "error" in row}
    assert failed == {
        "7B full 1k, varlen": (
            "RecipeError: attention 'varlen' needs a CUDA device, and this is cpu; use 'auto' or 'sdpa'"
        ),
        "7B QLoRA real in 14 GiB": "ModuleNotFoundError: No module named 'bitsandbytes'",
        "7B full real, TRL": "ModuleNotFoundError: No module named 'datasets'",
    }
    assert rows["resumed"]["bit_for_bit"]
    assert rows["7B full 1k"]["first_loss"] == pytest.approx(rows["7B full 1k, plain loss"]["first_loss"], rel=1e-3)
    assert "7B full real over Trainer padded" in result["ratios"]
    assert "TOY sizes" in result["about"]
    assert all(name in table for name in rows)


@pytest.mark.slow
def test_rows_beyond_the_budget_are_reported(minimal_packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "short.json"
    run(
        minimal_packages,
        "--device",
        "cpu",
        "--toy",
        "--budget",
        "1",
        "--only",
        "7B full 1k",
        "--only",
        "resumed",
        "--out",
        str(out),
    )
    errors = [row["error"] for row in json.loads(out.read_text())["rows"]]
    assert errors == ["not begun: the budget was spent"] * 2
