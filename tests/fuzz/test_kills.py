"""Kill `clean` and training at random moments: a set stays whole, and a resumed run has the same losses."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import curate
from curate.train.finetune import finetune
from curate.train.run import records
from tests.fuzz.effort import seeds
from tests.pipeline.test_clean import chat, digests
from tests.support.small_runs import losses, run, taught_set

pytestmark = pytest.mark.slow

STEPS = 8
KILLS_IN_A_ROW = 2
SETTINGS = ("method.dropout=0.3", "optimizer.neftune=5.0", "checkpoint.steps=2")  # random states affect the losses
PROCESSES = multiprocessing.get_context("forkserver")  # a process that has imported what its children need
PROCESSES.set_forkserver_preload(["tests.fuzz.test_kills"])


def train(data: Path, out: Path) -> None:
    run(data, out, settings=SETTINGS, method="lora", rank=4, lr=0.02, max_steps=STEPS)


def resume(out: Path) -> None:
    finetune(resume=out)


def clean(source: Path, target: Path, tokenizer: str) -> None:
    curate.clean(source, target, tokenizer=tokenizer, workers=2, force=True)


def duration(work: Callable[..., None], *arguments: Any) -> float:
    """Return the seconds that work takes in a process of its own."""
    process = PROCESSES.Process(target=work, args=arguments)
    began = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def kill(after: float, work: Callable[..., None], *arguments: Any) -> bool:
    """Do work in a process and kill it after some seconds; return whether it was killed before its end."""
    process = PROCESSES.Process(target=work, args=arguments)
    process.start()
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def kill_after_step(draw: random.Random, out: Path, work: Callable[..., None], *arguments: Any) -> bool:
    """Kill a training soon after a step that is drawn from those left, so that most kills hit; return as `kill`."""
    process = PROCESSES.Process(target=work, args=arguments)
    process.start()
    step = draw.randint(min(steps(out), STEPS - 1), STEPS - 1)
    while process.is_alive() and steps(out) < step:
        time.sleep(0.002)
    process.join(draw.uniform(0, 0.1 if step >= 0 else 3))  # before the first step: while it starts
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def steps(out: Path) -> int:
    """Return the number of steps that a run has logged; -1 before its log."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else -1


def test_a_killed_clean_leaves_the_earlier_set_or_the_new_one(tmp_path: Path, tiny_tokenizer: str) -> None:
    old, new, target = tmp_path / "old.jsonl", tmp_path / "new.jsonl", tmp_path / "set"
    for file, count in ((old, 5), (new, 2_000)):
        file.write_text("\n".join(json.dumps(chat(number, 4)) for number in range(count)))
    clean(old, target, tiny_tokenizer)
    before = digests(target)
    duration(clean, new, tmp_path / "whole", tiny_tokenizer)  # the first process waits for the imports of all
    lasts = duration(clean, new, tmp_path / "whole", tiny_tokenizer)
    after = digests(tmp_path / "whole")
    killed = 0
    for seed in seeds(2):
        killed += kill(random.Random(seed).uniform(0, 1.1) * lasts, clean, new, target, tiny_tokenizer)
        assert digests(target) in (before, after), seed
        curate.open_set(target)
        if digests(target) == after:
            clean(old, target, tiny_tokenizer)
            assert digests(target) == before, seed
    clean(old, target, tiny_tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == {"old.jsonl", "new.jsonl", "set", "whole"}
    print(f"{killed} kills of clean")


def test_a_killed_training_resumes_with_the_same_losses(tmp_path: Path) -> None:
    data, whole = taught_set(tmp_path / "taught", held_out=2), tmp_path / "whole"
    duration(train, data, tmp_path / "first")  # the first process waits for the imports of all
    duration(train, data, whole)
    killed = 0
    for seed in seeds(2):
        draw, out = random.Random(seed), tmp_path / f"run{seed}"
        work: Callable[..., None] = train
        arguments: tuple[Path, ...] = (data, out)
        for _ in range(KILLS_IN_A_ROW):
            killed += (was_killed := kill_after_step(draw, out, work, *arguments))
            if not was_killed:
                break
            if (out / records.CONFIG).exists():
                work, arguments = resume, (out,)
        else:
            duration(work, *arguments)
        assert losses(out) == losses(whole), seed
        assert [row["step"] for row in records.read(out).metrics] == list(range(1, STEPS + 1)), seed
        assert records.read(out).facts["status"] == "finished", seed
    print(f"{killed} kills of training")
