"""Trees of messages, as chat applications store them: each message names the one that it answers.

An edited prompt or a regenerated answer is a sibling of the first one, so that a tree has a branch for each leaf. Dumps
have trees with cycles and with missing nodes; a path is then what is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Time = Callable[[str], Any]  # of a node: values that can be compared with each other, None where it is unknown


class MessageTree:
    """Nodes by id in the dump's order, and for each the id of its parent, or None at the root."""

    def __init__(self, parents: Mapping[str, str | None]) -> None:
        self.parents = parents

    def path(self, node: str) -> list[str]:
        """Return the nodes from the root to a node; it begins later below a missing node, or within a cycle."""
        path: dict[str, None] = {}  # a set in order of insertion
        current: str | None = node
        while current is not None and current in self.parents and current not in path:
            path[current] = None
            current = self.parents[current]
        return list(reversed(path))

    def is_whole(self, path: Iterable[str]) -> bool:
        """Return whether a path begins at a root, rather than below a missing node or within a cycle."""
        first = next(iter(path), None)
        return first is None or self.parents[first] is None

    def children(self) -> dict[str, list[str]]:
        """Return the children of each node that has any, in the dump's order; a missing node may have some too."""
        children: dict[str, list[str]] = {}
        for node, parent in self.parents.items():
            if parent is not None:
                children.setdefault(parent, []).append(node)
        return children

    def leaves(self) -> list[str]:
        """Return the nodes without children; if all are in cycles, the last node."""
        inner = set(self.parents.values())
        leaves = [node for node in self.parents if node not in inner]
        return leaves or list(self.parents)[-1:]

    def shown_leaf(self, current: object, time: Time) -> str:
        """Return the node that the dump names as the current one, or else the newest leaf; there must be a node."""
        if isinstance(current, str) and current in self.parents:
            return current
        newest = self.newest_leaf(time)
        assert newest is not None
        return newest

    def newest_leaf(self, time: Time) -> str | None:
        """Return the leaf of the latest time, the last of several; a node without time has that of its parent.

        None if there is no node.
        """
        times: dict[str, Any] = {}
        newest, latest = None, None
        for leaf in self.leaves():
            found = self._time(leaf, time, times)
            if newest is None or latest is None or (found is not None and found >= latest):
                newest, latest = leaf, found
        return newest

    def _time(self, node: str, time: Time, times: dict[str, Any]) -> Any:
        """Return the time of a node or of the nearest one above it, and store it in `times` for those between."""
        walked: list[str] = []
        current: str | None = node
        found = None
        while current is not None and current in self.parents and current not in times:
            walked.append(current)
            times[current] = None  # ends the walk in a cycle
            if (found := time(current)) is not None:
                break
            current = self.parents[current]
        else:
            found = times.get(current) if current is not None else None
        times.update(dict.fromkeys(walked, found))
        return found
