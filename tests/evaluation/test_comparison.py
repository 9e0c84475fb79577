"""Scores are compared only where both models were asked in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from curate.cli import cli
from curate.errors import InputError
from curate.evaluation.comparison import compare_evaluations, differences
from curate.results import files
from curate.results.files import Evaluation
from tests.support.evaluations import evaluation, task


def write(root: Path, name: str, *results: Evaluation) -> str:
    """Write results into the folder of a run."""
    for number, result in enumerate(results):
        files.write(root / name / files.FOLDER, str(number), result)
    return str(root / name)


def test_the_difference_has_the_error_of_paired_items(tmp_path: Path) -> None:
    one = write(tmp_path, "one", evaluation([task("a", 0.5)]))
    better = task("a", 0.75, item_scores=(1.0, 1.0, 1.0, 0.0))
    other = write(tmp_path, "other", evaluation([better, task("b", 0.1)]))
    compared = compare_evaluations(one, other)
    changes = np.array([0.0, 1.0, 0.0, 0.0])
    (row,) = compared.tasks
    assert row.difference == pytest.approx(0.25)
    assert row.stderr == pytest.approx(changes.std(ddof=1) / 2)
    assert compared.alone == ("b",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit": 10}, "limit none and 10"),
        ({"template_sha256": "b" * 64}, "chat template aaaaaaaa and bbbbbbbb"),
        ({"chat_template": False, "template_sha256": ""}, "chat template applied yes and no"),
        ({"fewshot_as_multiturn": False}, "examples as turns yes and no"),
        ({"lm_eval": "0.4.12"}, "version of lm-eval 0.4.13 and 0.4.12"),
        ({"batch": "1"}, "batch size 8 and 1"),
        ({"seed": 2}, "seed 1 and 2"),
    ],
)
def test_unlike_settings_are_refused_and_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    tasks = [task("a", 0.5)]
    one, other = write(tmp_path, "one", evaluation(tasks)), write(tmp_path, "other", evaluation(tasks, **changes))
    with pytest.raises(InputError, match="different ways") as caught:
        compare_evaluations(one, other)
    assert said in str(caught.value)
    assert said in compare_evaluations(one, other, unlike=True).unlike


def test_unlike_tasks_are_named() -> None:
    one, other = evaluation([task("a", 0.5)]), evaluation([task("a", 0.5, shots=5, items_sha256="1" * 64)])
    assert differences(one, other) == ["a: documents dddddddd and 11111111", "a: shots 0 and 5"]


def test_of_several_results_those_that_are_alike_are_compared(tmp_path: Path) -> None:
    one = write(tmp_path, "one", evaluation([task("a", 0.5)], limit=3), evaluation([task("a", 0.25)]))
    other = write(tmp_path, "other", evaluation([task("a", 0.5)]))
    assert compare_evaluations(one, other).tasks[0].difference == pytest.approx(0.25)


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    one = write(tmp_path, "one", evaluation([task("a", 0.5)]))
    other = write(tmp_path, "other", evaluation([task("a", 0.5)], limit=5))
    refused = CliRunner().invoke(cli, ["evaluate", "--compare", one, other])
    assert refused.exit_code == 1
    assert refused.output.startswith("error: ")
    assert refused.output.count("\n") == 1
    shown = CliRunner().invoke(cli, ["evaluate", "--compare", one, one])
    assert shown.exit_code == 0
    assert "50.0 %" in shown.output
    empty = CliRunner().invoke(cli, ["evaluate", "--compare", one, str(tmp_path)])
    assert "has no evaluation; make one: curate evaluate" in empty.output
