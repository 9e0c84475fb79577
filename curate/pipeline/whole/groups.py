"""Divide the conversations that share something into groups that are decided one after the other.

Conversations that share something, directly or through others, are in one group, so the decisions on a group need no
other one. Keys that only seem equal, by the chance of a hash, make groups larger and change no decision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.pipeline import clusters, train_marks
from curate.pipeline.steps import Part
from curate.pipeline.whole import lone as keyed
from curate.pipeline.whole import names
from curate.pipeline.whole.lone import ID, LAST, Keys, Lone, Members

GROUP_ROWS = 400_000  # that are decided at a time, at about 1 KB each; more if they all hang together
COLUMNS = ("source_file", "source_index", "source_id", "branch", "pieces", "prompt", "exchange", "chain", "marks")
CHAIN = pl.col("chain")
Places = NDArray[np.uint32]


def divide(
    parts: Sequence[Part], lone: Lone, *, pieces: bool, exchanges: bool, size: int = GROUP_ROWS
) -> Iterator[Members]:
    """Yield the groups of the conversations that are not lone, of about `size`; one group if there are none.

    `pieces` and `exchanges` say whether the chats that ids name, and first exchanges, are compared.
    """
    others = lone.others
    count = int(others.rows.sum())
    if count <= size:
        yield others
        return
    shared = _Shared(parts, others)
    root = clusters.components(count, np.concatenate(list(shared.edges(pieces, exchanges))))
    sizes = np.bincount(root, minlength=count)
    group = ((np.cumsum(sizes) - sizes) // size).astype(np.uint32)[root]
    del shared, root, sizes
    places = np.flatnonzero(others.rows)
    for number in np.unique(group):
        rows = np.zeros(len(others.rows), bool)
        rows[places[group == number]] = True
        yield Members(rows, others.firsts)


class _Shared:
    """What conversations may share: keys, and the place of each one's conversation among them all."""

    def __init__(self, parts: Sequence[Part], members: Members) -> None:
        self.parts = parts
        self.members = members
        self.found: dict[str, list[tuple[Places, Keys]]] = defaultdict(list)

    def edges(self, pieces: bool, exchanges: bool) -> Iterator[NDArray[np.int64]]:
        """Yield [edges, 2]: places of conversations that share a key."""
        branches = False
        untrained = [keyed.NO_KEYS]
        for rows in self._read(*COLUMNS):
            branches |= bool((rows["branch"] > 0).any())
            self._add("prompt", rows, pl.col("prompt"))
            self._add("content", rows, LAST)
            self._add("record", rows, pl.struct("source_file", "source_index").hash())
            if exchanges:
                self._add("exchange", rows, pl.col("exchange"))
            self._add_names(rows, pieces)
            marked = train_marks.explode(rows.filter(pl.col("marks").is_not_null()))
            untrained.append(keyed.numbers(marked.filter(~train_marks.REASONED), CHAIN))
        if not branches:
            self.found.pop("record", None)
        self._add_messages(np.unique(np.concatenate([*(keys for _, keys in self.found["content"]), *untrained])))
        while self.found:
            yield _link(self.found.popitem()[1])

    def _read(self, *columns: str) -> Iterator[pl.DataFrame]:
        """Yield the members of some parts, with the `place` of each among them all."""
        start = 0
        for rows in keyed.read(self.parts, self.members, [pl.col(columns)]):
            yield rows.with_row_index("place", start)
            start += rows.height

    def _add(self, name: str, rows: pl.DataFrame, key: pl.Expr) -> None:
        """Add a key of rows that have it."""
        found = rows.select("place", key=key).drop_nulls("key")
        self.found[name].append((found["place"].to_numpy().astype(np.uint32), found["key"].to_numpy()))

    def _add_names(self, rows: pl.DataFrame, pieces: bool) -> None:
        """Add all ids that a conversation and its pieces may get, without the suffix of a changed one."""
        unchanged = ID.str.replace(f"(?s){names.RENAMED}.*", "")
        texts = [ID, pl.when(ID.str.contains(names.RENAMED)).then(unchanged)]
        for text in [*texts, *([ID.str.extract(clusters.PIECE)] if pieces else [])]:
            self._add("name", rows, keyed.hash_text(text))
        made = names.made_names(rows.rename({"place": "order"}))
        self._add("name", made.rename({"order": "place"}), keyed.hash_text(pl.col("name")))

    def _add_messages(self, wanted: Keys) -> None:
        """Add the messages whose hash is among these, as content."""
        for rows in self._read("chain"):
            hashes, owners, _ = keyed.messages(rows)
            near = keyed.is_in(hashes, wanted)
            self.found["content"].append((rows["place"].to_numpy().astype(np.uint32)[owners[near]], hashes[near]))


def _link(found: Sequence[tuple[Places, Keys]]) -> NDArray[np.int64]:
    """Return [edges, 2]: each place with the next that has the same key."""
    places = np.concatenate([place for place, _ in found])
    keys = np.concatenate([key for _, key in found])
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    return np.stack([places[order[:-1][same]], places[order[1:][same]]], axis=1).astype(np.int64)
