"""Select conversations of a table: by a condition in SQL, a text in the messages, ids, split, or at random."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curate.dataset import columns as dataset_columns
from curate.dataset.condition import parse_condition
from curate.errors import InputError, did_you_mean
from curate.files import is_text

MAX_SEARCH = 10_000  # characters
ROW = "_row"  # the column of row numbers
TEXT_FIELDS = ("content", "tool_calls", "reasoning")  # of messages; sets of an earlier version have fewer


@dataclass(frozen=True)
class Query:
    """Which conversations to select; without any setting, all.

    `where` is a condition in SQL, `search` a text in any message, ignoring case. `ids` are ids of the set, the dump's
    own ids, or `file:index`. `sample` draws so many of the matches: the same ones for the same `seed`, by their texts.
    With `stratify`, a column, each of its values has its share in the sample.
    """

    where: str | None = None
    search: str | None = None
    ids: frozenset[str] | None = None
    split: str | None = None
    sample: int | None = None
    seed: int = 0
    stratify: str | None = None

    def __bool__(self) -> bool:
        return self.takes_pieces or self.split is not None

    @property
    def takes_pieces(self) -> bool:
        """Whether only some pieces of a conversation may be selected."""
        return any(value is not None for value in (self.where, self.search, self.ids, self.sample))

    def condition(self, frame: pl.LazyFrame) -> pl.Expr:
        """Return the condition for a row, but for the sample; raises InputError as `parse_condition` does."""
        parts = [pl.lit(True)]
        if self.split is not None:
            parts.append(pl.col("split") == self.split)
        if self.where is not None:
            parts.append(parse_condition(self.where, frame))
        if self.ids is not None:
            names = name_columns(frame.collect_schema())
            parts.append(pl.any_horizontal(name.is_in(list(self.ids)) for name in names))
        if self.search:
            parts.append(contains_text(self.search, frame.collect_schema().get("messages")))
        return pl.all_horizontal(parts)

    def rows(self, frame: pl.LazyFrame) -> list[int]:
        """Return the numbers of the selected rows in a frame with the column `ROW`, in order."""
        matches = frame.filter(self.condition(frame.drop(ROW)))
        if self.sample is not None:
            return self._draw(matches, self.sample)
        rows: list[int] = matches.select(ROW).collect(engine="streaming").to_series().sort().to_list()
        return rows

    def _draw(self, matches: pl.LazyFrame, count: int) -> list[int]:
        """Return the numbers of the rows in the sample; raises InputError for a column that has no groups."""
        group = pl.lit(None) if self.stratify is None else _group_column(self.stratify, matches.collect_schema())
        role, content = (pl.element().struct.field(name).fill_null("") for name in ("role", "content"))
        text = pl.col("messages").list.eval(pl.concat_str(role, content, separator="\0")).list.join("\0")
        key = text.map_batches(self._keys, return_dtype=pl.UInt64, is_elementwise=True)
        keyed = matches.select(ROW, key=key, group=group).collect(engine="streaming")
        return draw_stratified(keyed, count)

    def _keys(self, texts: pl.Series) -> pl.Series:
        return pl.Series([sample_key(text or "", self.seed) for text in texts], dtype=pl.UInt64)


def read_ids(file: str | Path) -> frozenset[str]:
    """Read the ids in a text file, one on each line; raises InputError if it cannot be read or has none."""
    try:
        lines = Path(file).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(f"cannot read the ids in {str(file)!r}: {reason}; it has one id on each line") from error
    ids = frozenset(line.strip() for line in lines) - {""}
    if not ids:
        raise InputError(f"{str(file)!r} has no ids; it has one id on each line")
    return ids


def name_columns(columns: Collection[str]) -> list[pl.Expr]:
    """Return the columns that name a conversation: its ids and its place in the input."""
    names = [pl.col(name) for name in ("id", "source_id") if name in columns]
    has_place = dataset_columns.SOURCE.keys() <= set(columns)
    return [*names, pl.format("{}:{}", *dataset_columns.SOURCE)] if has_place else names


def contains_text(text: str, messages: pl.DataType | None) -> pl.Expr:
    """Match conversations in which any message contains a text, ignoring case; `messages` is the column's type.

    Raises InputError as `check_text` does.
    """
    check_text(text)
    pattern = f"(?i){pl.escape_regex(text)}"
    there = {field.name for field in messages.inner.fields} if isinstance(messages, pl.List) else set(TEXT_FIELDS)  # type: ignore[union-attr]
    fields = [pl.element().struct.field(name).str.contains(pattern) for name in TEXT_FIELDS if name in there]
    found = pl.any_horizontal(field.fill_null(False) for field in fields)
    return pl.col("messages").list.eval(found).list.any()


def check_text(text: str) -> None:
    """Raise InputError for a text to search that is not UTF-8, or longer than a pattern can be."""
    if not is_text(text):
        raise InputError(f"cannot search {text!r}: it is not UTF-8, as the texts of sets are")
    if len(text) > MAX_SEARCH:
        raise InputError(f"cannot search a text of {len(text):,} characters; give at most {MAX_SEARCH:,} of them")


def draw(total: int, count: int, seed: int | None) -> Sequence[int]:
    """Draw `count` of `total` positions without replacement, in order; the same for the same seed."""
    keys = random.Random(seed)
    return sorted(position for _, position in heapq.nsmallest(count, ((keys.random(), i) for i in range(total))))


def sample_key(text: str, seed: int) -> int:
    """Return a number for the messages of a conversation: their roles and contents, with zero bytes between them.

    The conversations with the lowest numbers are drawn, wherever they are in a file.
    """
    data = f"{seed}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def draw_stratified(keyed: pl.DataFrame, count: int) -> list[int]:
    """Draw rows so that each group has its share (Sainte-Laguë's method); in order.

    `keyed` has `ROW`, key and group. The n-th lowest key of a group of m has the rank (n - ½) / m, and the lowest ranks
    are drawn, so a larger sample contains a smaller one.
    """
    place = pl.int_range(pl.len()).over("group")
    ranked = keyed.sort("key", ROW).with_columns(rank=(place + 0.5) / pl.len().over("group"))
    rows: list[int] = ranked.sort("rank", "key", ROW)[ROW].head(count).sort().to_list()
    return rows


def _group_column(name: str, schema: pl.Schema) -> pl.Expr:
    kinds = {column: kind for column, kind in schema.items() if not kind.is_nested() and column != ROW}
    if name not in kinds:
        hint = did_you_mean(name, kinds) or f"; it has {', '.join(kinds)}"
        raise InputError(f"cannot stratify by {name!r}: there is no such column of single values{hint}")
    return pl.col(name)
