"""From the results of each document to the scores of a task: all its items, those not trained on, and normalised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from curate.evaluation.contamination import Found
from curate.results.files import Score, TaskScores, mean

# The metrics that stand for a task, the first that it has: as both versions of the Open LLM Leaderboard choose. IFEval
# counts as the mean of its two strict metrics there.
MAIN = (
    ("acc_norm",),
    ("prompt_level_strict_acc", "inst_level_strict_acc"),
    ("acc",),
    ("exact_match",),
    ("pass@1",),
    ("f1",),
)
CHOICES = ("acc", "acc_norm")  # metrics for which guessing among the choices gets 1 / n
# The leaderboard took ten choices for all items of MMLU-Pro, though some have fewer.
RANDOM = {"leaderboard_mmlu_pro": 0.1}
STRICT = ("strict-match", "none")  # filters that are preferred to others
Sample = Mapping[str, Any]
Aggregate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class TaskFacts:
    """How a task was asked."""

    task: str
    version: str
    config_sha256: str
    items_sha256: str
    shots: int
    is_choice: bool  # whether the items are of multiple choice
    higher_is_better: Mapping[str, bool]


def score_task(
    facts: TaskFacts,
    samples: Sequence[Sample],
    results: Mapping[str, Any],
    aggregations: Mapping[str, Aggregate],
    found: Found | None,
) -> TaskScores:
    """Return the scores of a task; `results` are lm-eval's, by `METRIC,FILTER`. Without `found`, none are clean."""
    values = _values(samples)
    ids = list(dict.fromkeys(id for by_id in values.values() for id in by_id))
    dirty = frozenset(ids) if found is None else (found.flagged | found.unmatched) & frozenset(ids)
    clean = [id for id in ids if id not in dirty]
    metrics = [_score(key, by_id, clean, results, aggregations) for key, by_id in values.items()]
    main = _main(metrics, facts.higher_is_better)
    chosen = [each for each in metrics if f"{each.metric},{each.filter}" in main]
    guesses = _guesses(facts, samples, chosen)
    raw, clean_raw = mean([each.value for each in chosen]), mean([each.clean for each in chosen])
    random, clean_random = (mean([guesses[id] for id in some]) or 0.0 for some in (ids, clean))
    per_item = {id: mean([_finite(values[each.metric, each.filter].get(id)) for each in chosen]) for id in ids}
    complete = all(value is not None for value in per_item.values())
    return TaskScores(
        facts.task,
        facts.version,
        facts.config_sha256,
        facts.items_sha256,
        facts.shots,
        len(ids),
        tuple(metrics),
        main,
        raw,
        chosen[0].stderr if len(chosen) == 1 else None,
        random,
        normalise(raw, random),
        clean_raw,
        normalise(clean_raw, clean_random),
        len(clean),
        tuple(id for id in ids if found is not None and id in found.flagged),
        0 if found is None else len(found.unmatched & frozenset(ids)),
        tuple(ids) if complete else (),
        tuple(value for value in per_item.values() if value is not None) if complete else (),
    )


def normalise(score: float | None, random: float) -> float | None:
    """Return a score rescaled so that guessing gets 0: (score - random) / (1 - random), at least 0."""
    return None if score is None else max(0.0, (score - random) / (1 - random)) if random < 1 else 0.0


def _values(samples: Sequence[Sample]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the value of each document, by metric and filter."""
    values: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            values.setdefault((metric, sample["filter"]), {})[str(sample["doc_id"])] = sample[metric]
    return values


def _score(
    key: tuple[str, str],
    by_id: Mapping[str, Any],
    clean: Sequence[str],
    results: Mapping[str, Any],
    aggregations: Mapping[str, Aggregate],
) -> Score:
    metric, name = key
    kept = [by_id[id] for id in clean if id in by_id]
    aggregate = aggregations.get(metric, _plain_mean)
    return Score(
        metric,
        name,
        _finite(results.get(f"{metric},{name}")),
        _finite(results.get(f"{metric}_stderr,{name}")),
        _aggregate(aggregate, kept),
    )


def _aggregate(aggregate: Aggregate, values: list[Any]) -> float | None:
    """Return the metric of these documents; None if there are none, or it cannot be computed of so few."""
    try:
        return _finite(aggregate(values)) if values else None
    except Exception:  # a task's own code, or a statistic such as a correlation
        return None


def _plain_mean(values: list[Any]) -> float:
    return math.fsum(values) / len(values)


def _finite(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and math.isfinite(number) else None


def _number(value: object) -> float | None:
    """Return a value of a document as a number: that of several is their mean."""
    if isinstance(value, list | tuple):
        return mean([_number(each) for each in value])
    try:
        return float(cast(Any, value))  # numbers of NumPy too
    except (TypeError, ValueError):
        return None


def _main(metrics: Sequence[Score], higher_is_better: Mapping[str, bool]) -> tuple[str, ...]:
    """Return the metrics that stand for a task, as METRIC,FILTER; by default the first that is better if higher."""
    names = {each.metric for each in metrics}
    rising = [each.metric for each in metrics if higher_is_better.get(each.metric, True)]
    wanted = next((some for some in MAIN if set(some) <= names), tuple(rising[:1]))
    return tuple(f"{metric},{_filter(metric, metrics)}" for metric in wanted)


def _filter(metric: str, metrics: Sequence[Score]) -> str:
    names = [each.filter for each in metrics if each.metric == metric]
    return next((name for name in STRICT if name in names), names[0])


def _guesses(facts: TaskFacts, samples: Sequence[Sample], chosen: Sequence[Score]) -> dict[str, float]:
    """Return what guessing gets for each document."""
    fixed = RANDOM.get(facts.task)
    counts = facts.is_choice and all(each.metric in CHOICES for each in chosen)
    guesses = {}
    for sample in samples:
        asked = len(sample["arguments"]) // (2 if "acc_mutual_info" in sample["metrics"] else 1)
        guesses[str(sample["doc_id"])] = fixed if fixed is not None else 1 / asked if counts and asked else 0.0
    return guesses
