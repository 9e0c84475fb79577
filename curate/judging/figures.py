"""Means with intervals, and the win rate without the effect of length.

Prompts are the units: several judgements of one prompt are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np

from curate.arena.likelihood import Floats, Likelihood, sigmoid

LEVEL = 0.95
RIDGE = 0.1  # on the effects of length and of the prompt's difficulty, whose columns have about unit size
MIN_PROMPTS = 2  # fewer give no interval, and then no figure


@dataclass(frozen=True)
class Figure:
    """A mean over prompts, with its interval."""

    mean: float
    low: float
    high: float
    prompts: int


def mean_figure(values: Sequence[float], lowest: float, highest: float) -> Figure | None:
    """Return the mean of one value for each prompt with Student's interval; None for fewer than two prompts.

    Where all values are the same, one more at each end of the scale widens the interval, which would have no width.
    """
    count = len(values)
    if count < MIN_PROMPTS:
        return None
    mean, spread = fmean(values), stdev(values)
    if spread == 0:
        wide = [*values, lowest, highest]
        spread, count = stdev(wide), len(wide)
    margin = student(count - 1) * spread / math.sqrt(count)
    return Figure(mean, max(lowest, mean - margin), min(highest, mean + margin), len(values))


def student(freedom: int) -> float:
    """Return the quantile of Student's distribution for a 95 % interval.

    From 3 degrees of freedom on, the expansion around the normal quantile (Abramowitz and Stegun 26.7.5), to 0.2 %.
    """
    if freedom < 3:
        return {1: 12.7062, 2: 4.3027}[max(1, freedom)]
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def length_controlled(
    scores: Sequence[float], lengths: Sequence[tuple[int, int]], difficulty: Sequence[float] | None = None
) -> Figure | None:
    """Return the win rate that is expected where both answers have the same length (AlpacaEval 2, arXiv 2404.04475).

    `scores` are one model's against the baseline, 0 to 1 for each prompt; `lengths` the characters of both. The
    log-odds of a win are the model's, plus an effect of the tanh of the standardised difference of lengths, plus an
    effect of the prompt's `difficulty` (how other models did on it) where that is known. Length is then left out.
    """
    if len(scores) < MIN_PROMPTS:
        return None
    target = np.array(scores, dtype=float)
    difference = np.array([own - other for own, other in lengths], dtype=float)
    size = difference.std(ddof=1)  # as pandas has it
    columns = [np.ones(len(target)), np.tanh(difference / size) if size > 0 else np.zeros(len(target))]
    if difficulty is not None and np.std(difficulty) > 0:
        hardness = np.array(difficulty, dtype=float)
        columns.append((hardness - hardness.mean()) / hardness.std())
    return _expected(np.stack(columns, axis=1), target)


def _expected(design: Floats, target: Floats) -> Figure:
    """Return the mean of the fitted probabilities without the second column, with a sandwich and delta interval.

    Half a win and half a loss are added where all scores are wins or all are losses, which have no estimate.
    """
    rows, scores = design, target
    if target.min() == target.max() and target[0] in (0, 1):
        rows = np.vstack([design, [[1.0, *[0.0] * (design.shape[1] - 1)]]])
        scores = np.append(target, 0.5)
    width = rows.shape[1]
    penalty = np.array([0.0, *[RIDGE] * (width - 1)])
    model = Likelihood(rows, scores, np.eye(width), penalty, np.zeros(width))
    point = model.maximum()
    _, hessian, parts = model.slope(point)
    inverse = np.linalg.inv(hessian)
    count = len(scores)
    meat = parts.T @ parts * (count / max(1, count - width)) + hessian / count
    neutral = design * np.array([1.0, 0.0, *[1.0] * (width - 2)])
    chances = sigmoid(neutral @ point)
    slope = np.mean(neutral * (chances * (1 - chances))[:, None], axis=0)
    mean = float(chances.mean())
    margin = student(max(1, count - width)) * math.sqrt(float(slope @ inverse @ meat @ inverse @ slope))
    return Figure(mean, max(0.0, mean - margin), min(1.0, mean + margin), len(target))
