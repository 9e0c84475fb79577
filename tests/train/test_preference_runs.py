"""Runs on preference pairs: what they learn, log, evaluate and keep, exact resumption, and what is left out."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from click.testing import CliRunner
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import curate
from curate.arena.votes import VoteFile
from curate.cli import cli
from curate.errors import CurateError, RecipeError, UnsafePathError
from curate.pipeline import recipe
from curate.train import config
from curate.train.finetune import finetune
from curate.train.objectives import reference
from curate.train.report import html
from curate.train.run import events, records
from tests.support.small_runs import EventLog, losses, paired_set, run, taught_set

# Dropout, so that random states affect the losses; the first loss is ln 2 all the same, as a new adapter adds nothing.
LORA: dict[str, Any] = {"objective": "dpo", "method": "lora", "rank": 4, "lr": 0.02, "max_steps": 4}
SETTINGS = ("method.dropout=0.3", "checkpoint.steps=2", "eval.samples=0", "eval.prompts=[]")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paired_set(tmp_path_factory.mktemp("pairs"), 8, held_out=2)


@pytest.fixture(scope="module")
def finished(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(pairs, folder, settings=SETTINGS, **LORA)
    return folder


@pytest.fixture(scope="module")
def stopped(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same run, stopped after step 2; tests resume copies of it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    def stop(event: Any) -> None:
        if isinstance(event, events.Stepped) and event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    run(pairs, folder, settings=SETTINGS, on_event=stop, **LORA)
    return folder


def test_the_first_loss_is_ln_2_and_rewards_margins_and_both_losses_are_logged(finished: Path) -> None:
    history = records.read(finished)
    assert history.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(finished)[-1] < 0.69
    for row in history.metrics:
        assert set(records.PAIR_METRICS) <= set(row)
        assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-5)
        assert row["chosen_loss"] > 0 and row["rejected_loss"] > 0
    base, tuned = (history.evaluation(which) for which in ("base", "tuned"))
    assert base is not None and tuned is not None
    assert base["overall"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert base["overall"]["conversations"] == tuned["overall"]["conversations"] == 2
    assert {"accuracy", "margin"} <= set(tuned["overall"])
    assert sum(group["conversations"] for group in tuned["by_language"]) == 2
    assert [row["name"] for row in history.masked][:2] == ["fox0", "fox0 (rejected)"]
    assert history.facts["objective"] == "dpo"
    assert history.facts["data"]["conversations"] == 6
    page = html.render(history)
    assert "chosen reward" in page and "accuracy" in page


def test_a_stopped_run_continues_with_exactly_the_same_losses_and_its_kept_reference(
    stopped: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    event_log = EventLog()
    finetune(resume=tmp_path / "run", device="cpu", on_event=event_log)
    assert losses(tmp_path / "run") == losses(finished)
    assert not event_log.of(events.Warned)
    assert not any("computing the reference" in event.text for event in event_log.of(events.Reported))
    adapters = [load_file(folder / "adapter/adapter_model.safetensors") for folder in (tmp_path / "run", finished)]
    assert all((adapters[0][name] == adapters[1][name]).all() for name in adapters[1])


def run_until_killed(pairs: Path, folder: Path) -> None:
    """Run until this process is killed after step 3, with a checkpoint of step 2."""

    def kill(event: Any) -> None:
        if isinstance(event, events.Stepped) and event.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    run(pairs, folder, settings=SETTINGS, on_event=kill, **LORA)


@pytest.mark.slow
def test_a_killed_run_continues_with_exactly_the_same_losses(pairs: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = multiprocessing.get_context("spawn").Process(target=run_until_killed, args=(pairs, folder))
    process.start()
    process.join(timeout=240)
    assert process.exitcode == -signal.SIGKILL
    assert records.read(folder).facts["status"] == "running"
    finetune(resume=folder, device="cpu")
    assert losses(folder) == losses(finished)
    assert [row["step"] for row in records.read_lines(folder / records.METRICS)] == [1, 2, 3, 4]
    adapters = [load_file(path / "adapter/adapter_model.safetensors") for path in (folder, finished)]
    assert all((adapters[0][name] == adapters[1][name]).all() for name in adapters[1])


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def rename_key(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "key": "0" * 64})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flip_byte, "it is damaged"),
        (lambda path: path.write_bytes(b"{"), "it is damaged"),
        (lambda path: save_file({"train": np.zeros(3)}, path), "it is damaged"),
        (lambda path: path.write_bytes(b""), "it is damaged"),
        (rename_key, "it belongs to another model or other examples"),
    ],
    ids=["a changed byte", "no safetensors", "other tensors", "empty", "another key"],
)
def test_a_reference_is_read_only_if_it_is_whole_and_the_runs_own(
    tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    kept = reference.Reference(np.array([-1.5, -2.0]), np.array([]))
    reference.write(tmp_path, kept, "mine")
    assert (reference.read(tmp_path, "mine").train == kept.train).all()
    change(tmp_path / reference.FILE)
    with pytest.raises(reference.UnusableReference, match=reason):
        reference.read(tmp_path, "mine")


@pytest.mark.slow
@pytest.mark.parametrize("change", [flip_byte, rename_key, Path.unlink], ids=["damaged", "of another run", "absent"])
def test_a_reference_that_is_not_the_runs_own_is_computed_again(
    stopped: Path, finished: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    path = tmp_path / "run" / reference.FILE
    change(path)
    event_log = EventLog()
    finetune(resume=tmp_path / "run", device="cpu", on_event=event_log)
    warned = [event.text for event in event_log.of(events.Warned) if "the reference is computed again" in event.text]
    assert len(warned) == (change is not Path.unlink)
    assert losses(tmp_path / "run") == losses(finished)  # of the model before the first step, not of the resumed one


@pytest.mark.slow
def test_an_earlier_result_is_the_reference_of_a_run_that_starts_from_it(pairs: Path, tmp_path: Path) -> None:
    run(pairs, tmp_path / "first", settings=SETTINGS[1:], **{**LORA, "objective": "sft", "max_steps": 2})
    further = {"objective": "dpo", "init": str(tmp_path / "first")}  # with the rank of that adapter
    for name, flags in (("base", LORA), ("further", further)):
        run(pairs, tmp_path / name, settings=SETTINGS[1:], **{**flags, "max_steps": 1})
        assert losses(tmp_path / name)[0] == pytest.approx(math.log(2), abs=1e-6)
    base, trained = (load_file(tmp_path / name / reference.FILE)["train"] for name in ("base", "further"))
    assert (np.abs(base - trained) > 0.01).all()


def test_a_reference_that_is_a_link_is_refused(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / reference.FILE).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / reference.FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError):
        finetune(resume=tmp_path / "run", device="cpu")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_two_pairs_are_told_apart_after_a_few_steps(tmp_path: Path, device: str) -> None:
    data = paired_set(tmp_path, 2)
    result = run(data, tmp_path / "run", objective="dpo", max_steps=10, settings=("eval.samples=0",), device=device)
    assert losses(result.run)[0] == pytest.approx(math.log(2), abs=0.02 if device == "cuda" else 1e-6)  # bf16
    last = records.read(result.run).metrics[-1]
    assert (last["accuracy"], result.loss) == (1.0, last["loss"])
    assert last["loss"] < 0.1


def test_a_pair_needs_no_more_than_a_row_of_its_own(tmp_path: Path) -> None:
    data = paired_set(tmp_path, 3, window=80)
    planned = finetune(data, model="tiny", objective="dpo", device="cpu", dry_run=True, settings=("data.packing=true",))
    load = planned.plan.load
    assert load.row_tokens > 80  # the sum of two sides, each of which fits the window
    assert load.examples == 3
    with pytest.raises(CurateError, match=f"row_tokens = 81 is too short.*row_tokens={load.row_tokens}"):
        finetune(data, model="tiny", objective="dpo", device="cpu", dry_run=True, settings=("data.row_tokens=81",))


def test_rows_without_a_pair_are_counted_and_named_and_a_set_without_one_is_refused(tmp_path: Path) -> None:
    some = paired_set(tmp_path / "some", 6)

    file = some / "conversations.parquet"
    table = pl.read_parquet(file)
    changed = pl.when(pl.col("id") == "fox4").then(None).otherwise(pl.col("rejected_answer"))
    table.with_columns(rejected_answer=changed).write_parquet(file)
    done = CliRunner().invoke(
        cli, ["finetune", str(some), "--model", "tiny", "--objective", "dpo", "--device", "cpu", "--dry-run"]
    )
    assert done.exit_code == 0, done.output
    assert "1 piece without a rejected answer is left out" in done.stdout
    assert "dpo" in done.stdout
    planned = finetune(some, model="tiny", objective="dpo", device="cpu", dry_run=True)
    assert (planned.facts["data"]["without_pair"], planned.facts["data"]["left_out"]) == (1, 0)
    none = taught_set(tmp_path / "none", 3)
    with pytest.raises(CurateError, match=r"no_pair 3.*no rejected answer.*preference data") as refused:
        finetune(none, model="tiny", objective="dpo", device="cpu", dry_run=True)
    assert "\n" not in str(refused.value)


def test_the_default_rate_of_dpo_is_a_fortieth_of_the_methods() -> None:
    rates = {
        kind: config.override(config.load("dpo"), {"method": {"kind": kind}}).learning_rate for kind in ("full", "lora")
    }
    assert rates == pytest.approx({"full": 5e-7, "lora": 5e-6})
    assert config.load("dpo").train.epochs == 1
    assert config.load().learning_rate == 2e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"loss": "last"}}, "data.loss = 'last' is for objective.kind = 'sft'"),
        ({"objective": {"kind": "dpo", "beta": 0.0}}, "objective.beta = 0 trains nothing"),
        ({"objective": {"kind": "orpo"}}, "orpo"),
        ({"objective": {"label_smoothing": 0.6}}, "label_smoothing"),
    ],
)
def test_settings_that_do_not_go_with_dpo_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config.override(config.load("dpo"), changes)


def test_the_run_is_named_after_its_objective() -> None:
    named = config.override(config.load("dpo"), {"model": {"name": "a/b"}})
    assert config.run_name(named) == "b-lora-dpo"


@pytest.mark.slow
def test_votes_of_the_arena_train_a_model(tmp_path: Path) -> None:
    with VoteFile(tmp_path / "votes.jsonl") as votes:
        for number, winner in enumerate(("model_a", "model_b", "tie")):
            chats = [
                [
                    {"role": "user", "content": f"Where does fox {number} live?"},
                    {"role": "assistant", "content": answer},
                ]
                for answer in (f"Fox {number} lives in the old forest.", f"Fox {number} is at home in the town.")
            ]
            sides = {"model_a": "one", "conversation_a": chats[0], "model_b": "two", "conversation_b": chats[1]}
            votes.append({**sides, "winner": winner})
    settings = recipe.from_dict({"name": "votes", "filters": {}})
    cleaned = curate.clean(tmp_path / "votes.jsonl", tmp_path / "set", recipe=settings)
    rows = pl.read_parquet(tmp_path / "set/conversations.parquet").drop_nulls("rejected_answer")
    assert [messages[-1]["content"] for messages in rows["messages"].to_list()] == [
        "Fox 0 lives in the old forest.",
        "Fox 1 is at home in the town.",
    ]
    assert cleaned.manifest.counts.read == 3
    result = run(tmp_path / "set", tmp_path / "run", objective="dpo", max_steps=8, settings=("eval.samples=0",))
    assert losses(result.run)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(result.run)[-1] < 0.6
