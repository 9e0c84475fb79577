"""Training, merging and chatting with an adapter print nothing of the libraries on standard error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.support.small_runs import taught_set

COMMANDS = """
import sys
from curate.cli import cli
for command in sys.argv[1:]:
    cli(command.splitlines(), standalone_mode=False)
"""
METHODS = {
    "lora": (),
    "dora": (),
    "qlora": (),
    "ia3": (),
    "peft": ('method.peft={peft_type = "LOHA"}',),
}
SETTINGS = ("eval.steps=2", "eval.max_new_tokens=4", "eval.samples=1", "data.row_tokens=192")


def errors_of(*command: str) -> list[str]:
    """Run Python and return its lines on standard error, except those of `chat` about cut answers."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if not line.startswith("(cut off after")]


def finetune(data: Path, out: Path, method: str) -> list[str]:
    settings = [f"--setting={setting}" for setting in (*SETTINGS, *METHODS[method])]
    short = ["--max-steps=4", "--global-batch=4", "--lr=5e-3", "--device=cpu", "--quiet"]
    return ["finetune", str(data), "--model=tiny", f"--method={method}", f"--out={out}", *short, *settings]


def chat(run: Path) -> list[str]:
    return ["chat", str(run), "--prompt=What is the time?", "--max-new-tokens=3", "--device=cpu"]


@pytest.mark.slow
def test_standard_error_is_empty_for_every_method_and_command(tmp_path: Path) -> None:
    data = taught_set(tmp_path / "taught", held_out=2)
    asked = []
    for method in METHODS:
        if method == "qlora":
            pytest.importorskip("bitsandbytes")
        run = tmp_path / method
        asked += [finetune(data, run, method), chat(run), ["merge", str(run), f"{run}-merged", "--device=cpu"]]
    assert errors_of("-c", COMMANDS, *map("\n".join, asked)) == []
    assert errors_of("-m", "curate", *chat(tmp_path / "lora")) == []  # imports the libraries in another order
