"""Logistic regression with a ridge, by Newton's method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CONVERGED = 1e-10  # log-odds that a step changes at most
MAX_STEPS = 200


@dataclass(frozen=True)
class Likelihood:
    """The penalised likelihood of scores from 0 to 1, of values in a basis, such as one with the models' mean at 0."""

    design: Floats  # (battles, models + features)
    score: Floats
    basis: Floats  # (models + features, free values)
    penalty: Floats  # of each value: a ridge
    prior: Floats  # battles of each model against an average one that are added, half of them won

    def slope(self, point: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the gradient, the negative Hessian, and each battle's part of the gradient."""
        inside, full = self.design @ self.basis, self.basis @ point
        expected, average = sigmoid(self.design @ full), sigmoid(full)
        parts = inside * (self.score - expected)[:, None]
        gradient = parts.sum(axis=0) + self.basis.T @ (self.prior * (0.5 - average) - self.penalty * full)
        curvature = self.prior * average * (1 - average) + self.penalty
        hessian = inside.T @ (inside * (expected * (1 - expected))[:, None])
        return gradient, hessian + self.basis.T @ (self.basis * curvature[:, None]), parts

    def value(self, point: Floats) -> float:
        """Return the logarithm of the likelihood."""
        full = self.basis @ point
        odds = self.design @ full
        battles = np.sum(self.score * odds - np.logaddexp(0, odds))
        added = np.sum(self.prior * (0.5 * full - np.logaddexp(0, full)))
        return float(battles + added - np.sum(self.penalty * full**2) / 2)

    def maximum(self) -> Floats:
        """Return where it is largest, by Newton's method; a step is halved until the likelihood does not fall."""
        point = np.zeros(self.basis.shape[1])
        for _ in range(MAX_STEPS):
            gradient, hessian, _ = self.slope(point)
            step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
            start = self.value(point)
            while self.value(point + step) < start - 1e-12 * abs(start) and np.abs(step).max() > CONVERGED:
                step = step / 2
            point = point + step
            if np.abs(step).max(initial=0) < CONVERGED:
                break
        return point


def sigmoid(odds: Floats) -> Floats:
    """Return the probability of log-odds."""
    return np.exp(-np.logaddexp(0, -odds))
