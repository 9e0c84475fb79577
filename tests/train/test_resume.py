"""An interrupted run continues with the same steps and bit-identical losses."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file

from curate.errors import CheckpointError, CurateError, RecipeError, RunError
from curate.train import checkpoint
from curate.train.finetune import finetune
from curate.train.run import events, records
from curate.train.run import folder as run_folder
from tests.support.small_runs import SHORT, EventLog, losses, run, taught_set

ROOT = Path(__file__).parents[2]
STEPS = 10
# Dropout and noise, so that random states affect the losses.
DRAWN = ("method.dropout=0.3", "optimizer.neftune=5.0")
LORA = {"method": "lora", "rank": 4, "lr": 0.02, "max_steps": STEPS}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_set(tmp_path_factory.mktemp("taught"), held_out=2)


@pytest.fixture(scope="module")
def finished(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(taught, folder, settings=DRAWN, **LORA)
    return folder


@pytest.fixture(scope="module")
def expected_losses(finished: Path) -> list[float]:
    """Return the losses of the uninterrupted run."""
    return losses(finished)


@pytest.fixture(scope="module")
def stopped(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same run, stopped after step 6 with full checkpoints of steps 3 and 6; tests resume copies of it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stopped_at(taught, folder, 6, "checkpoint.steps=3", "checkpoint.full_states=2")
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a fine-tune in its own process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "curate", "finetune", "--device", "cpu", *arguments]
    return subprocess.Popen(
        line, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def arguments_of(data: Path, out: Path, *settings: str) -> list[str]:
    settings_arguments = [word for setting in (*SHORT, *DRAWN, *settings) for word in ("--setting", setting)]
    flags = ["--model", "tiny", "--method", "lora", "--rank", "4", "--lr", "0.02", "--seed", "1"]
    return [str(data), *flags, "--global-batch", "4", "--max-steps", str(STEPS), "--out", str(out), *settings_arguments]


def wait_for_steps(process: subprocess.Popen[str], out: Path, count: int) -> None:
    until = time.monotonic() + 120
    while len(losses(out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


# ---- killed


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_resumes_with_the_same_losses(
    taught: Path, tmp_path: Path, expected_losses: list[float]
) -> None:
    chance = random.Random()
    after, pause = chance.randrange(1, STEPS - 1), chance.random() * 0.2
    out = tmp_path / "run"
    process = start(tmp_path, *arguments_of(taught, out, "checkpoint.steps=2"))
    wait_for_steps(process, out, after)
    time.sleep(pause)
    process.kill()
    process.communicate()
    moment = f"killed {pause:.3f} s after step {after}"
    assert records.read(out).facts["status"] == "running", moment
    resumed = start(tmp_path, "--resume", str(out))
    _, errors = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, (moment, errors)
    assert losses(out) == expected_losses, moment
    steps = [row["step"] for row in records.read_lines(out / records.METRICS)]
    assert steps == list(range(1, STEPS + 1)), moment
    assert records.read(out).facts["status"] == "finished"


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_restarts(
    taught: Path, tmp_path: Path, expected_losses: list[float]
) -> None:
    class Killed(Exception):
        pass

    def kill(event: Any) -> None:
        if isinstance(event, events.Stepped) and event.step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(taught, tmp_path / "run", settings=DRAWN, on_event=kill, **LORA)
    event_log = EventLog()
    finetune(resume=tmp_path / "run", device="cpu", on_event=event_log)
    assert any("has no checkpoint yet" in warned.text for warned in event_log.of(events.Warned))
    assert losses(tmp_path / "run") == expected_losses
    looks = [
        (row["step"], row["which"], str(row["messages"]))
        for row in records.read_lines(tmp_path / "run" / records.SAMPLES)
    ]
    assert len(looks) == len(set(looks)), "what was looked at before the kill is not there twice"


# ---- asked to stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_saves_and_exits_and_the_run_continues(
    taught: Path, tmp_path: Path, expected_losses: list[float], number: int
) -> None:
    def ask(event: Any) -> None:
        if isinstance(event, events.Stepped) and event.step == 4:
            os.kill(os.getpid(), number)

    stopped = run(taught, tmp_path / "run", settings=DRAWN, on_event=ask, **LORA)
    assert (stopped.status, stopped.step, stopped.signal) == ("stopped", 4, number)
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["step-000004"]
    assert "--resume" in records.read(stopped.run).facts["status"]
    result = finetune(resume=tmp_path / "run", device="cpu")
    assert result.status == "finished"
    assert losses(tmp_path / "run") == expected_losses


@pytest.mark.slow
def test_sigterm_exits_with_143_and_says_how_to_resume(taught: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(tmp_path, *arguments_of(taught, out))
    wait_for_steps(process, out, 2)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"curatefinetune--resume{out}" in "".join(printed.split())  # wrapped at the edge of the screen
    step = len(losses(out))
    assert checkpoint.checkpoints(out)[0].name == f"step-{step:06}"


def test_an_ignored_signal_as_under_nohup_stops_nothing(taught: Path, tmp_path: Path) -> None:
    def hang_up(event: Any) -> None:
        if isinstance(event, events.Stepped) and event.step == 1:
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = run(taught, tmp_path / "run", on_event=hang_up, max_steps=2)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.status, result.step) == ("finished", 2)


# ---- checkpoints on disk


def stopped_at(data: Path, out: Path, step: int, *settings: str, **flags: Any) -> None:
    def ask(event: Any) -> None:
        if isinstance(event, events.Stepped) and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    run(data, out, settings=(*DRAWN, *settings), on_event=ask, **{**LORA, **flags})


def damage(folder: Path) -> None:
    file = next(folder.glob("weights-*"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(
    stopped: Path, tmp_path: Path, expected_losses: list[float]
) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    newest, before = checkpoint.checkpoints(out)
    damage(newest)
    event_log = EventLog()
    finetune(resume=out, device="cpu", on_event=event_log)
    [warned] = event_log.of(events.Warned)
    assert newest.name in warned.text and "SHA-256" in warned.text
    assert event_log.of(events.Started)[0].step == 3
    assert before.name == "step-000003"
    assert losses(out) == expected_losses


def test_with_only_weights_left_the_run_is_refused_before_loading(taught: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped_at(taught, out, 6, "checkpoint.steps=3")
    newest, before = checkpoint.checkpoints(out)
    assert {path.name.split("-")[0] for path in before.iterdir()} == {"manifest.json", "state.json", "weights"}
    damage(newest)
    event_log = EventLog()
    with pytest.raises(CheckpointError, match=f"{before.name}.*has weights but not.*--init"):
        finetune(resume=out, device="cpu", on_event=event_log)
    assert not event_log.of(events.Planned)


def test_the_last_checkpoints_are_kept_and_one_full_state(taught: Path, tmp_path: Path) -> None:
    run(taught, tmp_path / "run", settings=("checkpoint.steps=2", "checkpoint.keep=3"), max_steps=10)
    paths = checkpoint.checkpoints(tmp_path / "run")
    assert [path.name for path in paths] == ["step-000010", "step-000008", "step-000006"]
    assert [checkpoint.load(path).optimizer is not None for path in paths] == [True, False, False]


@pytest.mark.slow
def test_a_full_disk_during_a_save_keeps_earlier_checkpoints(
    taught: Path, tmp_path: Path, expected_losses: list[float]
) -> None:
    out = tmp_path / "run"
    limit = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); "  # fails like a full disk, with EFBIG
    )
    stopped_at(taught, out, 4)
    before = {path: path.stat().st_size for path in checkpoint.checkpoints(out)[0].iterdir()}
    code = limit.format(200_000) + "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "import sys; from curate.cli import main; sys.argv[1:] = {0!r}; main()"
    arguments = ["finetune", "--resume", str(out), "--device", "cpu", "--setting", "checkpoint.steps=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code.format(arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "step-000006" in done.stderr.splitlines()[-1] and "was not written" in done.stderr.splitlines()[-1]
    assert {path: path.stat().st_size for path in checkpoint.checkpoints(out)[0].iterdir()} == before
    assert "was not written" in records.read(out).facts["status"]
    finetune(resume=out, device="cpu")
    assert losses(out) == expected_losses


# ---- refusals


def test_only_settings_without_effect_on_the_loss_can_change(stopped: Path, tmp_path: Path) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"learning_rate was 0\.02, is 0\.5.*--init"):
        finetune(resume=out, lr=0.5, device="cpu")
    result = finetune(resume=out, device="cpu", settings=("checkpoint.keep=1", "eval.samples=0"))
    assert result.status == "finished"


def test_another_set_is_refused(tmp_path: Path) -> None:
    data = taught_set(tmp_path)
    out = tmp_path / "run"
    stopped_at(data, out, 2)
    taught_set(tmp_path, 13)
    with pytest.raises(CheckpointError, match="the data has changed since the run started"):
        finetune(resume=out, device="cpu")


def test_an_adapter_is_not_continued_on_a_base_that_has_changed(taught: Path, finished: Path, tmp_path: Path) -> None:
    base = shutil.copytree(finished / "adapter" / "base", tmp_path / "base")
    stopped_at(taught, tmp_path / "run", 1, model=str(base))
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has changed since the run started: .* other weights"):
        finetune(resume=tmp_path / "run", device="cpu")


def test_a_finished_run_is_not_resumed(finished: Path) -> None:
    with pytest.raises(RunError, match="is finished"):
        finetune(resume=finished, device="cpu")


def test_a_folder_without_a_run_is_refused_and_the_latest_run_is_found(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="there is no run to resume"):
        finetune(resume=True, device="cpu")
    with pytest.raises(CurateError, match="is not a run"):
        finetune(resume="nowhere", device="cpu")
    for name, age in (("runs/old", 100), ("runs/new", 0)):
        shutil.copytree(stopped, name)
        for file in Path(name).iterdir():
            os.utime(file, (time.time() - age, time.time() - age))
    assert run_folder.find_resumable(None) == Path("runs/new")


def test_two_processes_cannot_continue_one_run(stopped: Path) -> None:
    with run_folder.lock(stopped), pytest.raises(RunError, match="another process is working"):
        finetune(resume=stopped, device="cpu")
