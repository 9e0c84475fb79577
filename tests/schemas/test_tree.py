"""Trees of messages: paths, leaves and children, also of trees with cycles and missing nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from curate.schemas.reading.tree import MessageTree

NODES = st.sampled_from("abcdefgh")
# Any node may name any other as its parent, one that is missing ("x"), or none.
TREES = st.dictionaries(NODES, st.one_of(st.none(), NODES, st.just("x")))
TIMES = st.dictionaries(NODES, st.integers(0, 5))


def test_a_path_is_walked_up_from_a_leaf_to_the_root() -> None:
    tree = MessageTree({"root": None, "b": "a", "a": "root", "c": "a"})
    assert tree.path("b") == ["root", "a", "b"]
    assert tree.leaves() == ["b", "c"]
    assert tree.children() == {"root": ["a"], "a": ["b", "c"]}


def test_the_newest_leaf_has_the_latest_time_of_its_own_or_above_it() -> None:
    tree = MessageTree({"root": None, "old": "root", "new": "root", "below": "new"})
    assert tree.newest_leaf(_time({"old": 3, "new": 5})) == "below"
    assert tree.newest_leaf(_time({"old": 7, "new": 5})) == "old"
    assert tree.newest_leaf(_time({})) == "below"
    assert MessageTree({}).newest_leaf(_time({})) is None


def test_a_path_begins_below_a_missing_node_and_ends_a_cycle() -> None:
    below = MessageTree({"b": "missing", "c": "b"})
    assert below.path("c") == ["b", "c"] and not below.is_whole(below.path("c"))
    cycle = MessageTree({"a": "c", "b": "a", "c": "b"})
    assert cycle.path("c") == ["a", "b", "c"] and not cycle.is_whole(cycle.path("c"))
    assert cycle.leaves() == ["c"]
    assert MessageTree({"a": None}).is_whole(["a"])


def test_a_long_chain_without_times_is_walked_once() -> None:
    chain: dict[str, str | None] = {str(n): str(n - 1) if n else None for n in range(20_000)}
    leaves: dict[str, str | None] = {f"leaf {n}": "19999" for n in range(20_000)}
    assert MessageTree({**chain, **leaves}).newest_leaf(lambda node: None) == "leaf 19999"


@given(TREES, TIMES)
def test_every_path_follows_the_parents_without_repeating_a_node(
    parents: dict[str, str | None], times: dict[str, int]
) -> None:
    tree = MessageTree(parents)
    for node in parents:
        path = tree.path(node)
        assert path[-1] == node and len(set(path)) == len(path)
        assert all(parents[below] == above for above, below in itertools.pairwise(path))
        top = parents[path[0]]
        assert tree.is_whole(path) == (top is None) and (top is None or top not in parents or top in path)


@given(TREES, TIMES)
def test_the_newest_leaf_is_a_leaf_that_no_other_is_newer_than(
    parents: dict[str, str | None], times: dict[str, int]
) -> None:
    tree = MessageTree(parents)
    newest = tree.newest_leaf(_time(times))
    assert (newest is None) == (not parents)
    if newest is not None:
        leaves = tree.leaves()
        assert newest in leaves
        own = [next((times[node] for node in reversed(tree.path(leaf)) if node in times), None) for leaf in leaves]
        known = [time for time in own if time is not None]
        if known and not _has_cycle(tree):
            assert own[leaves.index(newest)] == max(known)


def _time(times: dict[str, int]) -> Callable[[str], int | None]:
    return lambda node: times.get(node)


def _has_cycle(tree: MessageTree) -> bool:
    return any(tree.parents[path[0]] in path for node in tree.parents if (path := tree.path(node)))
