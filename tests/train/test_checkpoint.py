"""Checkpoints load bit for bit, and survive damage to a newer one, a kill and a full disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from curate.errors import CheckpointError, UnsafePathError
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


def manifest_of(checkpoint_folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((checkpoint_folder / "manifest.json").read_text())
    return values


@pytest.mark.parametrize("name", ["../../outside", "/{tmp}/outside", "optimizer-00009.safetensors/../../../outside"])
def test_a_manifest_cannot_name_a_file_outside_its_folder(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outside = tmp_path / "outside"
    outside.write_text("mine")
    name = name.replace("/{tmp}", str(tmp_path))
    path = save(run, state(1))
    values = manifest_of(path)
    entry = {"bytes": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    for hostile in (name, f"optimizer{name}"):
        (path / "manifest.json").write_text(json.dumps(values | {"files": values["files"] | {hostile: entry}}))
        with pytest.raises(CheckpointError, match="no file of a checkpoint"):
            checkpoint.load(path)
        save(run, state(2), full_states=1)  # would remove the files that only resuming needs
        assert outside.read_text() == "mine"
        assert (path / "optimizer-00001.safetensors").exists()


def test_links_in_a_run_are_not_followed(tmp_path: Path) -> None:
    other = save(tmp_path / "other", state(5))
    before = {file.name: file.read_bytes() for file in other.iterdir()}
    run = tmp_path / "run"
    save(run, state(1))
    (run / "checkpoints" / "step-000005").symlink_to(other)  # neither read nor thinned out
    assert latest(run).state.step == 1
    save(run, state(6), keep=1)
    path = save(run, state(7), keep=1)
    (path / "rng.safetensors").unlink()
    (path / "rng.safetensors").symlink_to(other / "rng.safetensors")
    with pytest.raises(CheckpointError, match="is a link"):
        checkpoint.load(path)
    assert {file.name: file.read_bytes() for file in other.iterdir()} == before

    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "checkpoints").symlink_to(tmp_path / "other" / "checkpoints")
    with pytest.raises(UnsafePathError, match="checkpoints' is a link"):
        save(linked, state(9), keep=1)
    with pytest.raises(UnsafePathError, match="checkpoints' is a link"):
        load_latest(linked)
    assert {file.name: file.read_bytes() for file in other.iterdir()} == before


@given(data=st.data())
def test_a_changed_manifest_or_state_is_an_error_of_curates(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Any value in place of any other: the checkpoint loads, or it is damaged."""
    path = save(tmp_path_factory.mktemp("run"), state(1, size=2))
    name = data.draw(st.sampled_from(["manifest.json", "state.json"]))
    values = json.loads((path / name).read_text())
    parent, key = data.draw(st.sampled_from(list(places(values))))
    junk = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=3)
    parent[key] = data.draw(junk | st.dictionaries(st.text(max_size=5), junk, max_size=2))
    (path / name).write_text(json.dumps(values))
    if name == "state.json":
        digest, size = hashlib.sha256((path / name).read_bytes()).hexdigest(), (path / name).stat().st_size
        manifest = manifest_of(path)
        manifest["files"][name] = {"bytes": size, "sha256": digest}
        (path / "manifest.json").write_text(json.dumps(manifest))
    with contextlib.suppress(CheckpointError):
        checkpoint.load(path)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every list or object of a JSON value with each of its indices or keys."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from places(value)
