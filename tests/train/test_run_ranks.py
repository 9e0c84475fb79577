"""Several ranks make the run that one makes: adapters by DDP, every weight by FSDP2, from one number to another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from curate.errors import CurateError
from curate.model.artifact import ADAPTER, MODEL
from curate.train import checkpoint, config
from curate.train.finetune import finetune
from curate.train.run import events, records
from tests.support import ranks
from tests.support.small_runs import losses, run, taught_set

ROOT = Path(__file__).parents[2]
SAVED = ("checkpoint.steps=2", "checkpoint.keep=9", "checkpoint.full_states=9")
FULL: dict[str, Any] = {"global_batch": 9, "max_steps": 5, "settings": SAVED}
LORA: dict[str, Any] = {**FULL, "method": "lora", "rank": 4, "lr": 0.02}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_set(tmp_path_factory.mktemp("taught"), held_out=2)


def stop_at(step: int) -> Any:
    def ask(event: Any) -> None:
        if isinstance(event, events.Stepped) and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return ask


def as_two(rank: int, data: Path, root: Path) -> None:
    """What each of two ranks does; an interruption reaches the first one alone."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    run(data, root / "two-full", **FULL)
    run(data, root / "two-lora", **LORA)
    run(data, root / "two-stopped", on_event=stop_at(2), **FULL)
    finetune(resume=root / "one-stopped", place="cpu")


@pytest.fixture(scope="module")
def root(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of one rank and of two, and two that went from one number to the other."""
    root = tmp_path_factory.mktemp("ranks")
    run(taught, root / "one-full", **FULL)
    run(taught, root / "one-lora", **LORA)
    run(taught, root / "one-stopped", on_event=stop_at(2), **FULL)
    ranks.spawn(as_two, 2, taught, root)
    finetune(resume=root / "two-stopped", place="cpu")
    return root


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_ranks_have_the_losses_the_norms_and_the_looks_of_one(root: Path, kind: str) -> None:
    one, two = (records.read(root / f"{ranks}-{kind}") for ranks in ("one", "two"))
    for key in ("loss", "norm", "lr", "tokens", "supervised"):
        found, wanted = ([row[key] for row in run.metrics] for run in (two, one))
        assert found == pytest.approx(wanted, rel=2e-4), key
    for which in ("base", "tuned"):
        rows = [found.evaluation(which) for found in (one, two)]
        assert rows[0] is not None and rows[1] is not None
        assert rows[1]["overall"]["loss"] == pytest.approx(rows[0]["overall"]["loss"], rel=2e-4)
        assert rows[1]["overall"]["tokens"] == rows[0]["overall"]["tokens"]
    assert [row["answer"] for row in two.samples if row["which"] == "base"] == [
        row["answer"] for row in one.samples if row["which"] == "base"
    ]
    assert two.plan["ranks"] == 2


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_ranks_write_the_weights_of_one(root: Path, kind: str) -> None:
    one, two = (checkpoint.load(checkpoint.checkpoints(root / f"{ranks}-{kind}")[0]) for ranks in ("one", "two"))
    assert set(one.weights) == set(two.weights)
    for name, tensor in one.weights.items():
        assert torch.allclose(tensor, two.weights[name], atol=5e-4), name
    assert len(two.rng) == 2
    folder = MODEL if kind == "full" else ADAPTER
    assert {path.name for path in (root / f"two-{kind}" / folder).iterdir()} == {
        path.name for path in (root / f"one-{kind}" / folder).iterdir()
    }


@pytest.mark.parametrize("name", ["one-stopped", "two-stopped"], ids=["one rank, then two", "two ranks, then one"])
def test_a_run_goes_on_with_another_number_of_ranks(root: Path, name: str) -> None:
    assert losses(root / name) == pytest.approx(losses(root / "one-full"), rel=2e-4)
    assert [row["step"] for row in records.lines(root / name / records.METRICS)] == [1, 2, 3, 4, 5]
    assert records.read(root / name).facts["status"] == "finished"


def test_ranks_that_nobody_started_are_one_line(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(CurateError, match=r"WORLD_SIZE is 2.*(RANK|MASTER_ADDR).*torchrun"):
        run(taught, tmp_path / "run")


def test_torchrun_starts_the_command_and_the_first_rank_alone_speaks(taught: Path, tmp_path: Path) -> None:
    settings = [word for key in ("eval.samples=0", "data.row_tokens=192") for word in ("--setting", key)]
    words = [str(taught), "--model", "tiny", "--max-steps", "2", "--global-batch", "4", "--device", "cpu", *settings]
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["-m", "curate", "finetune", *words, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 1/2") == 1
    assert done.stdout.count("curate chat") == 1
    assert config.load(tmp_path / "run" / records.CONFIG).train.max_steps == 2
    assert records.read(tmp_path / "run").plan["ranks"] == 2
