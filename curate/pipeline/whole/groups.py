"""Divide the conversations that share something into groups that are decided one after the other.

Conversations that share something, directly or through others, are in one group, so the decisions on a group need no
other one. Keys that only seem equal, by the chance of a hash, make groups larger and change no decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.pipeline import clusters, train_marks
from curate.pipeline.sets import earlier
from curate.pipeline.sets.earlier import Known
from curate.pipeline.steps import Part
from curate.pipeline.whole import lone as keyed
from curate.pipeline.whole import names
from curate.pipeline.whole.lone import COLUMNS, ID, LAST, RECORD, Lone, Members
from curate.pipeline.whole.spill import KeyFiles, Places, Shuffle, Sieve, link

GROUP_ROWS = 200_000  # that are decided at a time, at about 1 KB each; more if they all hang together
EDGES = 1 << 22  # that are joined at a time
CHAIN = pl.col("chain")


@dataclass(frozen=True)
class Group:
    """Conversations to decide together, as frames in record order, and the `known` ones that they may be."""

    rows: Sequence[pl.DataFrame]
    known: pl.DataFrame


def divide(
    parts: Sequence[Part],
    lone: Lone,
    known: Known,
    *,
    pieces: bool,
    exchanges: bool,
    size: int = GROUP_ROWS,
) -> Iterator[Group]:
    """Yield the groups of the conversations that are not lone, of about `size`; one group if there are none.

    `pieces` and `exchanges` say whether the chats that ids name, and first exchanges, are compared. Each known
    conversation is in one group.
    """
    others = lone.others
    count = int(others.rows.sum())
    if count <= size:
        yield Group([*keyed.read(parts, others, [pl.all()])], earlier.collect(known))
        return
    shared = _Shared(parts, others, known, lone.folder)
    root = shared.find_roots(pieces, exchanges)
    if lone.links is not None:
        shared.add_links(root, lone.links)
    sizes = np.zeros(len(root), np.uint32)
    np.add.at(sizes, root, 1)
    starts = np.cumsum(sizes, dtype=np.uint32) - sizes
    group = (starts // np.uint32(size))[root]
    del root, sizes, starts
    used, group = np.unique(group, return_inverse=True)
    group = group.astype(np.uint32)
    shuffle = Shuffle(lone.folder, "group-rows", len(used))
    _write_all(shuffle, keyed.read(parts, others, [pl.all()]), group[:count])
    old = Shuffle(lone.folder, "group-known", len(used))
    _write_all(old, earlier.read(known), group[count:])
    del group
    for number in range(len(used)):
        yield Group([*shuffle.read(number)], pl.concat([earlier.no_known(), *old.read(number)], how="diagonal"))
    old.remove()
    shuffle.remove()


def _write_all(shuffle: Shuffle, frames: Iterable[pl.DataFrame], groups: Places) -> None:
    """Write all rows of the frames, by the group of each row."""
    start = 0
    for rows in frames:
        shuffle.write(rows, groups[start : start + rows.height])
        start += rows.height


def have_pieces(parts: Sequence[Part], lone: Lone) -> bool:
    """Return whether ids that end in a number are those of pieces of a chat, as `clusters.have_pieces` does."""
    named = ID.str.extract_groups(clusters.PIECE).struct
    wanted = [named.field("chat").hash().alias("key"), named.field("number").cast(pl.UInt32), pl.col("prompt")]
    files = KeyFiles(lone.folder, "chats", len(lone.rows))
    for rows in keyed.read(parts, lone.others, wanted):
        found = rows.drop_nulls()
        files.add(found["key"].to_numpy(), found["number"].to_numpy())
    numbers = chats = lone.chats
    for keys, places in files.partitions():
        sizes = pl.DataFrame({"key": keys, "number": places}).group_by("key").agg(pl.col("number").n_unique())
        sizes = sizes.filter(pl.col("number") <= clusters.MAX_ROWS)
        numbers, chats = numbers + int(sizes["number"].sum()), chats + sizes.height
    files.remove()
    return clusters.are_pieces(numbers, chats)


class _Shared:
    """What conversations may share: keys, and the place of each one's conversation among them all.

    The known conversations have the last places.
    """

    def __init__(self, parts: Sequence[Part], members: Members, known: Known, folder: Path) -> None:
        self.parts = parts
        self.members = members
        self.known = known
        self.folder = folder
        self.size = int(members.rows.sum()) + sum(rows.height for rows in earlier.read(known))
        self.files: dict[str, KeyFiles] = {}

    def find_roots(self, pieces: bool, exchanges: bool) -> Places:
        """Return the lowest place that each place hangs together with, [members + known]."""
        self._add_keys(pieces, exchanges)
        root = np.arange(self.size, dtype=np.uint32)
        for files in self.files.values():
            for edges in _batches(map(link, files.partitions())):
                clusters.join(root, edges)
            files.remove()
        return root

    def add_links(self, root: Places, links: Path) -> None:
        """Join further pairs, which are known by their places among all conversations."""
        place = np.cumsum(self.members.rows, dtype=np.uint32) - np.uint32(1)
        for pairs in keyed.read_links(links):
            clusters.join(root, place[pairs])

    def _add_keys(self, pieces: bool, exchanges: bool) -> None:
        branches = False
        messages = KeyFiles(self.folder, "untrained", self.size)
        for rows in self._read(*COLUMNS):
            branches |= bool((rows["branch"] > 0).any())
            self._add("prompt", rows, pl.col("prompt"))
            self._add("content", rows, LAST)
            self._add("record", rows, RECORD)
            if exchanges:
                self._add("exchange", rows, pl.col("exchange"))
            self._add_names(rows, pieces)
            marked = train_marks.explode(rows.filter(pl.col("marks").is_not_null()))
            messages.add(keyed.numbers(marked.filter(~train_marks.REASONED), CHAIN), np.uint32(0))
        if not branches:
            self.files.pop("record").remove()
        self._add_messages([self.files["content"], messages])
        messages.remove()

    def _read(self, *columns: str) -> Iterator[pl.DataFrame]:
        """Yield the members of some parts, with the `place` of each among them all."""
        start = 0
        for rows in keyed.read(self.parts, self.members, [pl.col(columns)]):
            yield rows.with_row_index("place", start)
            start += rows.height
        for rows in earlier.read(self.known):
            yield rows.select(columns).with_row_index("place", start)
            start += rows.height

    def _add(self, name: str, rows: pl.DataFrame, key: pl.Expr) -> None:
        """Add a key of rows that have it."""
        found = rows.select("place", key=key).drop_nulls("key")
        self._files(name).add(found["key"].to_numpy(), found["place"].to_numpy())

    def _files(self, name: str) -> KeyFiles:
        return self.files.setdefault(name, KeyFiles(self.folder, f"shared-{name}", self.size))

    def _add_names(self, rows: pl.DataFrame, pieces: bool) -> None:
        """Add all ids that a conversation and its pieces may get, without the suffix of a changed one."""
        unchanged = ID.str.replace(f"(?s){names.RENAMED}.*", "")
        texts = [ID, pl.when(ID.str.contains(names.RENAMED)).then(unchanged)]
        for text in [*texts, *([ID.str.extract(clusters.PIECE)] if pieces else [])]:
            self._add("name", rows, keyed.hash_text(text))
        made = names.made_names(rows.rename({"place": "order"}))
        self._add("name", made.rename({"order": "place"}), keyed.hash_text(pl.col("name")))

    def _add_messages(self, wanted: Sequence[KeyFiles]) -> None:
        """Add the messages whose hash is among these, and a few others, as content."""
        sieve = Sieve(sum(files.count for files in wanted))
        for files in wanted:
            for keys, _ in files.partitions():
                sieve.add(keys)
        for rows in self._read("chain"):
            hashes, owners, _ = keyed.messages(rows)
            near = sieve.may_have(hashes)
            self._files("content").add(hashes[near], rows["place"].to_numpy()[owners[near]])


def _batches(found: Iterable[NDArray[np.uint32]]) -> Iterator[NDArray[np.uint32]]:
    """Yield edges, many at a time."""
    held: list[NDArray[np.uint32]] = []
    for edges in found:
        held.append(edges)
        if sum(map(len, held)) >= EDGES:
            yield np.concatenate(held)
            held = []
    yield np.concatenate([*held, np.empty((0, 2), np.uint32)])
