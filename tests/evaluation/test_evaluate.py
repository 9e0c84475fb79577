"""A trained model is evaluated through lm-eval on tasks of a folder, without a network; skipped without lm-eval."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import InputError
from curate.model import artifact
from curate.results import files
from curate.results.files import Evaluation
from curate.schemas.conversation import Message
from curate.train.run.log import RunResult
from tests.support import small_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of other libraries
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: make check-real"),
]
COLOURS = ["red", "green", "blue", "white"]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: {target}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    root = tmp_path_factory.mktemp("evaluated")
    return small_runs.run(small_runs.taught_set(root / "data"), root / "run")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two tasks and a group of them, over three questions of the set and three others."""
    questions = [small_runs.QUESTION.format(number) for number in range(3)]
    questions += [f"Which colour would an old painter choose for the hull of boat {number}?" for number in range(3)]
    rows = [{"question": text, "choices": COLOURS, "answer": n % 4} for n, text in enumerate(questions)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, target in (("foxes", "answer"), ("owls", "!function own.target")):
        text = TASK.format(name=name, file=tmp_path / "items.jsonl", target=target)
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "own.py").write_text("def target(doc):\n    return doc['answer']\n")
    (tmp_path / "birds.yaml").write_text("group: birds\ntask: [foxes, owls]\n")
    return tmp_path


def refuse(*_: object, **__: object) -> None:
    raise OSError("the network was tried")


def test_tasks_of_a_folder_need_no_network_and_finished_ones_are_kept(
    run: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    said: list[str] = []

    def stop_at_the_second(text: str) -> None:
        if text.startswith("task 2"):
            raise KeyboardInterrupt

    def evaluate(names: Sequence[str], say: Callable[[str], None] = said.append) -> Any:
        return curate.evaluate(str(run.run), names, include=[str(folder)], shots=1, device="cpu", say=say)

    with pytest.raises(KeyboardInterrupt):
        evaluate(["foxes", "owls"], stop_at_the_second)
    result = evaluate(["birds"])
    assert (result.kept, [task.task for task in result.evaluation.tasks]) == (("foxes",), ["foxes", "owls"])
    assert files.read(result.path) == result.evaluation
    assert result.path.parent == run.run / "results"
    assert any("owls.yaml names Python functions (!function), which are run" in text for text in said)
    foxes, owls = result.evaluation.tasks
    assert (foxes.flagged, foxes.clean_items, foxes.unmatched, foxes.shots) == (("0", "1", "2"), 3, 0, 1)
    assert foxes.raw == pytest.approx(sum(foxes.item_scores) / 6)
    assert foxes.clean_raw == pytest.approx(sum(foxes.item_scores[3:]) / 3)
    assert foxes.item_scores == owls.item_scores
    assert result.evaluation.groups[0].members == {"foxes": ("foxes",), "owls": ("owls",)}
    assert evaluate(["foxes", "owls"]).kept == ("foxes", "owls")


def test_the_first_leaderboard_has_its_shots_and_all_tasks_of_its_groups(tmp_path: Path) -> None:
    from curate.evaluation import tasks

    (tmp_path / "items.jsonl").write_text(json.dumps({"question": "Who?", "choices": COLOURS, "answer": 0}) + "\n")
    for name in ("arc_challenge", "hellaswag", "truthfulqa_mc2", "winogrande", "gsm8k", "mmlu_one", "mmlu_two"):
        text = TASK.format(name=name, file=tmp_path / "items.jsonl", target="answer")
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "some.yaml").write_text("group: mmlu_some\ntask: [mmlu_one]\n")
    (tmp_path / "mmlu.yaml").write_text("group: mmlu\ntask: [mmlu_some, mmlu_two]\n")
    loaded = tasks.load(["openllm"], [str(tmp_path)], shots=None, seed=1, say=lambda text: None)
    shots = {name: task.get_config("num_fewshot") for name, task in loaded.tasks.items()}
    assert list(shots.values()) == [25, 10, 0, 5, 5, 5, 5]
    assert loaded.groups[0].members["mmlu"] == ("mmlu_one", "mmlu_two")
    assert list(loaded.groups[0].members) == list(tasks.OPENLLM)
    (tmp_path / "broken.yaml").write_text("group: broken\ntask:\n  - task: mmlu\n    num_fewshot: 5\n")
    with pytest.raises(InputError, match="sets options for 'mmlu', which is no task"):
        tasks.load(["broken"], [str(tmp_path)], shots=None, seed=1, say=lambda text: None)


def test_the_prompt_has_the_ids_of_training(run: RunResult) -> None:
    from curate.evaluation import language_model

    found = artifact.find_artifact(str(run.run))
    serving, tokenizer = language_model.prompt_format(found, None, None, lambda text: None)
    assert serving is not None
    model = language_model.load_model(found, lambda text: None, "cpu")
    asked = language_model.LanguageModel(model, tokenizer, is_chat=True, batch=1)
    chat = [Message("user", "What colour?"), Message("assistant", "Red."), Message("user", "  And\nthe dog?")]
    text = asked.apply_chat_template([{"role": each.role, "content": each.content} for each in chat])
    expected = artifact.renderer_for(serving).generation_prompt(chat)
    assert asked.tok_encode(text) == expected.tolist()


def test_a_task_that_is_unknown_or_needs_the_hub_gets_one_line(
    run: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no task 'foxs'; did you mean 'foxes'"):
        curate.evaluate(str(run.run), ["foxs"], include=[str(folder)])
    text = (folder / "foxes.yaml").read_text().replace("foxes", "far").replace("path: json", "path: nobody/nothing")
    (folder / "far.yaml").write_text("\n".join(line for line in text.splitlines() if "dataset_kwargs" not in line))
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(InputError, match="'far' cannot be loaded") as caught:
        curate.evaluate(str(run.run), ["far"], include=[str(folder)])
    assert "\n" not in str(caught.value)
    assert isinstance(files.paths(run.run / "results"), list)


def test_a_model_that_is_no_run_needs_a_folder(run: RunResult, folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(run.run / "model")
    with pytest.raises(InputError, match="--output FOLDER"):
        curate.evaluate(str(moved), ["foxes"], include=[str(folder)])
    result = curate.evaluate(
        str(moved), ["foxes"], tmp_path / "out", include=[str(folder)], limit=2, chat_template=False, device="cpu"
    )
    assert isinstance(result.evaluation, Evaluation)
    assert result.evaluation.tasks[0].items == 2
    assert "not in the folder of a run" in result.evaluation.contamination.problem
