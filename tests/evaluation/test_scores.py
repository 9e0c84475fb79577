"""Scores of tasks and groups: which metric counts, what is left without trained items, and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from curate.evaluation.contamination import Found
from curate.evaluation.scoring import TaskFacts, normalise, score_task
from curate.results.groups import group_rows
from tests.support.evaluations import evaluation, task


def samples(*metrics: dict[str, Any], choices: int = 4) -> list[dict[str, Any]]:
    """Return what lm-eval logs of documents with these metrics."""
    return [
        {"doc_id": id, "filter": "none", "metrics": list(each), "arguments": [()] * choices, **each}
        for id, each in enumerate(metrics)
    ]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def facts(name: str = "foxes", is_choice: bool = True) -> TaskFacts:
    return TaskFacts(name, "1.0", "c", "d", 0, is_choice, {})


@pytest.mark.parametrize(
    ("score", "random", "expected"),
    [(0.69, 0.3, 0.557), (0.25, 0.25, 0.0), (0.1, 0.25, 0.0), (1.0, 0.25, 1.0), (0.4, 0.0, 0.4), (None, 0.5, None)],
)
def test_guessing_gets_nothing(score: float | None, random: float, expected: float | None) -> None:
    assert normalise(score, random) == pytest.approx(expected, abs=1e-3)


def test_items_that_are_flagged_or_could_not_be_looked_for_do_not_count_as_clean() -> None:
    logged = samples({"acc": 1.0}, {"acc": 1.0}, {"acc": 0.0}, {"acc": 0.0}, {"acc": 1.0})
    found = Found(flagged=frozenset({"0", "9"}), unmatched=frozenset({"3"}))
    scores = score_task(facts(), logged, {"acc,none": 0.6, "acc_stderr,none": 0.2}, {"acc": mean}, found)
    assert (scores.raw, scores.stderr, scores.items) == (0.6, 0.2, 5)
    assert scores.clean_raw == pytest.approx(2 / 3)
    assert (scores.clean_items, scores.flagged, scores.unmatched) == (3, ("0",), 1)
    assert scores.random == 0.25
    assert scores.normalised == pytest.approx((0.6 - 0.25) / 0.75)
    assert scores.item_scores == (1.0, 1.0, 0.0, 0.0, 1.0)


def test_without_a_training_set_nothing_is_clean_and_nothing_flagged() -> None:
    scores = score_task(facts(), samples({"acc": 1.0}), {"acc,none": 1.0}, {"acc": mean}, None)
    assert (scores.clean_raw, scores.clean_items, scores.flagged, scores.unmatched) == (None, 0, (), 0)


@pytest.mark.parametrize(
    ("metrics", "main", "random"),
    [
        ({"acc": 0.0, "acc_norm": 1.0}, ("acc_norm,none",), 0.25),
        ({"acc": 1.0, "acc_mutual_info": 1.0}, ("acc,none",), 0.5),
        ({"exact_match": 1.0}, ("exact_match,none",), 0.0),
        (
            {"prompt_level_strict_acc": True, "inst_level_strict_acc": [True, False]},
            ("prompt_level_strict_acc,none", "inst_level_strict_acc,none"),
            0.0,
        ),
    ],
)
def test_the_metric_that_counts_is_the_leaderboards(
    metrics: dict[str, Any], main: tuple[str, ...], random: float
) -> None:
    results = {f"{name},none": 0.5 for name in metrics}
    scores = score_task(facts(), samples(metrics), results, {}, Found())
    assert (scores.main, scores.random, scores.raw) == (main, random, 0.5)


def test_mmlu_pro_counts_ten_choices_as_the_leaderboard_did() -> None:
    scores = score_task(facts("leaderboard_mmlu_pro"), samples({"acc": 1.0}), {"acc,none": 0.5}, {}, Found())
    assert scores.random == 0.1


def test_a_number_that_is_none_leaves_a_gap_and_no_damage() -> None:
    scores = score_task(facts(), samples({"acc": float("nan")}), {"acc,none": float("nan")}, {"acc": mean}, Found())
    assert (scores.raw, scores.clean_raw, scores.item_scores) == (None, None, ())


def test_a_group_is_the_mean_of_its_members_and_a_member_that_of_its_tasks() -> None:
    tasks = [task("a", 0.2, 0.1), task("b", 0.4, 0.3), task("c", 0.9, 0.8)]
    ((group, members),) = group_rows(evaluation(tasks, {"board": {"ab": ["a", "b"], "c": ["c"]}}))
    assert [member.raw for member in members] == pytest.approx([0.3, 0.9])
    assert (group.raw, group.normalised) == pytest.approx((0.6, 0.5))


def test_a_group_without_one_of_its_tasks_has_no_score() -> None:
    ((group, _),) = group_rows(evaluation([task("a", 0.2)], {"board": {"a": ["a"], "b": ["b"]}}))
    assert group.raw is None
