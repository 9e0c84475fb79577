"""A model on this machine: a tiny one that knows one talk by heart; and a released one (make check-real)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

for name in ("httpx", "rapidfuzz", "starlette", "uvicorn", "torch"):
    pytest.importorskip(name)

import torch

import curate
from curate.cli.progress.generate import progress_line
from curate.generation.run import State
from curate.schemas import formats
from tests.support import tiny_runs
from tests.support.released_model import needs_released_model, released_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # what peft asks
]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_local_model_answers_as_it_learned(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model, (prompt, answer) = tiny_runs.run(tmp_path / "run"), [each.content for each in tiny_runs.TALK[:2]]
    (tmp_path / "prompts.txt").write_text(f"{prompt}\n{prompt}\n")
    settings: dict[str, Any] = {"answer_temperature": 0.0, "reply_tokens": 40, "device": "cpu", "dtype": "fp32"}
    states: list[str] = []

    def watch(state: State) -> None:
        states.append(progress_line(state))

    result = curate.generate(
        "answers", str(model), tmp_path / "out.jsonl", prompts=tmp_path / "prompts.txt", watch=watch, **settings
    )
    assert result.accepted == 2 and states[-1].startswith("2 of 2 conversations")
    for record in read(tmp_path / "out.jsonl"):
        assert [each["content"] for each in record["messages"]] == [prompt, answer]
        assert record["generation"]["model"] == str(model)


@needs_released_model()
def test_a_released_model_writes_prompts_and_answers_them(tmp_path: Path) -> None:
    model = str(released_model())
    result = curate.generate(
        "magpie", model, tmp_path / "out.jsonl", count=2, reply_tokens=60, max_calls=16, temperature=0.8,
        answer_temperature=0.0, device="cpu", dtype="fp32",
    )  # fmt: skip
    records = read(tmp_path / "out.jsonl")
    assert len(records) == result.accepted and result.calls <= 16
    assert result.accepted + sum(result.dropped.values()) >= 2
    for record in records:
        assert [each.role for each in formats.parse(record).messages] == ["user", "assistant"]
        assert not any("<|im_" in each["content"] for each in record["messages"])
