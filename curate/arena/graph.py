"""Who has beaten whom: whether the battles tie the ratings of all models together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Connections:
    """What the battles of a set of models say about all of them together."""

    groups: tuple[tuple[int, ...], ...]  # models joined by battles; models of two groups cannot be compared
    unbeaten: frozenset[int]  # nothing outside their circle has taken a point from them: no upper bound
    winless: frozenset[int]  # they have taken no point outside their circle: no lower bound

    @property
    def bounded(self) -> bool:
        """Whether every rating has a finite estimate within its group (Ford 1957)."""
        return not self.unbeaten and not self.winless


def connect(points: NDArray[np.float64]) -> Connections:
    """Return the connections of models, from `points`: those that the row's model took from the column's.

    A circle is a set of models that have all taken points from each other, directly or through others.
    """
    takes = _reachable(points > 0)
    joined = _reachable((points + points.T) > 0)
    circles = takes & takes.T
    unbeaten, winless = set(), set()
    for model, circle in enumerate(circles):
        outside = joined[model] & ~circle
        if outside.any():
            if not takes[outside, model].any():
                unbeaten.add(model)
            if not takes[model, outside].any():
                winless.add(model)
    groups = tuple(dict.fromkeys(tuple(map(int, np.flatnonzero(row))) for row in joined))
    return Connections(groups, frozenset(unbeaten), frozenset(winless))


def _reachable(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which nodes lead to which, each to itself (Warshall's closure)."""
    reach = edges | np.eye(len(edges), dtype=bool)
    for middle in range(len(reach)):
        reach |= np.outer(reach[:, middle], reach[middle])
    return reach
