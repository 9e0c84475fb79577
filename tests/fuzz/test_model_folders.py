"""Change the files of models, adapters and checkpoints from elsewhere: an error of one line, or a model that loads."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file

from curate.errors import CurateError, ModelError
from curate.model import artifact, files, loader, sources, tensors
from curate.train import checkpoint
from curate.train.checkpoint import State
from curate.train.run import resumption
from tests.fuzz.effort import SEED, rounds
from tests.support import tiny_runs
from tests.support.mutations import mutations

ROUNDS = rounds(60)
CPU = torch.device("cpu")
FACTS: dict[str, Any] = {
    **{"kind": "cpu", "ranks": 1, "dtype": "fp32", "attention": "sdpa", "form": "master", "compiled": False},
    **{"micro_batch": 1, "checkpointing": "none", "scale": 1.0, "good": 0, "data": {"rows": 3}, "loss": 0.5},
}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.run(tmp_path_factory.mktemp("run"), "lora", steps=1)


def unharmed(attempt: Callable[[], object]) -> None:
    """Call, and let nothing but an error of curate's pass, in one line."""
    try:
        attempt()
    except CurateError as error:
        assert "\n" not in str(error)


def load_adapter(run: Path) -> object:
    found = artifact.find_artifact(str(run))
    artifact.renderer_for(artifact.serving_of(found))
    return artifact.load_artifact(found, device=CPU, other_base=True)


def load_prompts(run: Path) -> object:
    return artifact.renderer_for(artifact.serving_of(artifact.find_artifact(str(run))))


def load_base(run: Path) -> object:
    source = sources.find_model(str(run.parent / "base"))
    loader.shape_from_config(source.config)
    return loader.load_model(source, dtype=torch.float32, device=CPU)


FILES: dict[str, Callable[[Path], object]] = {
    "run/adapter/adapter_config.json": load_adapter,
    "run/adapter/curate.json": load_adapter,
    "run/adapter/generation_config.json": load_prompts,
    "run/adapter/tokenizer_config.json": load_prompts,
    "base/config.json": load_base,
    "base/curate.json": load_base,
}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_json_file_is_one_line_or_loads(run: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(run.parent, tmp_path / "copy")
    file = tmp_path / "copy" / name
    note = tmp_path / "copy" / "run" / "adapter" / "curate.json"
    note.write_text(note.read_text().replace(str(run.parent), str(tmp_path / "copy")))
    for values in mutations(json.loads(file.read_text()), ROUNDS // 6, SEED):
        file.write_text(json.dumps(values))
        unharmed(lambda: FILES[name](tmp_path / "copy" / "run"))
    file.write_text("[" * 100_000)
    unharmed(lambda: FILES[name](tmp_path / "copy" / "run"))


def test_a_changed_safetensors_header_is_damage(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5)}, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    headers = [json.dumps(values).encode() for values in mutations(header, ROUNDS * 5, SEED)]
    for text in [*headers, b"[" * 100_000, b"{" * 10, b"null", b""]:
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        unharmed(lambda: files.weights(tmp_path))
    for size in (0, 7, 2**63 - 1, 2**64 - 1, 10**9):
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", size) + data[8:])
        with pytest.raises(ModelError, match="is damaged"):
            files.weights(tmp_path)
    with (tmp_path / "model.safetensors").open("wb") as file:  # a header of a gigabyte, in a sparse file
        file.write(struct.pack("<Q", 1 << 30))
        file.truncate(2 << 30)
    with pytest.raises(ValueError, match="has no header"):
        tensors.read_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/../../x", "", "..", None, 3])
def test_an_index_names_files_of_its_folder_only(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match=r"not a file of its folder|lacks"):
        files.weights(folder)


def test_a_link_in_a_model_folder_is_read_as_in_the_hubs_cache(tmp_path: Path) -> None:
    """The Hub's cache has links to its blobs; weights are only read, so a link can harm nothing."""
    (tmp_path / "model").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "blob")
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blob")
    assert files.weights(tmp_path / "model").bytes == (tmp_path / "blob").stat().st_size


def test_a_changed_checkpoint_is_damaged_and_passed_over(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}
    outside = tmp_path / "outside"
    outside.write_text("mine")
    run = tmp_path / "run"
    for step in (1, 2):
        state = State(step, {"w": torch.ones(2)}, optimizer, ({"cpu": torch.get_rng_state()},), FACTS)
        newest = checkpoint.save(run, state, full_states=2)
    kept = {path.name: path.read_bytes() for path in newest.iterdir()}
    for name in ("manifest.json", "state.json"):
        for number, values in enumerate(mutations(json.loads(kept[name]), ROUNDS * 2, SEED)):
            text = "[" * 100_000 if number == 0 else json.dumps(values)
            (newest / name).write_text(text)
            if name == "state.json":
                manifest = json.loads(kept["manifest.json"])
                manifest["files"][name] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
                (newest / "manifest.json").write_text(json.dumps(manifest))
            loaded = checkpoint.load_latest(run, resumption.check)
            assert loaded is not None
            assert loaded.state.step == 2 or "step-000002' " in loaded.warnings[0]
        for file, data in kept.items():
            (newest / file).write_bytes(data)
    assert outside.read_text() == "mine"
    assert len(checkpoint.checkpoints(run)) == 2


def test_a_changed_adapter_file_of_weights_is_one_line(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "copy")
    file = tmp_path / "copy" / "run" / "adapter" / "adapter_model.safetensors"
    data, source = file.read_bytes(), random.Random(SEED)
    for _ in range(ROUNDS // 12):
        changed = bytearray(data)
        for _ in range(source.randrange(1, 4)):
            changed[source.randrange(400)] = source.randrange(256)
        file.write_bytes(changed[: source.choice((len(data), len(data) // 2))])
        unharmed(lambda: load_adapter(tmp_path / "copy" / "run"))
    assert load_file(run / "adapter" / "adapter_model.safetensors")
