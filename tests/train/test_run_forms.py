"""Whole runs with each optimizer form and with 4-bit matrices, stopped and resumed, have bit-identical losses."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from curate.train.finetune import finetune
from curate.train.run import events, records
from tests.support.small_runs import losses, run, taught_set

STEPS = 6
RUNS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "8bit": ({"method": "full"}, ("optimizer.form=8bit",)),
    "8bit in bf16": ({"method": "full", "dtype": "bf16"}, ("optimizer.form=8bit", "optimizer.weight_decay=0.1")),
    "stochastic": ({"method": "full", "dtype": "bf16"}, ("optimizer.form=stochastic",)),
    "master in bf16": ({"method": "full", "dtype": "bf16"}, ("optimizer.form=master", "train.checkpointing=full")),
    "qlora": ({"method": "qlora", "rank": 4}, ("method.dropout=0.2",)),
    "ia3": ({"method": "ia3"}, ()),
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_set(tmp_path_factory.mktemp("taught"), held_out=2)


def stop_in_the_middle(event: events.Event) -> None:
    if isinstance(event, events.Stepped) and event.step == STEPS // 2:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # bitsandbytes' and peft's own
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_equals_an_uninterrupted_run(name: str, taught: Path, tmp_path: Path) -> None:
    flags, settings = RUNS[name]
    if flags["method"] == "qlora":
        pytest.importorskip("bitsandbytes")
    options: dict[str, Any] = {**flags, "max_steps": STEPS, "lr": 5e-3, "settings": ("eval.samples=0", *settings)}
    run(taught, tmp_path / "whole", **options)
    run(taught, tmp_path / "stopped", on_event=stop_in_the_middle, **options)
    assert len(losses(tmp_path / "stopped")) == STEPS // 2
    finetune(resume=tmp_path / "stopped", device="cpu")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert records.read(tmp_path / "stopped").facts["status"] == "finished"
    asked = [setting.partition("=")[2] for setting in settings if setting.startswith("optimizer.form")]
    plan = records.read(tmp_path / "whole").plan
    assert plan["optimizer_form"] == (asked[0] if asked else "master")
    assert plan["checkpointed_layers"] == (4 if "train.checkpointing=full" in settings else 0)
