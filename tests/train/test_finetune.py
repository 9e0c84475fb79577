"""A fine-tune from the set to an answer: what it learns, writes and prints, in the shell and in Python."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from rich.console import Console
from rich.live import Live

import curate
from curate.cli import cli
from curate.cli.progress import finetune as finetune_progress
from curate.errors import CurateError, PlanError, RecipeError, RunError
from curate.train import config
from curate.train.run import events, records
from tests.cli.test_cli import curate_in
from tests.support import ROOT
from tests.support.small_runs import ANSWER, COLOURS, QUESTION, SHORT, EventLog, losses, run, taught_set
from tests.support.tiny_tokenizers import folder, sentencepiece_model


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_set(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_set(tmp_path_factory.mktemp("held"), held_out=4)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["finetune", *arguments], prog_name="curate")


def flags(*settings: str) -> list[str]:
    return [word for setting in (*SHORT, *settings) for word in ("--setting", setting)]


def test_tiny_learns_a_small_set_by_heart_and_chat_repeats_its_answers(tmp_path: Path) -> None:
    data = taught_set(tmp_path, 5)
    result = run(data, tmp_path / "run", lr=6e-3, global_batch=5, max_steps=90, settings=("optimizer.warmup=0.1",))
    step_losses = losses(tmp_path / "run")
    assert step_losses[0] > 5.5  # close to guessing among 420 tokens: ln 420 is 6.04
    assert result.loss == step_losses[-1]
    assert step_losses[-1] < 0.1
    talk = curate.chat(str(tmp_path / "run"), temperature=0.0, max_new_tokens=60)
    for number in range(5):
        assert talk.ask(QUESTION.format(number)) == ANSWER.format(number, COLOURS[number])
        assert talk.last is not None and talk.last.stopped
        talk.reset()


def test_a_run_writes_the_documented_files(held_out: Path, tmp_path: Path) -> None:
    event_log = EventLog()
    result = run(held_out, tmp_path / "run", on_event=event_log)
    logged = records.read(result.run)
    assert (result.status, result.step, len(logged.metrics)) == ("finished", 6, 6)
    assert {path.name for path in result.run.iterdir()} >= {
        *(records.CONFIG, records.PLAN, records.FACTS, records.METRICS, records.EVAL, records.SAMPLES),
        *(records.LEFT_OUT, records.MASKED, "checkpoints", "model", "report.html"),
    }
    keys = {"step", "loss", "lr", "tokens", "supervised", "seconds", "tokens_per_s", "mfu", "gib"}
    assert all(keys <= set(row) for row in logged.metrics)
    assert all(row["tokens"] >= row["supervised"] > 0 and row["tokens_per_s"] > 0 for row in logged.metrics)
    assert logged.facts["status"] == "finished"
    assert logged.facts["data"]["conversations"] == 8
    assert result.base is not None and result.tuned is not None
    assert result.base.overall.examples == 4
    assert logged.evaluation("base") is not None and logged.evaluation("tuned") is not None
    assert {row["which"] for row in logged.samples} == {"base", "tuned"}
    assert logged.answers()[0][0] is not None  # base and tuned side by side
    assert config.load(result.run / records.CONFIG).train.max_steps == 6
    kinds = [type(event).__name__ for event in event_log if not isinstance(event, events.Reported)]
    assert kinds[:5] == ["Rendered", "Planned", "Evaluated", "Sampled", "Started"]
    assert kinds.count("Stepped") == 6
    assert kinds[-1] == "Finished"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_training_an_adapter_leaves_the_base_unchanged(taught: Path, tmp_path: Path, method: str) -> None:
    size: dict[str, Any] = {} if method == "ia3" else {"rank": 4}
    result = run(taught, tmp_path / "run", method=method, lr=0.05, max_steps=12, **size)
    assert result.result == tmp_path / "run" / "adapter"
    assert result.plan.trained < result.plan.parameters
    step_losses = losses(tmp_path / "run")
    assert step_losses[-1] < step_losses[0]
    assert isinstance(curate.chat(str(result.run), max_new_tokens=4).ask("What colour is fox 1?"), str)


def test_shell_and_python_take_the_same_steps(taught: Path, tmp_path: Path) -> None:
    run(taught, tmp_path / "python", max_steps=3)
    arguments = ["--model", "tiny", "--global-batch", "4", "--max-steps", "3", "--seed", "1", "--device", "cpu"]
    done = invoke(str(taught), *arguments, *flags(), "--out", str(tmp_path / "shell"))
    assert done.exit_code == 0, done.output
    assert losses(tmp_path / "shell") == losses(tmp_path / "python")
    assert config.load(tmp_path / "shell" / records.CONFIG) == config.load(tmp_path / "python" / records.CONFIG)
    steps = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(steps) == 3
    for name in ("loss", "lr", "norm", "tokens/s", "MFU", "memory", "data", "ETA"):
        assert f" {name} " in steps[0]
    assert "next" in done.stdout and "curate chat" in done.stdout
    assert "step 1/3" not in done.stdout


def test_losses_depend_on_the_seed(taught: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(taught, tmp_path / name, max_steps=2, seed=seed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


# ---- the plan alone


def test_a_dry_run_prints_the_plan_and_writes_nothing(taught: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = invoke(str(taught), "--model", "tiny", "--dry-run", "--out", str(out), "--device", "cpu")
    assert done.exit_code == 0, done.output
    for name in ("model", "rows", "steps", "memory", "time", "disk", "because"):
        assert any(line.startswith(name) for line in done.stdout.splitlines()), name
    assert not out.exists()
    printed = invoke(str(taught), "--model", "tiny", "--dry-run", "--json", "--device", "cpu")
    printed_plan = json.loads(printed.stdout)
    assert printed_plan["status"] == "planned"
    assert printed_plan["plan"]["conversations"] == 12


def test_the_plan_counts_the_pieces_of_a_set_as_its_manifest_does(tmp_path: Path) -> None:
    turns = [{"from": side, "value": f"{side} turn {turn}"} for turn in range(6) for side in ("human", "gpt")]
    dump = tmp_path / "dump.json"
    dump.write_text(json.dumps([{"id": "long", "conversations": turns}]))
    tokenizer = folder(tmp_path / "tokenizer", tokenizer_model=sentencepiece_model())
    cleaned = curate.clean(dump, tmp_path / "set", tokenizer=str(tokenizer), template="plain", max_tokens=96)
    counts = cleaned.manifest.counts
    assert (counts.kept, counts.pieces) == (1, 2)
    done = invoke(str(tmp_path / "set"), "--model", "tiny", "--dry-run", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "1 conversation in 2 pieces, none held out" in " ".join(done.stdout.split())


def test_a_plan_that_cannot_fit_is_refused_before_anything_is_written(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="what would fit"):
        run(taught, tmp_path / "run", settings=("train.memory_gib=0.1",))
    assert not (tmp_path / "run").exists()
    done = invoke(str(taught), "--model", "tiny", "--dry-run", "--setting", "train.memory_gib=0.1", "--device", "cpu")
    assert done.exit_code == 1
    assert "this does not fit the memory" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: this run needs")


# ---- settings


def test_flags_override_the_preset(taught: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[train]\nepochs = 7.0\n[optimizer]\nschedule = "constant"\n')
    result = curate.finetune(taught, model="tiny", preset=mine, dry_run=True, device="cpu", global_batch=6)
    assert result.plan.steps.epochs == 7.0
    with pytest.raises(RecipeError, match="did you mean 'vicuna-7b'"):
        curate.finetune(taught, model="tiny", preset="vicuna7b")
    with pytest.raises(RecipeError, match=r"did you mean 'epochs'"):
        curate.finetune(taught, model="tiny", settings=["train.epoch=2"])


def test_presets_are_listed_and_printed() -> None:
    listed = CliRunner().invoke(cli, ["presets"])
    assert all(name in listed.stdout for name in config.PRESETS.summaries())
    printed = CliRunner().invoke(cli, ["presets", "vicuna-7b"])
    assert printed.stdout == config.PRESETS.source("vicuna-7b")
    assert (
        json.loads(CliRunner().invoke(cli, ["presets", "vicuna-7b", "--json"]).stdout)["train"]["global_batch"] == 128
    )


def test_without_the_training_extra_the_error_says_what_to_install(taught: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    done = curate_in(tmp_path, "finetune", str(taught), "--model", "tiny", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 1
    typed = f"pip install -e {shlex.quote(f'{ROOT}[train]')}"
    assert done.stderr == f"error: curate finetune needs the extra [train]: {typed}\n"


# ---- on a terminal


def stepped(step: int, loss: float) -> events.Stepped:
    return events.Stepped(step, 9, 0.5, loss, 1e-3, 0.7, 400, 200, 0.5, 800.0, 0.41, 2.5, 0.003, 83.0)


def test_the_panel_shows_the_results_of_a_step(taught: Path, tmp_path: Path) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with Live(console=screen, auto_refresh=False) as live:
        panel = finetune_progress.Panel(live)
        run(taught, tmp_path / "run", max_steps=1, on_event=panel)
        panel(stepped(3, 1.25))
        panel(events.Warned("memory ran out"))
    text = screen.export_text()
    for part in ("curate finetune tiny", "step 3 of 9", "1.2500", "800", "41.0 %", "2.50 GiB", "0.3 %", "ETA 1:23 min"):
        assert part in text, part
    assert "warning: memory ran out" in text
    assert "because" in text  # the plan, above


def test_the_panel_cuts_no_figure_on_a_narrow_terminal() -> None:
    step = events.Stepped(
        123_456, 234_567, 2.34, 12.3456, 1e-5, 0.1234, 400, 200, 0.5, 1_234_567, 0.41, 139.8, 0.003, 8e4
    )
    screen = Console(file=io.StringIO(), width=80, record=True)
    with Live(console=screen, auto_refresh=False) as live:
        screen.print(finetune_progress.Panel(live).render(step))
    screen_words = screen.export_text().split()
    for part in ("123,456", "234,567", "12.3456", "1.00e-05", "0.1234", "1,234,567", "41.0", "139.8", "0.3", "22:13"):
        assert part in screen_words, part


def test_the_curve_falls_with_the_loss() -> None:
    assert finetune_progress.curve([]) == ""
    assert finetune_progress.curve([3.0]) == "▁"
    assert finetune_progress.curve([3.0, 2.0, 1.0]) == "█▅▁"
    assert len(finetune_progress.curve([float(n) for n in range(1000)])) == finetune_progress.CURVE


def test_the_folder_of_a_refused_run_can_be_reused(taught: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RecipeError, match="finite"):
        run(taught, out, lr=float("inf"))
    out.mkdir()
    for name in (".lock", "left-out.jsonl", "config.toml", "run.json"):
        (out / name).write_text("")
    assert run(taught, out, max_steps=1).status == "finished"
    used = tmp_path / "other"
    used.mkdir()
    (used / "config.toml").write_text("mine = true")
    with pytest.raises(RunError, match="has a run already"):
        run(taught, used)
    assert (used / "config.toml").read_text() == "mine = true"


def test_any_peft_method_is_planned_or_refused_before_weights_are_created(taught: Path, tmp_path: Path) -> None:
    result = run(taught, tmp_path / "a", method="peft", settings=(LOHA,), dry_run=True)
    trained = run(taught, tmp_path / "b", method="peft", settings=(LOHA,), max_steps=1)
    facts = json.loads((trained.run / records.FACTS).read_text())
    assert result.plan.trained == facts["trained_parameters"]
    for settings, problem in (((TUNING,), "no room"), (("method.targets=['nope']",), "no layer 'nope'")):
        method = "peft" if settings == (TUNING,) else "lora"
        with pytest.raises(RecipeError, match=problem):
            run(taught, tmp_path / "c", method=method, settings=settings, dry_run=True)
    assert not (tmp_path / "c").exists()


LOHA = "method.peft={peft_type='LOHA', r=4}"
TUNING = "method.peft={peft_type='PROMPT_TUNING', num_virtual_tokens=4}"


def test_a_run_that_is_refused_leaves_no_folder(taught: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    result = run(taught, tmp_path / "first", max_steps=1)
    assert result.result is not None
    shutil.copytree(result.result, weights)
    (weights / "model.safetensors").write_bytes(b"damaged")
    out = tmp_path / "runs" / "refused"
    for settings, flags in (
        (("train.memory_gib=0.1",), {}),  # the plan
        (("model.attention=flex",), {}),  # the device
        ((), {"max_tokens": 100_000}),  # the model's positions
        ((), {"template": "chatml", "max_tokens": 9}),  # nothing is left to train on
        ((), {"model": str(tmp_path / "nowhere")}),
        ((), {"model": str(weights)}),  # the weights, which are read last
    ):
        with pytest.raises(CurateError):
            run(taught, out, settings=settings, **flags)
        assert not out.exists(), (settings, flags)
    assert not list((tmp_path / "runs").glob("*"))


def test_torchrun_can_quote_the_error_of_a_run(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(PlanError):
        run(taught, tmp_path / "run", settings=("train.memory_gib=0.1",))
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(tmp_path / "error.json"))
    assert "this run needs" in str(failure.message)


def test_the_answers_that_did_not_end_are_said_to_be_cut_off(held_out: Path, tmp_path: Path) -> None:
    event_log = EventLog()
    run(held_out, tmp_path / "run", max_steps=1, on_event=event_log)
    sampled = event_log.of(events.Sampled)[0]
    assert not any(sample.stopped for sample in sampled.samples)
    count = len(sampled.samples)
    line = finetune_progress.event_line(sampled)
    assert line.endswith(f"0 of {count} ended with a stop token, {count} cut off after 3 tokens (eval.max_new_tokens)")


def test_rendering_shows_its_rate_and_the_time_left() -> None:
    event = events.Rendered(250, 1_000, 5.0)
    assert finetune_progress.render_line(event) == "25 % · 50 pieces/s · 15 s left"
    screen = Console(file=io.StringIO(), width=80, record=True)
    screen.print(finetune_progress.render_bar(event))
    text = screen.export_text()
    assert "rendering and proving" in text and "15 s left" in text


def test_the_plan_for_another_machine_sums_up_its_memory(taught: Path) -> None:
    done = invoke(str(taught), "--model", "tiny", "--for", "2x rtx 4090", "--method", "lora")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    total, parts = re.search(r"memory ([\d.]+) GiB of [\d.]+: (.*?) time ", words).groups()  # type: ignore[union-attr]
    assert sum(Decimal(part.rpartition(" ")[2]) for part in parts.split(" + ")) == Decimal(total)
    assert "2 × RTX 4090" in words and "assumed, not measured" in words
    assert "/nvidia-ada-gpu-architecture.pdf" in "".join(done.stdout.split())
    refused = invoke(str(taught), "--model", "tiny", "--for", "rtx 4091")
    assert refused.exit_code == 1 and "did you mean 'rtx-4090'" in refused.stderr
    assert invoke(str(taught), "--model", "tiny", "--prove").exit_code == 2
