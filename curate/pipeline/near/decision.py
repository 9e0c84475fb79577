"""Decide which conversations are near duplicates, over the whole corpus.

Conversations that share no band with each other can be decided apart: then only the bands of some are in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.engine import base
from curate.filters import duplicates
from curate.filters.minhash import signatures, templates
from curate.filters.minhash.matches import Pair
from curate.filters.minhash.shingles import Shingles, Values, is_in, jaccard
from curate.filters.registry import Settings
from curate.pipeline.near import parts as near_parts
from curate.pipeline.steps import Part
from curate.pipeline.train_marks import WORTH
from curate.pipeline.whole import lone
from curate.pipeline.whole.spill import KeyFiles, link

SAMPLE_BYTES = 128 << 20  # of the sets in which common shingles are counted
DESCRIBED = 500  # pairs that one task describes
LARGE = 0.01  # share of all conversations that is named in a warning
MIN_LARGE = 50  # conversations
LINKS = "near.links"  # pairs of conversations that share a band
TWINS: dict[str, pl.DataType] = {
    "order": pl.UInt32(),
    "twin": pl.UInt32(),
    "figure": pl.Float64(),
    "evidence": pl.String(),
}


@dataclass(frozen=True)
class Twins:
    """What a rule drops among conversations that are numbered by their `order`.

    `rows` (`TWINS`) has those to drop, with the twin to keep and how similar it is. `edges`, [pairs, 2], has those to
    hold out together.
    """

    rows: pl.DataFrame
    edges: NDArray[np.int64]
    alone: int  # conversations that would be dropped if this were the only rule


class Finder(Protocol):
    """Finds what a corpus rule drops, of what the rules before it keep."""

    name: str
    divides: bool  # whether it can decide on groups of conversations one after the other
    surveys: bool  # whether it has to see all conversations before that
    notes_rest: bool  # whether it has to see those afterwards that share nothing with others

    def survey(self, rows: pl.DataFrame, parts: Sequence[int]) -> None:
        """See some of the conversations that it will decide on, part, row and chain; `parts` has all numbers."""

    def link(self, parts: Sequence[Part], firsts: Mapping[int, int], folder: Path) -> Path | None:
        """Return a file in `folder` of those to decide on together, after the survey; None if they share a prompt.

        It has pairs of their places among all conversations, uint32; `firsts` has the place of each part's first.
        """

    def find(self, rows: pl.DataFrame, alone: pl.DataFrame) -> Twins:
        """Find what to drop among `rows`, and count what would be dropped among `alone`: what this rule sees alone."""

    def pass_by(self, rows: pl.DataFrame) -> None:
        """See conversations that share nothing with others: part, row and chain."""

    def warnings(self) -> Sequence[str]:
        """Return warnings on what was found."""


@dataclass(frozen=True)
class _Described:
    """A near duplicate with its evidence and the longest passage that it shares with its twin."""

    pair: Pair
    evidence: str
    passage: str


class NearDuplicates:
    """Finds the near duplicates of a run whose workers have written each part's shingles."""

    name = duplicates.NEAR
    divides = True
    surveys = True

    def __init__(self, pool: base.Pool, folder: Path, settings: Settings) -> None:
        self._pool = pool
        self._folder = folder
        self._settings = settings
        self._of = str(settings["of"])
        self._store: near_parts.Store | None = None
        self._sample = pl.DataFrame(schema={"last": pl.UInt64, "part": pl.UInt32, "row": pl.UInt32})
        self._rows = self._texts = 0  # conversations that were surveyed, and different texts of these
        self._groups: list[tuple[int, tuple[int, int], str]] = []  # size, place of the one that is kept, and the rest
        self._templated = 0
        self.notes_rest = False
        self._first_templated: tuple[int, int, int] | None = None  # the hash of its content, part and row

    def find(self, rows: pl.DataFrame, alone: pl.DataFrame) -> Twins:
        """Find the near duplicates among `rows`, and count those among `alone`: what this rule would see by itself.

        Both have part, row, chain and marks, in record order; `rows` has `order`. If no survey was made, these are all
        conversations.
        """
        if rows.is_empty() and alone.is_empty():
            return Twins(pl.DataFrame(schema=TWINS), np.empty((0, 2), np.int64), 0)
        if self._store is None:
            self.survey(rows, sorted({*rows["part"], *alone["part"]}))
            for _ in self._compute_bands():
                pass
        found = self._match(rows)
        drops = self._settings["action"] == "drop"
        alone_count = self._count_alone(rows, alone, len(found)) if drops else 0
        order = rows["order"].to_numpy().astype(np.int64)
        edges = np.array([(pair.row, pair.twin) for pairs in found for pair in pairs], np.int64).reshape(-1, 2)
        described = self._describe(rows, [pairs[0] for pairs in found]) if drops else []
        twins = pl.DataFrame(
            [(order[each.pair.row], order[each.pair.twin], each.pair.jaccard, each.evidence) for each in described],
            schema=TWINS,
            orient="row",
        )
        self._note(rows, described)
        return Twins(twins, order[edges], alone_count)

    def survey(self, rows: pl.DataFrame, parts: Sequence[int]) -> None:
        """See some of the conversations, in a sample of which common shingles are counted."""
        if self._store is None:
            self._store = near_parts.Store(self._folder, parts)
            self._first = self._store.firsts
        self._rows += rows.height
        distinct = rows.select("part", "row", last=pl.col("chain").list.last()).unique("last")
        distinct = distinct.filter(pl.Series(self._sizes(distinct) > 0, dtype=pl.Boolean))
        self._texts += distinct.height
        lowest = pl.concat([self._sample, distinct.select(self._sample.columns)]).sort("last")
        self._sample = lowest.head(templates.SAMPLE)

    def link(self, parts: Sequence[Part], firsts: Mapping[int, int], folder: Path) -> Path:
        """Return a file of pairs that share a band."""
        rows = {part.number: part.summary for part in parts}
        size = signatures.BANDS * sum(lone.count_rows(parts))
        keys = KeyFiles(folder, "bands", size)
        numbers = np.arange(signatures.BANDS, dtype=np.uint64) << np.uint64(32)
        for number, bands in self._compute_bands():
            if number not in rows:
                continue
            own = rows[number].lazy().select("row").collect()["row"].to_numpy()
            has_words = np.flatnonzero(self._store_of().sizes(own + self._first[number]) > 0)
            values = bands[own[has_words]].astype(np.uint64) | numbers
            places = (has_words + firsts[number]).astype(np.uint32)
            keys.add(values.reshape(-1), places.repeat(signatures.BANDS))
        path = folder / LINKS
        with path.open("wb") as file:
            for same in map(link, keys.partitions()):
                file.write(same.tobytes())
        keys.remove()
        return path

    def _store_of(self) -> near_parts.Store:
        assert self._store is not None  # since `survey`
        return self._store

    def _numbers(self, rows: pl.DataFrame) -> NDArray[np.int64]:
        """Return the number of each row's conversation among those of all parts."""
        firsts = rows["part"].replace_strict(list(self._first), list(self._first.values()), return_dtype=pl.Int64)
        numbers: NDArray[np.int64] = firsts.to_numpy() + rows["row"].to_numpy().astype(np.int64)
        return numbers

    def _sizes(self, rows: pl.DataFrame) -> NDArray[np.int64]:
        return self._store_of().sizes(self._numbers(rows))

    def _compute_bands(self) -> Iterator[tuple[int, Values]]:
        """Yield the bands of each part, [conversations, bands], computed in the workers; keep them in a file."""
        np.save(self._folder / near_parts.COMMON, self._find_common())
        numbers = list(self._first)
        calls = (base.Call(near_parts.band_part, (self._folder, number)) for number in numbers)
        with self._store_of().bands_path.open("wb") as file:
            for number, (bands, templated) in zip(numbers, self._pool.map(calls), strict=True):
                self.notes_rest |= bool(templated.any())
                file.write(np.column_stack([bands, templated]).astype(np.uint32).tobytes())
                yield number, bands

    def _count_alone(self, rows: pl.DataFrame, alone: pl.DataFrame, found: int) -> int:
        """Return how many of the conversations in `alone` are dropped; `found` of `rows` are."""
        same = rows.height == alone.height and rows.select("part", "row").equals(alone.select("part", "row"))
        return found if same else len(self._match(alone))

    def _find_common(self) -> Values:
        """Return the shingles that many conversations share, from a sample by their contents' hashes."""
        sizes = self._sizes(self._sample)
        total = np.cumsum(sizes) * np.dtype(np.uint32).itemsize
        stop = max(1, int(np.searchsorted(total, SAMPLE_BYTES)))
        sample = np.sort(self._numbers(self._sample)[:stop])
        store = self._store_of()
        values = np.concatenate([*map(store.read, sample.tolist()), np.empty(0, np.uint32)])
        self._common = templates.find_common(
            Shingles(values, store.sizes(sample)), self._texts, float(str(self._settings["common"]))
        )
        return self._common

    def _match(self, rows: pl.DataFrame) -> list[list[Pair]]:
        """Return the pairs of each near duplicate among the rows, by their places."""
        numbers = self._numbers(rows)
        sizes = self._store_of().sizes(numbers)
        bands = self._store_of().bands(numbers)
        templated = bands[:, -1] > 0
        threshold = float(str(self._settings["threshold"]))

        def figure(first: int, second: int) -> float:
            """Return the Jaccard figure of two; 0 if it is below the threshold, for their own texts too."""
            smaller, larger = sorted((int(sizes[first]), int(sizes[second])))
            if smaller < threshold * larger:
                return 0.0
            sets = [self._store_of().read(int(numbers[place])) for place in (first, second)]
            found = jaccard(*sets)
            if found < threshold or not (templated[first] or templated[second]):
                return found
            own = [values[~is_in(values, self._common)] for values in sets]
            return found if not (len(own[0]) or len(own[1])) or jaccard(*own) >= threshold else 0.0

        def compare(row: int, others: list[int]) -> list[float]:
            return [figure(row, other) for other in others]

        candidates = duplicates.Candidates(bands[:, :-1], _from_best(rows, sizes), compare)
        return duplicates.near_duplicates(candidates, **self._settings)  # type: ignore[arg-type]  # checked

    def _describe(self, rows: pl.DataFrame, pairs: Sequence[Pair]) -> list[_Described]:
        places = rows.select("part", "row").rows()
        ordered = iter(sorted(pairs, key=lambda pair: places[pair.row][0]))
        groups = [*iter(lambda: list(islice(ordered, DESCRIBED)), [])]
        calls = (
            base.Call(
                near_parts.describe,
                (self._folder, self._of, [(*places[pair.row], *places[pair.twin]) for pair in group]),
            )
            for group in groups
        )
        return [
            _Described(pair, *texts)
            for group, described in zip(groups, self._pool.map(calls), strict=True)
            for pair, texts in zip(group, described, strict=True)
        ]

    def _note(self, rows: pl.DataFrame, described: Sequence[_Described]) -> None:
        """Note what warnings say."""
        sizes = Counter(each.pair.twin for each in described)
        passages = {each.pair.twin: each.passage for each in described}
        names = rows.select(pl.format("{}:{}", "source_file", "source_index"))
        for twin, size in sizes.items():
            if size > self._large:
                text = f"{names.item(twin, 0)}, which is kept; they share “{passages[twin][: near_parts.EXCERPT]}”"
                self._groups.append((size, (rows["part"][twin], rows["row"][twin]), text))
        self.pass_by(rows)

    def pass_by(self, rows: pl.DataFrame) -> None:
        """Note which conversations are mostly a template's text."""
        templated = self._store_of().bands(self._numbers(rows))[:, -1] > 0
        own = rows.filter(pl.Series(templated, dtype=pl.Boolean))
        self._templated += own.height
        contents = own.select(pl.col("chain").list.last(), "part", "row").sort(pl.all()).head(1).rows()
        firsts = [*contents, *([self._first_templated] if self._first_templated else [])]
        self._first_templated = min(firsts, default=None)

    @property
    def _large(self) -> float:
        return max(LARGE * self._rows, MIN_LARGE)

    def warnings(self) -> list[str]:
        """Return a warning for each group that is a large share of the set, and for a template of many."""
        texts = [
            f"{duplicates.NEAR}: {size:,} of {self._rows:,} conversations are nearly the same as {text}"
            for size, _, text in sorted(self._groups, key=lambda group: (-group[0], group[1]))
        ]
        if self._first_templated is not None and self._templated > self._large:
            passage = near_parts.common_passage(self._folder, *self._first_templated[1:], self._of)
            texts.append(
                f"{duplicates.NEAR}: {self._templated:,} of {self._rows:,} conversations are mostly text that "
                f"many share, such as “{passage}”; only those are dropped whose other text is nearly the same too"
            )
        return texts


def _from_best(rows: pl.DataFrame, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of the rows that have words, from the best conversation to the worst.

    The best trains the most answers, then has the most different words, then the most messages; of equal ones, the
    hash of the content decides, so the order of records never does.
    """
    ranked = rows.select(size=pl.Series(sizes), **WORTH).with_row_index("place")
    ranked = ranked.filter(pl.col("size") > 0)
    ranked = ranked.sort("untrained", "size", "messages", "last", "place", descending=[False, True, True, False, False])
    return ranked["place"].to_numpy().astype(np.int64)
