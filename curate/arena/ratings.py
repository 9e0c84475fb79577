"""Bradley–Terry ratings of models from battles of two, with intervals, and with the effect of style taken out.

P(a beats b) = 1 / (1 + 10^((R_b − R_a) / 400)), so 400 points are ten to one; a tie, or both bad, is half a win for
each. Ratings are the maximum of the likelihood, found by Newton's method. Their intervals are from the sandwich
estimate of the covariance (White 1982), which holds although a tie is no draw from this model.

With style control (Li et al. 2024), the difference of two ratings gains a term: coefficients times the contrasts of
both answers' length, headers, lists and bold text. The ratings are what is left where both have the same style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from curate.arena.graph import Connections, connect
from curate.arena.likelihood import Floats, Likelihood

SCALE = 400 / np.log(10)  # points of one unit of log-odds
CENTRE = 1000.0  # mean rating of the models of a group
RIDGE = 1.0  # on the coefficients of style, whose features have unit size
PRIOR = 0.5  # battles won, and as many lost, against an average model; only where the likelihood has no maximum


@dataclass(frozen=True)
class Battles:
    """Outcomes of battles between two of `models`, as columns of equal length."""

    models: tuple[str, ...]
    left: NDArray[np.intp]  # index of the model on the left
    right: NDArray[np.intp]
    score: Floats  # the left model's: 1, 0.5 or 0
    style: Floats | None = None  # (battles, features): contrasts of left and right

    def __len__(self) -> int:
        return len(self.score)

    def points(self) -> Floats:
        """Return the points that the row's model took from the column's."""
        taken = np.zeros((len(self.models), len(self.models)))
        np.add.at(taken, (self.left, self.right), self.score)
        np.add.at(taken, (self.right, self.left), 1 - self.score)
        return taken


@dataclass(frozen=True)
class Rating:
    """One model's rating; a bound is infinite where the battles give none."""

    model: str
    rating: float
    low: float
    high: float
    rank_low: int  # the best place that the battles do not exclude: 1 + models that are clearly better
    rank_high: int  # the worst
    battles: int
    wins: float  # ties count as half
    group: int = 0


@dataclass(frozen=True)
class StyleEffect:
    """The effect of one feature of style: points of rating for one standard contrast."""

    feature: str
    points: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratings:
    """Ratings of all models, best first within each group."""

    models: tuple[Rating, ...]
    battles: int
    level: float  # of the intervals
    style: tuple[StyleEffect, ...] = ()
    notes: tuple[str, ...] = ()  # what the battles cannot tell


@dataclass(frozen=True)
class _Fit:
    """A maximum: log-odds of models (mean 0 in each group) and coefficients of style, with their covariance."""

    values: Floats
    covariance: Floats


def rate(battles: Battles, *, features: Sequence[str] = (), level: float = 0.95) -> Ratings:
    """Return ratings with intervals; with style control if the battles have `style`, whose names are `features`."""
    connections = connect(battles.points())
    design, kept = _design(battles)
    penalty = np.zeros(design.shape[1])
    penalty[len(battles.models) :] = RIDGE
    fit = _fit(design, battles.score, penalty, connections)
    z = NormalDist().inv_cdf((1 + level) / 2)
    models = _ratings(battles, connections, fit, z)
    named = [features[index] for index in kept]
    style = _effects(fit, len(battles.models), named, z)
    return Ratings(models, len(battles), level, style, _notes(battles, connections))


# ---- the fit


def _design(battles: Battles) -> tuple[Floats, list[int]]:
    """Return the matrix of the log-odds of each battle, and which features of style it has.

    A feature is divided by its root mean square: subtracting the mean too would favour a side. Features that are 0
    everywhere are left out.
    """
    rows = np.arange(len(battles))
    design = np.zeros((len(battles), len(battles.models)))
    design[rows, battles.left] = 1
    design[rows, battles.right] = -1
    if battles.style is None or not len(battles):
        return design, []
    size = np.sqrt(np.mean(battles.style**2, axis=0))
    kept = [int(index) for index in np.flatnonzero(size > 0)]
    return np.hstack([design, battles.style[:, kept] / size[kept]]), kept


def _fit(design: Floats, score: Floats, penalty: Floats, connections: Connections) -> _Fit:
    """Return the maximum of the penalised likelihood, with the mean rating of each group at 0.

    Where some models have no bound, every model has battles with an average one added, `PRIOR` won and as many lost;
    the covariance is then the inverse of the curvature. Otherwise it is the sandwich estimate, corrected for the
    degrees of freedom, plus one battle's share of the curvature: a few battles that are all ties, which have no
    residuals, must not give an interval of no width.
    """
    models = sum(map(len, connections.groups))
    prior = np.where(np.arange(design.shape[1]) < models, 0.0 if connections.bounded else 2 * PRIOR, 0.0)
    likelihood = Likelihood(design, score, _basis(connections, design.shape[1]), penalty, prior)
    point = likelihood.maximum()
    _, hessian, parts = likelihood.slope(point)
    inverse = np.linalg.pinv(hessian, hermitian=True)
    count, free = parts.shape
    meat = parts.T @ parts * (count / max(1, count - free)) + hessian / max(1, count)
    covariance = inverse @ meat @ inverse if connections.bounded else inverse
    basis = likelihood.basis
    return _Fit(basis @ point, basis @ covariance @ basis.T)


def _basis(connections: Connections, width: int) -> Floats:
    """Return an orthonormal basis of the values whose mean is 0 in each group; those of style are free."""
    columns = []
    for group in connections.groups:
        size = len(group)
        block = np.zeros((width, size - 1))
        block[list(group)] = np.linalg.qr(np.eye(size) - 1 / size)[0][:, : size - 1]
        columns.append(block)
    models = sum(map(len, connections.groups))
    return np.hstack([*columns, np.eye(width)[:, models:]])


# ---- what is reported


def _ratings(battles: Battles, connections: Connections, fit: _Fit, z: float) -> tuple[Rating, ...]:
    points = battles.points()
    count = len(battles.models)
    value, spread = fit.values[:count], _spread(fit.covariance)[:count]
    low = np.array([-np.inf if i in connections.winless else value[i] - z * spread[i] for i in range(count)])
    high = np.array([np.inf if i in connections.unbeaten else value[i] + z * spread[i] for i in range(count)])
    ratings = []
    for number, group in enumerate(connections.groups):
        for i in sorted(group, key=lambda index: -value[index]):
            better, worse = _clearly_apart(i, group, fit, z)
            rating, lowest, highest = (float(CENTRE + SCALE * each[i]) for each in (value, low, high))
            fought, won = round(points[i].sum() + points[:, i].sum()), float(points[i].sum())
            place = (1 + better, len(group) - worse)
            ratings.append(Rating(battles.models[i], rating, lowest, highest, *place, fought, won, number))
    return tuple(ratings)


def _spread(covariance: Floats) -> Floats:
    return np.sqrt(np.maximum(np.diag(covariance), 0))


def _clearly_apart(model: int, group: Sequence[int], fit: _Fit, z: float) -> tuple[int, int]:
    """Return how many models of the group are better, and how many worse, by an interval of the difference."""
    better = worse = 0
    for other in group:
        variance = fit.covariance[model, model] + fit.covariance[other, other] - 2 * fit.covariance[model, other]
        difference, margin = fit.values[other] - fit.values[model], z * np.sqrt(max(variance, 0))
        better += bool(other != model and difference > margin)
        worse += bool(other != model and difference < -margin)
    return better, worse


def _effects(fit: _Fit, start: int, features: Sequence[str], z: float) -> tuple[StyleEffect, ...]:
    spread = _spread(fit.covariance)
    return tuple(
        StyleEffect(name, *(float(SCALE * (fit.values[i] + sign * z * spread[i])) for sign in (0, -1, 1)))
        for i, name in enumerate(features, start)
    )


def _notes(battles: Battles, connections: Connections) -> tuple[str, ...]:
    """Return what the battles cannot tell, a sentence each."""
    notes = []
    if len(connections.groups) > 1:
        groups = "; ".join(", ".join(battles.models[i] for i in group) for group in connections.groups)
        notes.append(f"no battles connect these groups, so ratings compare within each only: {groups}")
    for models, what, bound in (
        (connections.unbeaten, "never lost a point outside", "upper"),
        (connections.winless, "never took a point outside", "lower"),
    ):
        if models:
            names = ", ".join(battles.models[i] for i in sorted(models))
            notes.append(f"{names}: {what} their own circle, so their ratings have no {bound} bound")
    if not connections.bounded:
        notes.append(
            "to keep ratings finite, every model has half a win and half a loss against an average model added"
        )
    return tuple(notes)


def scored(models: Sequence[tuple[str, str]], scores: Sequence[float]) -> Battles:
    """Return battles from pairs of names (left, right) and the left one's scores; models are in the order of names."""
    names = tuple(sorted({name for pair in models for name in pair}))
    places = {name: index for index, name in enumerate(names)}
    left, right = (np.array([places[pair[side]] for pair in models], dtype=np.intp) for side in (0, 1))
    return Battles(names, left, right, np.array(scores, dtype=float))


def with_style(battles: Battles, contrasts: Sequence[Sequence[float]]) -> Battles:
    """Return the battles with the contrasts of style of each."""
    return replace(battles, style=np.array(contrasts, dtype=float).reshape(len(battles), -1))
