"""Find the conversations that share nothing with any other, from the keys in the parts' summaries.

Each is kept, with its own id and in a cluster of its own, whatever the others are: only those that share a key with
another need to be in memory to be decided. A conversation takes up to 60 bytes here: 64-bit keys in flat arrays, which
are sorted to find those that are repeated. Keys that only seem equal, by the chance of a hash, cost time and change no
decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.ingest.damaged_records import DamagedRecords
from curate.pipeline import clusters, train_marks
from curate.pipeline.steps import Part
from curate.pipeline.whole import names
from curate.pipeline.whole.doubt import with_doubt

AT_ONCE = 64  # parts that are read at a time
BLOCK = 1 << 20  # keys that are looked up at a time
CELLS = 16  # for each conversation, in the table that most messages' hashes are not in
ID = pl.col("source_id")
LAST = pl.col("chain").list.last()
Keys = NDArray[np.uint64]
Mask = NDArray[np.bool_]
NO_KEYS: Keys = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Lone:
    """Which conversations share nothing with any other; all arrays are in the order of the parts.

    `rows`, [conversations], are those; `kept`, [conversations], those of them that no filter rejected, and `prompts`,
    [kept], the hashes of their first prompts. `chats` of the rows may be a piece of a chat, by their id. `firsts` has
    the place of each part's first conversation.
    """

    rows: Mask
    kept: Mask
    prompts: Keys
    chats: int
    firsts: Mapping[int, int]

    @property
    def others(self) -> Members:
        """The conversations that share something."""
        return Members(~self.rows, self.firsts)


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
        yield pl.concat(of_parts).rechunk()


def find_lone(
    parts: Sequence[Part], damaged: Sequence[DamagedRecords], known: pl.DataFrame, *, exchanges: bool
) -> Lone:
    """Find them; `known` are conversations of an earlier set, `exchanges` says whether first exchanges are compared."""
    search = _Search(parts, damaged, known)
    search.read_keys(exchanges)
    search.mark_repeated()
    search.mark_prefixes()
    search.mark_records()
    search.mark_untrained()
    return search.result()


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

    def __init__(self, parts: Sequence[Part], damaged: Sequence[DamagedRecords], known: pl.DataFrame) -> None:
        self.parts = parts
        self.damaged = damaged
        self.known = known
        counts = count_rows(parts)
        self.size = sum(counts)
        places = np.cumsum([0, *counts]).tolist()
        self.firsts = dict(zip((part.number for part in parts), places, strict=False))
        self.shared = np.zeros(self.size, bool)
        self.kept = np.zeros(self.size, bool)
        self.has_marks = False
        self.has_branches = bool((known["branch"] > 0).any())
        self.keys: dict[str, Keys] = {}
        self.names: list[tuple[Keys, NDArray[np.int64]]] = []  # keys and places of ids that are not `source_id`

    def read(self, *columns: str) -> Iterator[tuple[slice, pl.DataFrame]]:
        """Yield the rows of some parts, with their places among all."""
        start = 0
        for some in _groups(self.parts):
            own = [
                part.summary.lazy().select(columns).with_columns(pl.col(r"^source_index$") + part.first)
                for part in some
            ]
            rows = pl.concat(pl.collect_all(own))
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
        self.keys = {name: np.zeros(self.size, np.uint64) for name in wanted}
        columns = (
            "source_file",
            "source_index",
            "source_id",
            "branch",
            "pieces",
            "prompt",
            "exchange",
            "chain",
            "marks",
        )
        for place, rows in self.read(*columns):
            found = rows.select(**wanted)
            for name, column in found.to_dict().items():
                self.keys[name][place] = column.fill_null(0).to_numpy()
            named = found.select(pl.any_horizontal(pl.all() == 0, pl.col("last", "prompt").is_null())).to_series()
            special = (pl.col("branch") > 0) | ID.str.contains(names.RENAMED) | pl.col("doubt").is_not_null()
            marked = with_doubt(rows, self.damaged).select(special.fill_null(False)).to_series()
            self.shared[place] = (marked | named.fill_null(False)).to_numpy()
            self.kept[place] = (rows["pieces"] > 0).to_numpy()
            self.has_branches |= bool((rows["branch"] > 0).any())
            self.has_marks |= rows["marks"].null_count() < rows.height
            self._read_names(place.start, rows)

    def _read_names(self, start: int, rows: pl.DataFrame) -> None:
        """Add the ids that conversations and their pieces get, where these are not the dump's."""
        named = names.made_names(rows.with_row_index("order", start))
        if named.height:
            self.names.append((numbers(named, hash_text(pl.col("name"))), named["order"].to_numpy().astype(np.int64)))

    def mark_repeated(self) -> None:
        """Mark conversations with the same content, prompt, id, chat or exchange as another."""
        known = self.known
        self._mark_repeated(["last"], numbers(known, LAST))
        self._mark_repeated(["prompt"], numbers(known, pl.col("prompt")))
        self._mark_repeated(["id", "chat"], numbers(known, hash_text(ID)), self.names)
        if "exchange" in self.keys:
            self._mark_repeated(["exchange"], NO_KEYS)
        alone = ~self.shared & (self.keys["prompt"] != 0)
        self.may_be_piece = alone & (self.keys["chat"] != 0)
        self.names = []
        self.keys = {name: self.keys[name] for name in ("last", "prompt")}

    def _mark_repeated(
        self, columns: Sequence[str], known: Keys, further: Sequence[tuple[Keys, NDArray[np.int64]]] = ()
    ) -> None:
        """Mark places whose key, in any of the columns, another place or a known conversation has."""
        every = np.concatenate([*(self.keys[name] for name in columns), *(keys for keys, _ in further), known, known])
        every.sort()
        repeated = np.unique(every[1:][every[1:] == every[:-1]])
        del every
        repeated = repeated[repeated != 0]
        for name in columns:
            self._mark(self.keys[name], repeated)
        for keys, places in further:
            self.shared[places[is_in(keys, repeated)]] = True

    def _mark(self, keys: Keys, values: Keys) -> None:
        for start in range(0, self.size, BLOCK):
            self.shared[start : start + BLOCK] |= is_in(keys[start : start + BLOCK], values)

    def mark_prefixes(self) -> None:
        """Mark conversations that are the beginning of another or of a known one, and those that begin so."""
        last = self.keys.pop("last")
        wanted = np.sort(np.concatenate([last, numbers(self.known, LAST)]))
        shift = np.uint64(64 - max(1, (CELLS * len(wanted)).bit_length()))
        table = np.zeros(1 << (64 - int(shift)), bool)
        table[wanted >> shift] = True
        found = [numbers(self.known.select(pl.col("chain").explode()), pl.col("chain"))]
        for place, rows in self.read("chain"):
            hashes, owners, ends = messages(rows)
            near = table[hashes >> shift]
            near[ends] = False
            hashes, owners = hashes[near], owners[near]
            same = is_in(hashes, wanted)
            self.shared[place.start + owners[same]] = True
            found.append(hashes[same])
        self._mark(last, np.unique(np.concatenate(found)))

    def mark_records(self) -> None:
        """Mark all conversations of a record that has several branches."""
        if not self.has_branches:
            return
        key = pl.struct("source_file", "source_index").hash()
        self.keys["record"] = np.zeros(self.size, np.uint64)
        for place, rows in self.read("source_file", "source_index"):
            self.keys["record"][place] = numbers(rows, key)
        self._mark_repeated(["record"], numbers(self.known, key))
        del self.keys["record"]

    def mark_untrained(self) -> None:
        """Mark conversations with a message that one which shares something does not train: they may train it."""
        if not self.has_marks:
            return
        found = [NO_KEYS]
        for place, rows in self.read("chain", "marks"):
            marked = rows.filter(pl.col("marks").is_not_null() & pl.Series(self.shared[place]))
            found.append(numbers(train_marks.explode(marked).filter(~train_marks.REASONED), pl.col("chain")))
        wanted = np.unique(np.concatenate(found))
        for place, rows in self.read("chain"):
            hashes, owners, _ = messages(rows)
            self.shared[place.start + owners[is_in(hashes, wanted)]] = True

    def result(self) -> Lone:
        """Return those that share nothing."""
        lone = ~self.shared
        kept = lone & self.kept
        return Lone(lone, kept, self.keys["prompt"][kept], int((lone & self.may_be_piece).sum()), self.firsts)


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
