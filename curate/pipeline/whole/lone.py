"""Find the conversations that share nothing with any other, from the keys in the parts' summaries.

Each is kept, with its own id and in a cluster of its own, whatever the others are: only those that share a key with
another need to be decided together. Keys of 64 bits are sorted in files, so a conversation takes about six bytes of
memory. Keys that only seem equal, by the chance of a hash, cost time and change no decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.ingest.damaged_records import DamagedRecords
from curate.pipeline import clusters, train_marks
from curate.pipeline.sets import earlier
from curate.pipeline.sets.earlier import Known
from curate.pipeline.steps import Part
from curate.pipeline.whole import names
from curate.pipeline.whole.doubt import with_doubt
from curate.pipeline.whole.spill import NOWHERE, KeyFiles, Keys, Sieve

AT_ONCE = 64  # parts that are read at a time
BLOCK = 1 << 20  # prompts that are read at a time
PROMPTS = "prompts.u64"  # the hash of each conversation's first prompt, in the order of the parts
ID = pl.col("source_id")
LAST = pl.col("chain").list.last()
RECORD = pl.struct("source_file", "source_index").hash()
COLUMNS = ("source_file", "source_index", "source_id", "branch", "pieces", "prompt", "exchange", "chain", "marks")
SPLITS = (None, "train", "eval")
OPTIONAL = r"^earlier_split$"  # columns that not all summaries have
Mask = NDArray[np.bool_]
States = NDArray[np.uint8]


@dataclass(frozen=True)
class Lone:
    """Which conversations share nothing with any other; all arrays are in the order of the parts.

    `rows`, [conversations], are those; `kept`, [conversations], those of them that no filter rejected. `chats` of the
    rows may be a piece of a chat, by their id. `firsts` has the place of each part's first conversation. `folder` has
    `PROMPTS`. `earlier`, [conversations], has the split of earlier sets as an index of `SPLITS`.
    """

    rows: Mask
    kept: Mask
    chats: int
    firsts: Mapping[int, int]
    folder: Path
    links: Path | None = None  # to further pairs that share something
    earlier: States | None = None

    @property
    def others(self) -> Members:
        """The conversations that share something."""
        return Members(~self.rows, self.firsts)

    def prompts(self) -> Iterator[Keys]:
        """Yield the hashes of the first prompts of the kept ones, in order."""
        for start in range(0, len(self.kept), BLOCK):
            prompts = np.fromfile(self.folder / PROMPTS, np.uint64, BLOCK, offset=8 * start)
            yield prompts[self.kept[start : start + BLOCK]]


@dataclass(frozen=True)
class Members:
    """Some conversations: `rows`, [conversations], in the order of the parts, and the place of each part's first."""

    rows: Mask
    firsts: Mapping[int, int]

    def of(self, part: int, rows: pl.DataFrame) -> pl.DataFrame:
        """Return those of a part's rows that are members."""
        first = self.firsts[part]
        return rows.filter(pl.Series(self.rows[first : first + rows.height]))


def read(parts: Sequence[Part], members: Members, wanted: Sequence[pl.Expr]) -> Iterator[pl.DataFrame]:
    """Yield what is wanted of the members of some parts, with `part` and the index of their records in the file."""
    for some in _groups(parts):
        frames = pl.collect_all([part.summary.lazy().select(wanted) for part in some])
        of_parts = [
            members.of(part.number, rows).with_columns(
                pl.col(r"^source_index$") + part.first, part=pl.lit(part.number, pl.UInt32)
            )
            for part, rows in zip(some, frames, strict=True)
        ]
        yield pl.concat(of_parts, how="diagonal").rechunk()


def read_placed(parts: Sequence[Part], members: Members, wanted: Sequence[pl.Expr]) -> Iterator[pl.DataFrame]:
    """Yield what `read` does, with the `place` of each member among all conversations."""
    places = np.flatnonzero(members.rows).astype(np.uint32)
    start = 0
    for rows in read(parts, members, wanted):
        yield rows.with_columns(place=pl.Series(places[start : start + rows.height]))
        start += rows.height


def read_links(path: Path) -> Iterator[NDArray[np.uint32]]:
    """Yield the pairs of a file, [pairs, 2]."""
    for start in range(0, path.stat().st_size, 8 * BLOCK):
        yield np.fromfile(path, np.uint32, 2 * BLOCK, offset=start).reshape(-1, 2)


def find_lone(
    parts: Sequence[Part],
    damaged: Sequence[DamagedRecords],
    known: Known,
    folder: Path,
    *,
    exchanges: bool,
    links: Path | None = None,
) -> Lone:
    """Find them; `known` are conversations of an earlier set, `exchanges` says whether first exchanges are compared.

    `folder` is for keys; `links` is a file of pairs that share something else, by their places.
    """
    search = _Search(parts, damaged, known, folder)
    search.read_keys(exchanges)
    search.mark_repeated()
    search.mark_prefixes()
    search.mark_records()
    for pairs in [] if links is None else read_links(links):
        search.shared[pairs] = True
    search.mark_untrained()
    return replace(search.result(), links=links)


def count_rows(parts: Sequence[Part]) -> list[int]:
    """Return the number of conversations of each part."""
    counts: list[int] = []
    for some in _groups(parts):
        counts += [int(each.item()) for each in pl.collect_all([part.summary.lazy().select(pl.len()) for part in some])]
    return counts


def _groups(parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
    yield from (parts[start : start + AT_ONCE] for start in range(0, len(parts), AT_ONCE))


class _Search:
    """The keys of all conversations, and which of these share one."""

    def __init__(self, parts: Sequence[Part], damaged: Sequence[DamagedRecords], known: Known, folder: Path) -> None:
        self.parts = parts
        self.damaged = damaged
        self.known = known
        self.folder = folder
        counts = count_rows(parts)
        self.size = sum(counts)
        places = np.cumsum([0, *counts]).tolist()
        self.firsts = dict(zip((part.number for part in parts), places, strict=False))
        self.shared = np.zeros(self.size, bool)
        self.kept = np.zeros(self.size, bool)
        self.has_chat = np.zeros(self.size, bool)
        self.has_marks = False
        self.has_branches = any((rows["branch"] > 0).any() for rows in earlier.read(known))
        self.keys: dict[str, KeyFiles] = {}
        self.earlier: States | None = None

    def read(self, *columns: str) -> Iterator[tuple[slice, pl.DataFrame]]:
        """Yield the rows of some parts, with their places among all."""
        start = 0
        for some in _groups(self.parts):
            own = [
                part.summary.lazy().select(columns).with_columns(pl.col(r"^source_index$") + part.first)
                for part in some
            ]
            rows = pl.concat(pl.collect_all(own), how="diagonal")
            yield slice(start, start + rows.height), rows
            start += rows.height

    def read_keys(self, exchanges: bool) -> None:
        """Read all keys but those of messages and records; mark what is not to be decided by its keys."""
        wanted = {
            "last": LAST,
            "prompt": pl.col("prompt"),
            "id": hash_text(ID),
            "chat": hash_text(ID.str.extract(clusters.PIECE)),
            **({"exchange": pl.col("exchange")} if exchanges else {}),
        }
        with (self.folder / PROMPTS).open("wb") as prompts:
            for place, rows in self.read(*COLUMNS, OPTIONAL):
                found = rows.select(**wanted)
                prompts.write(found["prompt"].fill_null(0).to_numpy().tobytes())
                for name in wanted:
                    self._add(name if name != "chat" else "id", found[name], place.start)
                named = found.select(pl.any_horizontal(pl.all() == 0, pl.col("last", "prompt").is_null())).to_series()
                special = (pl.col("branch") > 0) | ID.str.contains(names.RENAMED) | pl.col("doubt").is_not_null()
                marked = with_doubt(rows, self.damaged).select(special.fill_null(False)).to_series()
                self.shared[place] = (marked | named.fill_null(False)).to_numpy()
                self.kept[place] = (rows["pieces"] > 0).to_numpy()
                self.has_chat[place] = found["chat"].is_not_null().to_numpy()
                self.has_branches |= bool((rows["branch"] > 0).any())
                self.has_marks |= rows["marks"].null_count() < rows.height
                self._add_names(place.start, rows)
                self._read_splits(place, rows)

    def _add(self, name: str, keys: pl.Series, start: int) -> None:
        """Add a key of each row that has one."""
        has = keys.is_not_null() & (keys != 0)
        places = np.flatnonzero(has.to_numpy()).astype(np.uint32) + np.uint32(start)
        self._files(name).add(keys.filter(has).to_numpy(), places)

    def _files(self, name: str) -> KeyFiles:
        return self.keys.setdefault(name, KeyFiles(self.folder, f"all-{name}", self.size))

    def _read_splits(self, place: slice, rows: pl.DataFrame) -> None:
        if "earlier_split" not in rows.columns:
            return
        if self.earlier is None:
            self.earlier = np.zeros(self.size, np.uint8)
        numbers = rows["earlier_split"].replace_strict(SPLITS, range(len(SPLITS)), return_dtype=pl.UInt8)
        self.earlier[place] = numbers.to_numpy()

    def _add_names(self, start: int, rows: pl.DataFrame) -> None:
        """Add the ids that conversations and their pieces get, where these are not the dump's."""
        named = names.made_names(rows.with_row_index("order", start))
        if named.height:
            self._files("id").add(numbers(named, hash_text(pl.col("name"))), named["order"].to_numpy())

    def mark_repeated(self) -> None:
        """Mark conversations with the same content, prompt, id, chat or exchange as another."""
        self._mark_repeated("last", LAST)
        self._mark_repeated("prompt", pl.col("prompt"))
        self._mark_repeated("id", hash_text(ID))
        self._mark_repeated("exchange", None)

    def _mark_repeated(self, name: str, known: pl.Expr | None) -> None:
        """Mark places whose key another place has, or a known conversation by its key."""
        files = self._files(name)
        if known is not None:
            for rows in earlier.read(self.known):
                files.add(np.repeat(numbers(rows, known), 2), NOWHERE)
        for keys, places in files.partitions():
            same = keys[1:] == keys[:-1]
            found = places[np.append(same, False) | np.insert(same, 0, False)] if len(keys) else places
            self.shared[found[found != NOWHERE]] = True
        if name != "last":
            files.remove()

    def mark_prefixes(self) -> None:
        """Mark conversations that are the beginning of another or of a known one, and those that begin so."""
        self._mark_containing(self.keys["last"], self.known, ends=False)

    def _mark_containing(self, wanted: KeyFiles, known: Known, *, ends: bool) -> None:
        """Mark conversations with a message whose hash is wanted, and the places of these hashes.

        `known` conversations count with all messages. `ends` says whether the last message of a conversation counts.
        """
        sieve = Sieve(wanted.count)
        for keys, _ in wanted.partitions():
            sieve.add(keys)
        found = KeyFiles(self.folder, "messages", self.size)
        for rows in earlier.read(known):
            hashes = messages(rows)[0]
            found.add(hashes[sieve.may_have(hashes)], NOWHERE)
        for place, rows in self.read("chain"):
            hashes, owners, last = messages(rows)
            near = sieve.may_have(hashes)
            near[last] &= ends
            found.add(hashes[near], (owners[near] + place.start).astype(np.uint32))
        for (keys, places), (hashes, holders) in zip(wanted.partitions(), found.partitions(), strict=True):
            marked = np.concatenate([holders[is_in(hashes, keys)], places[is_in(keys, hashes)]])
            self.shared[marked[marked != NOWHERE]] = True
        found.remove()
        wanted.remove()

    def mark_records(self) -> None:
        """Mark all conversations of a record that has several branches."""
        if not self.has_branches:
            return
        for place, rows in self.read("source_file", "source_index"):
            self._add("record", rows.select(RECORD).to_series(), place.start)
        self._mark_repeated("record", RECORD)

    def mark_untrained(self) -> None:
        """Mark conversations with a message that one which shares something does not train: they may train it."""
        if not self.has_marks:
            return
        wanted = KeyFiles(self.folder, "untrained", self.size)
        for place, rows in self.read("chain", "marks"):
            marked = rows.filter(pl.col("marks").is_not_null() & pl.Series(self.shared[place]))
            wanted.add(numbers(train_marks.explode(marked).filter(~train_marks.REASONED), pl.col("chain")), NOWHERE)
        self._mark_containing(wanted, (), ends=True)

    def result(self) -> Lone:
        """Return those that share nothing."""
        lone = ~self.shared
        chats = int((lone & self.has_chat).sum())
        return Lone(lone, lone & self.kept, chats, self.firsts, self.folder, earlier=self.earlier)


def hash_text(text: pl.Expr) -> pl.Expr:
    return pl.when(text.is_not_null()).then(text.hash())


def numbers(rows: pl.DataFrame, key: pl.Expr) -> Keys:
    """Return the keys of the rows that have one."""
    found: Keys = rows.select(key.cast(pl.UInt64)).to_series().drop_nulls().to_numpy()
    return found


def messages(rows: pl.DataFrame) -> tuple[Keys, NDArray[np.int64], NDArray[np.int64]]:
    """Return the hash of each message, its row, and the places of the last message of each row."""
    counts = rows["chain"].list.len().to_numpy().astype(np.int64)
    hashes = numbers(rows.select(pl.col("chain").explode()), pl.col("chain"))
    return hashes, np.repeat(np.arange(rows.height), counts), (np.cumsum(counts) - 1)[counts > 0]


def is_in(keys: Keys, values: Keys) -> Mask:
    """Return which keys are among the values, which are sorted."""
    if not len(values):
        return np.zeros(len(keys), bool)
    places = np.searchsorted(values, keys)
    found: Mask = values[np.minimum(places, len(values) - 1)] == keys
    return found
