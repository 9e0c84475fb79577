"""A run can start from an adapter, a model, a run or a checkpoint; anything else is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file

from curate.errors import CurateError, ModelError, RunError
from curate.model import choices
from curate.train import checkpoint, config
from curate.train.finetune import finetune
from curate.train.run import events, records
from curate.train.run.log import RunResult
from tests.support.small_runs import QUICK, SHORT, EventLog, losses, run, taught_set

STEPS: dict[str, Any] = {"global_batch": 9, "max_steps": 8}
SAVED = ("checkpoint.steps=4", "eval.limit=0")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_set(tmp_path_factory.mktemp("taught"), held_out=3)


@pytest.fixture(scope="module")
def full(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(taught, tmp_path_factory.mktemp("full") / "run", settings=SAVED, lr=1e-2, **STEPS)


@pytest.fixture(scope="module")
def lora(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("lora") / "run"
    return run(taught, folder, settings=SAVED, method="lora", rank=8, lr=0.03, **STEPS)


def start_from(name: Path, data: Path, out: Path, **flags: Any) -> RunResult:
    """Start a run from an earlier result, without naming a model."""
    options = {**QUICK, **STEPS, "max_steps": 2, "lr": 1e-4, **flags}
    return finetune(data, init=str(name), out=out, settings=SHORT, **{k: v for k, v in options.items() if k != "model"})


def base_loss(result: RunResult) -> float:
    assert result.base is not None and result.base.overall.loss is not None
    return result.base.overall.loss


def tuned_loss(result: RunResult) -> float:
    assert result.tuned is not None and result.tuned.overall.loss is not None
    return result.tuned.overall.loss


@pytest.mark.parametrize("part", ["", "model"], ids=["run", "model"])
def test_a_trained_model_is_the_base_of_the_next_run(full: RunResult, taught: Path, tmp_path: Path, part: str) -> None:
    result = start_from(full.run / part, taught, tmp_path / "run", method="lora", rank=4)
    assert base_loss(result) == pytest.approx(tuned_loss(full), rel=1e-5)
    assert result.result == tmp_path / "run" / "adapter"


def test_a_full_fine_tune_starts_from_a_model(full: RunResult, taught: Path, tmp_path: Path) -> None:
    result = start_from(full.run, taught, tmp_path / "run", method="full")
    assert base_loss(result) == pytest.approx(tuned_loss(full), rel=1e-5)
    assert result.result == tmp_path / "run" / "model"


def test_an_adapter_is_trained_further_on_its_own_base(lora: RunResult, taught: Path, tmp_path: Path) -> None:
    result = start_from(lora.run, taught, tmp_path / "run")
    assert base_loss(result) == pytest.approx(base_loss(lora), rel=1e-5)  # without the adapter
    assert losses(result.run)[0] < losses(lora.run)[0] - 0.1
    assert losses(result.run)[0] == pytest.approx(losses(lora.run)[-1], abs=0.05)
    assert tuned_loss(result) == pytest.approx(tuned_loss(lora), abs=0.05)


def test_an_adapter_is_not_trained_further_on_another_base(lora: RunResult, taught: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(lora.run / "adapter" / "base", other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 0.5 for name, tensor in weights.items()}, other / "model.safetensors")
    flags: dict[str, Any] = {"data": taught, "init": str(lora.run), "model": str(other), "dry_run": True}
    with pytest.raises(
        ModelError, match=r"other weights .*: --model FOLDER, or use this one: --setting model\.other_base"
    ):
        finetune(out=tmp_path / "run", settings=SHORT, **flags)
    assert not (tmp_path / "run").exists()
    event_log = EventLog()
    finetune(out=tmp_path / "run", settings=(*SHORT, "model.other_base=true"), on_event=event_log, **flags)
    assert ["used all the same" in event.text for event in event_log.of(events.Warned)] == [True]


@pytest.mark.parametrize("age", [0, 1], ids=["with all states", "with weights alone"])
def test_a_checkpoint_gives_its_weights_and_method(full: RunResult, taught: Path, tmp_path: Path, age: int) -> None:
    path = checkpoint.checkpoints(full.run)[age]
    assert (checkpoint.load(path).optimizer is None) == (age == 1)
    event_log = EventLog()
    result = start_from(path, taught, tmp_path / "run", on_event=event_log)
    assert any("method full, as in the run of" in event.text for event in event_log.of(events.Reported))
    if age == 0:
        assert base_loss(result) == pytest.approx(tuned_loss(full), rel=1e-5)
    assert base_loss(result) < base_loss(full) - 0.5


def test_a_checkpoint_of_an_adapter_gives_its_weights_too(lora: RunResult, taught: Path, tmp_path: Path) -> None:
    path = checkpoint.checkpoints(lora.run)[0]
    result = start_from(path, taught, tmp_path / "run")
    assert result.plan.trained == lora.plan.trained
    assert losses(result.run)[0] < losses(lora.run)[0] - 0.1
    assert tuned_loss(result) == pytest.approx(tuned_loss(lora), abs=0.05)


def test_the_learning_rate_is_the_default_of_the_actual_method_and_is_recorded(
    full: RunResult, lora: RunResult, taught: Path, tmp_path: Path
) -> None:
    on_full = start_from(checkpoint.checkpoints(full.run)[0], taught, tmp_path / "full", lr=None)
    on_lora = start_from(lora.run, taught, tmp_path / "lora", lr=None, preset=config.load(full_settings()))
    for result, kind in ((on_full, "full"), (on_lora, "lora")):
        kept = config.load(str(result.run / records.CONFIG))
        rates = [row["lr"] for row in records.read_lines(result.run / records.METRICS)]
        assert kept.method.kind == kind
        assert max(rates) == pytest.approx(choices.METHODS[kind].learning_rate)


def full_settings() -> config.TrainConfig:
    """Return a preset that trains every weight, unlike the adapter that a run starts from."""
    return config.override(config.load(), {"method": {"kind": "full"}})


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"method": "dora"}, "is an adapter of method lora, which cannot change; leave --method out"),
        ({"rank": 4}, "is an adapter with its own rank; leave method.rank out"),
    ],
)
def test_a_method_other_than_the_adapters_is_refused(
    lora: RunResult, taught: Path, tmp_path: Path, flags: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RunError, match=problem):
        start_from(lora.run, taught, tmp_path / "run", **flags)
    with pytest.raises(RunError, match=r"is from a run with method\.(kind|rank) = .*, which cannot change"):
        start_from(checkpoint.checkpoints(lora.run)[0], taught, tmp_path / "run", **flags)


def test_an_unsuitable_start_gets_one_clear_line(
    lora: RunResult, full: RunResult, taught: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"is an adapter, and method full trains none: merge it first"):
        start_from(lora.run, taught, tmp_path / "run", method="full")
    with pytest.raises(ModelError, match="nowhere"):
        start_from(Path("nowhere"), taught, tmp_path / "run")
    alone = tmp_path / "step-000008"
    shutil.copytree(checkpoint.checkpoints(full.run)[0], alone)
    with pytest.raises(ModelError, match=r"is alone: config\.toml of its run"):
        start_from(alone, taught, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CurateError, match="neither a model, an adapter nor a run"):
        start_from(tmp_path / "empty", taught, tmp_path / "run")
    assert not (tmp_path / "run").exists()
