"""Checkpoints load bit for bit, and survive damage to a newer one, a kill and a full disk."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from curate.errors import CheckpointError
from curate.train import checkpoint
from curate.train.checkpoint import State, load_latest, save

STATE_FILES = {"weights-00001.safetensors", "optimizer-00001.safetensors", "rng.safetensors", "state.json"}


def state(step: int, size: int = 8) -> State:
    """Return a small state like that of a run: a parameter, its moments, a random state."""
    generator = torch.Generator().manual_seed(step)
    moment = torch.randn(size, generator=generator)
    optimizer = {
        "state": {
            0: {"step": torch.tensor(float(step)), "exp_avg": moment, "codes": torch.arange(4, dtype=torch.uint8)}
        },
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0], "fused": None}],
    }
    weights = {"layer.weight": torch.randn(size, 2, generator=generator).bfloat16(), "empty": torch.zeros(0)}
    return State(step, weights, optimizer, ({"torch": torch.get_rng_state()},), {"loss": 0.1 + step})


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and all(map(same, first, second))
    return bool(first == second)


def latest(run: Path) -> checkpoint.Loaded:
    loaded = load_latest(run)
    assert loaded is not None
    return loaded


def test_a_state_loads_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, state(3))
    loaded = latest(tmp_path)
    expected = state(3)
    assert (loaded.state.step, loaded.state.facts, loaded.warnings) == (3, {"loss": 3.1}, ())
    assert same(dict(loaded.state.weights), dict(expected.weights))
    assert same(loaded.state.optimizer, expected.optimizer)
    assert same(list(loaded.state.rng), list(expected.rng))


def test_files_are_plain_safetensors_without_pickle(tmp_path: Path) -> None:
    folder = save(tmp_path, state(1))
    assert {path.name for path in folder.iterdir()} == STATE_FILES | {"manifest.json"}
    assert set(load_file(folder / "weights-00001.safetensors")) == {"layer.weight", "empty"}
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == STATE_FILES


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None


def test_large_states_are_split_into_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD", 100)
    weights = {f"w{i}": torch.full((30,), i, dtype=torch.bfloat16) for i in range(4)}
    folder = save(tmp_path, State(1, weights))
    assert len(list(folder.glob("weights-*.safetensors"))) == 4
    assert same(dict(latest(tmp_path).state.weights), weights)


def test_the_newest_checkpoints_are_kept_and_only_the_last_is_full(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, state(step), keep=3, full_states=1)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000004", "step-000003", "step-000002"]
    full = [json.loads((path / "manifest.json").read_text())["full"] for path in checkpoint.checkpoints(tmp_path)]
    assert full == [True, False, False]
    older = checkpoint.load(checkpoint.checkpoints(tmp_path)[1])
    assert (older.step, older.optimizer, older.rng) == (3, None, ())
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("name", sorted(STATE_FILES | {"manifest.json"}))
@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(name: str, harm: str, tmp_path: Path) -> None:
    save(tmp_path, state(1), full_states=2)
    file = save(tmp_path, state(2), full_states=2) / name
    data = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-3] if harm == "cut" else data[: len(data) // 2] + b"\xff" + data[len(data) // 2 + 1 :])
    loaded = latest(tmp_path)
    assert (loaded.state.step, len(loaded.warnings)) == (1, 1)
    assert "step-000002' is damaged" in loaded.warnings[0]
    assert same(loaded.state.optimizer, state(1).optimizer)


def test_the_checkpoint_used_instead_of_a_damaged_one_stays_resumable(tmp_path: Path) -> None:
    for step in (2, 4):
        save(tmp_path, state(step), keep=2, full_states=2)
    (checkpoint.checkpoints(tmp_path)[0] / "state.json").write_text("{")
    assert latest(tmp_path).state.step == 2
    save(tmp_path, state(3), keep=2, full_states=1)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000003", "step-000002"]
    assert latest(tmp_path).state.step == 3
    assert latest(tmp_path).state.optimizer is not None


def test_if_every_checkpoint_is_damaged_the_error_says_so(tmp_path: Path) -> None:
    (save(tmp_path, state(1)) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact: .*step-000001.* is damaged"):
        load_latest(tmp_path)


def test_a_killed_save_keeps_the_previous_checkpoint_and_is_removed_by_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, state(1))
    aside = tmp_path / "checkpoints" / ".step-000002.partial"
    aside.mkdir()
    (aside / "weights-00001.safetensors").write_bytes(b"half")
    assert latest(tmp_path).state.step == 1
    save(tmp_path, state(2))
    assert latest(tmp_path).state.step == 2
    assert not aside.exists()


def test_a_full_disk_during_a_save_keeps_earlier_checkpoints(tmp_path: Path) -> None:
    """A limit on file sizes makes the write fail in the middle of a tensor, like a full disk."""
    save(tmp_path, state(1))
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step-000002' was not written: .*; earlier ones are as they were"):
            save(tmp_path, state(2, size=10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()} == before
    assert latest(tmp_path).state.step == 1


KILLED = """
import os, sys, torch
from pathlib import Path
from curate.train import checkpoint
run = Path(sys.argv[1])
checkpoint.save(run, checkpoint.State(1, {"w": torch.ones(4)}, {"m": torch.ones(4)}))
written = checkpoint._write_chunks
def dies(path, chunks):
    if path.name == sys.argv[2]:
        path.write_bytes(b"half")
        os.kill(os.getpid(), 9)
    return written(path, chunks)
checkpoint._write_chunks = dies
checkpoint.save(run, checkpoint.State(2, {"w": torch.ones(4)}, {"m": torch.ones(4)}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights-00001.safetensors", "manifest.json", ".manifest.json.partial"])
def test_a_process_killed_during_a_save_leaves_a_complete_checkpoint(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), name], capture_output=True)
    assert done.returncode == -9, done.stderr
    loaded = latest(tmp_path)
    assert loaded.state.step == (2 if name.endswith(".partial") else 1)
    assert loaded.warnings == ()
    assert loaded.state.optimizer is not None


def test_unsupported_values_are_an_error_and_nothing_is_pickled(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="which a checkpoint does not keep"):
        save(tmp_path, State(1, {}, {"odd": object()}))


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(
    plain | st.lists(st.floats(width=32, allow_nan=False)).map(torch.tensor),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50)
@given(trees)
def test_any_optimizer_state_round_trips_through_json_and_tensors(tree: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.loads(json.dumps(checkpoint._split(tree, "o", tensors)))
    assert same(checkpoint._join(skeleton, tensors), tree)
