"""Runs on several ranks equal a run on one: adapters with DDP, full training with FSDP2, resumed on other numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from safetensors.torch import load_file

from curate.errors import CurateError
from curate.model.serving import ADAPTER, MODEL
from curate.train import checkpoint, config, distributed
from curate.train.finetune import finetune
from curate.train.run import events, records
from tests.support import ranks
from tests.support.small_runs import losses, paired_set, run, taught_set

ROOT = Path(__file__).parents[2]
SAVED = ("checkpoint.steps=1", "checkpoint.keep=9", "checkpoint.full_states=9")
# AdamW divides by the root of the second moment plus epsilon. At 1e-8 a gradient element of 1e-9, which is rounding
# noise, moves its weight by the whole rate, in a direction that the order of a sum decides; at 1e-3 it moves it by
# 1e-6 of the rate, and rounding stays rounding. It also makes a step depend on the scale of the gradients.
SMOOTH = "optimizer.epsilon=1e-3"
# Ranks add the same fp32 numbers in another order. A sum of n numbers is off by at most n * 2**-24 of their
# magnitudes, and no sum of these runs has over 1,024 (192 positions, 302 supervised tokens, 384 columns).
ROUNDING = 1024 * 2**-24
DRIFT = 4 * ROUNDING  # of the last of five steps: each of the four before has moved the weights with its own rounding
FULL: dict[str, Any] = {"global_batch": 9, "max_steps": 5, "settings": (*SAVED, SMOOTH)}
LORA: dict[str, Any] = {**FULL, "method": "lora", "rank": 4, "lr": 0.02}
# Pairs, in full (sharded) and with an adapter (copied).
DPO: dict[str, dict[str, Any]] = {
    "dpo": {**FULL, "objective": "dpo", "global_batch": 4},
    "dpo-lora": {**LORA, "objective": "dpo", "global_batch": 4},
}
KINDS = ["full", "lora", *DPO]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_set(tmp_path_factory.mktemp("taught"), held_out=2)


def stop_at(step: int) -> Any:
    def ask(event: Any) -> None:
        if isinstance(event, events.Stepped) and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return ask


def as_two(rank: int, data: Path, root: Path) -> None:
    """Run one of two ranks; an interruption reaches the first one only."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    run(data, root / "two-full", **FULL)
    run(data, root / "two-lora", **LORA)
    for name, settings in DPO.items():
        run(root / "pairs/set", root / f"two-{name}", **settings)
    run(data, root / "two-stopped", on_event=stop_at(2), **FULL)
    finetune(resume=root / "one-stopped", device="cpu")


@pytest.fixture(scope="module")
def root(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs on one rank and on two, and two that were resumed on the other number."""
    root = tmp_path_factory.mktemp("ranks")
    run(taught, root / "one-full", **FULL)
    run(taught, root / "one-lora", **LORA)
    paired_set(root / "pairs", held_out=2)
    for name, settings in DPO.items():
        run(root / "pairs/set", root / f"one-{name}", **settings)
    run(taught, root / "one-stopped", on_event=stop_at(2), **FULL)
    ranks.spawn(as_two, 2, taught, root)
    finetune(resume=root / "two-stopped", device="cpu")
    return root


def states(root: Path, kind: str, step: int) -> tuple[checkpoint.State, checkpoint.State]:
    """Return the states that one rank and two ranks saved at a step."""
    single, two = (
        checkpoint.load(root / f"{ranks}-{kind}" / f"checkpoints/step-{step:06}") for ranks in ("one", "two")
    )
    assert list(single.weights) == list(two.weights)
    return single, two


def flat(tensors: Iterable[Any]) -> Any:
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def saved_keys(folder: Path) -> dict[str, list[str]]:
    """Return the names of the tensors in each file of weights below a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): sorted(load_file(file)) for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_losses_norms_and_evaluations_of_one(root: Path, kind: str) -> None:
    single, two = (records.read(root / f"{ranks}-{kind}") for ranks in ("one", "two"))
    for key in ("lr", "tokens", "supervised"):
        assert [row[key] for row in two.metrics] == [row[key] for row in single.metrics], key
    for key in ("loss", "norm"):
        values, expected = ([row[key] for row in run.metrics] for run in (two, single))
        assert values[0] == pytest.approx(expected[0], rel=ROUNDING), key
        assert values == pytest.approx(expected, rel=DRIFT), key
    for which in ("base", "tuned"):
        rows = [run.evaluation(which) for run in (single, two)]
        assert rows[0] is not None and rows[1] is not None
        assert rows[1]["overall"]["loss"] == pytest.approx(rows[0]["overall"]["loss"], rel=DRIFT)
        assert rows[1]["overall"]["tokens"] == rows[0]["overall"]["tokens"]
    assert [row["answer"] for row in two.samples if row["which"] == "base"] == [
        row["answer"] for row in single.samples if row["which"] == "base"
    ]
    assert two.plan["ranks"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_first_gradients_of_one(root: Path, kind: str) -> None:
    # After one step the first moment is the clipped gradient times 1 - beta1.
    single, two = (
        flat(slot["exp_avg"] for slot in state.optimizer["state"].values()) for state in states(root, kind, 1)
    )
    assert (two - single).norm() <= ROUNDING * single.norm()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_ranks_write_the_weights_of_one(root: Path, kind: str) -> None:
    first, _ = states(root, kind, 1)
    single, two = states(root, kind, 5)
    change = flat(single.weights.values()) - flat(first.weights.values())
    assert (flat(two.weights.values()) - flat(single.weights.values())).norm() <= DRIFT * change.norm()
    assert len(two.rng) == 2
    folder = MODEL if kind == "full" else ADAPTER
    assert {path.name for path in (root / f"two-{kind}" / folder).iterdir()} == {
        path.name for path in (root / f"one-{kind}" / folder).iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_ranks_save_the_tensors_of_one_and_a_tied_tensor_once(root: Path, kind: str) -> None:
    result = MODEL if kind == "full" else ADAPTER
    for folder in (result, "checkpoints/step-000005"):
        single, two = (saved_keys(root / f"{ranks}-{kind}" / folder) for ranks in ("one", "two"))
        two.pop("rng.safetensors", None)  # has a state for each rank
        single.pop("rng.safetensors", None)
        assert two == single
        assert not [name for names in two.values() for name in names if "lm_head" in name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one-stopped", "two-stopped"], ids=["one rank, then two", "two ranks, then one"])
def test_a_run_continues_on_another_number_of_ranks(root: Path, name: str) -> None:
    assert losses(root / name) == pytest.approx(losses(root / "one-full"), rel=DRIFT)
    assert [row["step"] for row in records.read_lines(root / name / records.METRICS)] == [1, 2, 3, 4, 5]
    assert records.read(root / name).facts["status"] == "finished"


def test_missing_ranks_get_one_clear_line(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(CurateError, match=r"WORLD_SIZE is 2.*(RANK|MASTER_ADDR).*torchrun"):
        run(taught, tmp_path / "run")


def test_processes_that_cannot_connect_get_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "COLLECTIVE_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(CurateError, match=r"^the 2 processes cannot connect \(gloo\): .*; check MASTER_ADDR.*$"):
        distributed.start("cpu")


@pytest.mark.slow
def test_torchrun_starts_the_command_and_only_the_first_rank_prints(taught: Path, tmp_path: Path) -> None:
    settings = [word for key in ("eval.samples=0", "data.row_tokens=192") for word in ("--setting", key)]
    arguments = [
        str(taught),
        "--model",
        "tiny",
        "--max-steps",
        "2",
        "--global-batch",
        "4",
        "--device",
        "cpu",
        *settings,
    ]
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["-m", "curate", "finetune", *arguments, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 1/2") == 1
    assert done.stdout.count("curate chat") == 1
    assert config.load(tmp_path / "run" / records.CONFIG).train.max_steps == 2
    assert records.read(tmp_path / "run").plan["ranks"] == 2
