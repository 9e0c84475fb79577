"""Find conversations of a curated set to look at: by id, by a condition, by their text, at random, by the rule."""

from __future__ import annotations

import json
import random as chance
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curate.analysis import conversations
from curate.analysis.conversations import Chat
from curate.analysis.explain import absent, records_named
from curate.dataset.curated_set import CuratedSet, open_set, readable
from curate.dataset.query import condition
from curate.display.displayed import Displayed
from curate.errors import InputError, did_you_mean

READ_AHEAD = 20  # conversations read at once while one goes through them


@dataclass(frozen=True)
class Selection(Displayed):
    """Conversations of a set, read when they are looked at: `kept` and `rejected` are row numbers of the two tables."""

    set: CuratedSet
    kept: Sequence[int]
    rejected: Sequence[int]

    def __len__(self) -> int:
        return len(self.kept) + len(self.rejected)

    def __iter__(self) -> Iterator[Chat]:
        for start in range(0, len(self), READ_AHEAD):
            yield from self.read(start, READ_AHEAD)

    def __getitem__(self, place: int) -> Chat:
        count = len(self)
        if not -count <= place < count:
            raise IndexError(f"conversation {place} of {count}")
        return self.read(place % count, 1)[0]

    def read(self, start: int, count: int) -> list[Chat]:
        """Return `count` conversations from place `start` on; raises SetError where the set is damaged."""
        with readable(self.set):
            found = conversations.kept(self.set, self.kept[start : start + count])
            first = max(0, start - len(self.kept))
            left = count - len(found)
            return found + (conversations.lost(self.set, self.rejected[first : first + left]) if left > 0 else [])

    def head(self, count: int) -> Selection:
        """Return the first of them."""
        kept = self.kept[:count]
        return Selection(self.set, kept, self.rejected[: count - len(kept)])


def show(
    ids: str | Sequence[str] = (),
    set_path: str | Path = "curated",
    *,
    where: str | None = None,
    search: str | None = None,
    random: int | None = None,
    seed: int | None = None,
    rejected: str | bool = False,
) -> Selection:
    """Find conversations of a set; all of them if nothing narrows it down.

    `ids`: of the set, the dump's own, or `file:index`. `where` is a condition in SQL over the columns, `search` a
    text in any message, capitals aside. `random` takes so many of what was found. `rejected` looks among the
    rejects, a text among those of one rule. Raises SetError or InputError in one line.
    """
    curated = open_set(set_path)
    names = [ids] if isinstance(ids, str) else list(ids)
    if names and (where or search or random):
        raise InputError("give ids, or what to look for (where, search, random), not both")
    with readable(curated):
        found = _named(curated, names, bool(rejected)) if names else _matching(curated, where, search, rejected)
    return found if random is None else _sampled(found, random, seed)


def _matching(curated: CuratedSet, where: str | None, search: str | None, rejected: str | bool) -> Selection:
    frame = curated.rejected() if rejected else curated.conversations()
    condition_ = condition(where, frame) if where is not None else None
    if isinstance(rejected, str):
        _check_rule(curated, rejected)
        frame = frame.with_row_index("_row").filter(pl.col("rule") == rejected)
    else:
        frame = frame.with_row_index("_row")
    if condition_ is not None:
        frame = frame.filter(condition_)
    if search:
        frame = frame.filter(_says_in_record(search) if rejected else _says(search))
    rows = frame.select("_row").collect(engine="streaming").to_series().sort().to_list()
    return Selection(curated, (), rows) if rejected else Selection(curated, rows, ())


def _check_rule(curated: CuratedSet, rule: str) -> None:
    known = curated.rejected().select(pl.col("rule").unique()).collect().to_series().drop_nulls().to_list()
    if rule not in known:
        raise InputError(f"no record was rejected by {rule!r}{did_you_mean(rule, known)}")


def _says(text: str) -> pl.Expr:
    """Tell whether any message holds a text, capitals aside."""
    pattern = f"(?i){pl.escape_regex(text)}"
    said = pl.element().struct.field("content").str.contains(pattern)
    called = pl.element().struct.field("tool_calls").str.contains(pattern)
    return pl.col("messages").list.eval(said | called.fill_null(False)).list.any()


def _says_in_record(text: str) -> pl.Expr:
    """Tell whether a record's bytes, its reason or its evidence hold a text, as it stands or as JSON writes it."""
    forms = {text, text.lower(), text.upper()}  # as JSON writes what is not ASCII, capitals differ in their numbers
    written = {text} | {json.dumps(form, ensure_ascii=ascii)[1:-1] for form in forms for ascii in (True, False)}
    pattern = f"(?i){'|'.join(pl.escape_regex(one) for one in sorted(written))}"
    record = pl.col("record").map_batches(_decoded, return_dtype=pl.String)
    return pl.any_horizontal(
        column.str.contains(pattern).fill_null(False) for column in (record, pl.col("reason"), pl.col("evidence"))
    )


def _decoded(records: pl.Series) -> pl.Series:
    """Return bytes as text; Polars' own cast gives up the whole column for one record that is no UTF-8."""
    return pl.Series([record and record.decode("utf-8", "replace") for record in records], dtype=pl.String)


def _named(curated: CuratedSet, names: Sequence[str], rejected: bool) -> Selection:
    """Return the rows that the ids name: a piece by its own id, else all pieces of a record, else its rejection."""
    kept: list[int] = []
    lost: list[int] = []
    for name in names:
        whole = [] if rejected else _rows(curated.conversations(), pl.col("id") == name)
        keys = [] if whole else records_named(curated, name)
        if not whole and not keys:
            raise absent(curated, name)
        place = pl.any_horizontal(
            pl.lit(False),
            *((pl.col("source_file") == file) & (pl.col("source_index") == index) for file, index in keys),
        )
        found = whole or (_rows(curated.conversations(), place) if not rejected else [])
        kept += found
        if not found:
            lost += _rows(curated.rejected(), place)
    if rejected and not lost:
        raise InputError(f"nothing of {', '.join(map(repr, names))} was rejected; leave --rejected out")
    return Selection(curated, tuple(dict.fromkeys(kept)), tuple(dict.fromkeys(lost)))


def _rows(frame: pl.LazyFrame, which: pl.Expr) -> list[int]:
    rows = frame.with_row_index("_row").filter(which).select("_row")
    return rows.collect(engine="streaming").to_series().sort().to_list()


def _sampled(found: Selection, count: int, seed: int | None) -> Selection:
    """Return so many, drawn without putting back; the same for the same seed."""
    drawn = sorted(chance.Random(seed).sample(range(len(found)), min(count, len(found))))
    whole = len(found.kept)
    kept = tuple(found.kept[at] for at in drawn if at < whole)
    return Selection(found.set, kept, tuple(found.rejected[at - whole] for at in drawn if at >= whole))
