"""Choose the sample conversations of a page: kept ones, repaired ones, and rejects of each rule.

The same set gives the same sample: rows are evenly spaced, not random. They come from the first rows of each
table, so that a large set takes no longer; for a rule without rejects there, its first reject is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polars as pl

from curate.analysis import conversations
from curate.analysis.conversations import ConversationView
from curate.analysis.diff import Change, changes
from curate.analysis.dump_stats import parse_unrepaired
from curate.analysis.explanation import Rejection
from curate.dataset.columns import ORIGINAL
from curate.dataset.curated_set import CuratedSet
from curate.dataset.transaction import RAW_ROW_GROUP
from curate.errors import RecordError
from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.rendering.mask_view import MaskedText
from curate.schemas.conversation import Message

T = TypeVar("T")
MaskReader = Callable[[Sequence[Sequence[Message]]], Sequence[MaskedText]]

SOURCE = ["source_file", "source_index"]
KEPT, REPAIRED, EACH_RULE = 4, 6, 2
NEAR = 1_000  # first rows of conversations.parquet, to choose from
SHORT = 3_000  # characters; longer conversations are used only if there are no shorter ones
RULES = 40  # the most frequent ones; other rules have no sample


@dataclass(frozen=True)
class Samples:
    """Sample conversations.

    Kept conversations have the spans of their rendering, if known; repaired ones have their changes; rejected ones
    are grouped by rule.
    """

    kept: tuple[tuple[ConversationView, MaskedText | None], ...]
    repaired: tuple[tuple[ConversationView, tuple[Change, ...]], ...]
    rejected: tuple[tuple[str, tuple[ConversationView, ...]], ...]


def sample_set(curated: CuratedSet, read_masks: MaskReader | None) -> Samples:
    """Choose conversations of a set, each of one piece; `read_masks` returns their spans, each trained on or not."""
    columns = ("piece", "edit_names", "characters", "source_file", "source_index")
    rows = curated.conversations().head(NEAR).select(columns).with_row_index("row").collect()
    alone = (pl.col("piece") == 0) & (pl.col("piece").shift(-1, fill_value=0) == 0)
    unsplit = rows.filter(alone)
    short = unsplit.filter(pl.col("characters") <= SHORT)
    table = unsplit if short.is_empty() else short
    records = _records(curated)
    repaired = _choose_repaired(table.join(records, on=SOURCE, how="semi", maintain_order="left"))
    chosen = _thin_out(table["row"].to_list(), 8 * KEPT)
    views = conversations.read_kept(curated, [*chosen, *repaired])
    kept = _diverse(views[: len(chosen)])
    spans = read_masks([view.messages for view in kept]) if read_masks is not None else [None] * len(kept)
    samples = tuple(zip(kept, spans, strict=True))
    return Samples(samples, _with_changes(views[len(chosen) :], records), _read_rejects(curated))


def sample_dump(path: str | Path) -> Samples:
    """Choose conversations and unreadable records from the beginning of a dump; none from standard input."""
    readable: list[ConversationView] = []
    unreadable: dict[str, list[ConversationView]] = {}
    if str(path) == "-":
        return Samples((), (), ())
    for chunk in Reader(open_inputs([path]), limit=NEAR):
        for raw in decode_records(chunk):
            place = f"{chunk.source_file}:{raw.index}"
            try:
                conversation = parse_unrepaired(raw)
                name = conversation.source_id or place
                readable.append(ConversationView(name, chunk.source_file, raw.index, tuple(conversation.messages)))
            except RecordError as error:
                rejection = Rejection("record", error.rule, error.reason, error.evidence, None, None)
                text = raw.raw.decode("utf-8", "backslashreplace")
                view = ConversationView(place, chunk.source_file, raw.index, (), rejected=rejection, unread=text)
                unreadable.setdefault(error.rule, []).append(view)
    short = [view for view in readable if sum(len(message.content) for message in view.messages) <= SHORT]
    kept = tuple((view, None) for view in _diverse(_thin_out(short or readable, 8 * KEPT)))
    return Samples(kept, (), tuple((rule, tuple(views[:EACH_RULE])) for rule, views in sorted(unreadable.items())))


def _records(curated: CuratedSet) -> pl.DataFrame:
    """Return the first stored originals of changed records; none if the set has no originals."""
    originals = curated.originals()
    if originals is None:
        return pl.DataFrame(schema=dict(ORIGINAL))
    return originals.head(RAW_ROW_GROUP).collect()


def _thin_out(rows: Sequence[T], count: int) -> list[T]:
    """Return `count` of the rows, evenly spaced."""
    if len(rows) <= count:
        return list(rows)
    return [rows[(2 * index + 1) * len(rows) // (2 * count)] for index in range(count)]


def _diverse(views: Sequence[ConversationView]) -> list[ConversationView]:
    """Return `KEPT` of the conversations, including the first with code."""
    code = [view for view in views if any("```" in message.content for message in view.messages)][:1]
    return code + _thin_out([view for view in views if view not in code], KEPT - len(code))


def _choose_repaired(known: pl.DataFrame) -> list[int]:
    """Return rows that cover as many kinds of repair as possible, rare ones first."""
    named = known.select("row", "edit_names").explode("edit_names").drop_nulls()
    counts = dict(named.group_by("edit_names").len().iter_rows())
    chosen: list[int] = []
    for name in sorted(counts, key=lambda name: (counts[name], name)):
        rows = [row for row in named.filter(edit_names=name)["row"].to_list() if row not in chosen]
        chosen += rows[:1]
    common = [
        row for row in _thin_out(named["row"].unique(maintain_order=True).to_list(), REPAIRED) if row not in chosen
    ]
    return sorted((chosen + common)[:REPAIRED])


def _with_changes(
    repaired: Sequence[ConversationView], records: pl.DataFrame
) -> tuple[tuple[ConversationView, tuple[Change, ...]], ...]:
    pairs = []
    for view in repaired:
        raw = records.filter(source_file=view.source_file, source_index=view.source_index)["record"]
        before, _ = conversations.parse_record(raw[0])
        pairs.append((view, tuple(changes(before, view.messages))))
    return tuple(pairs)


def _read_rejects(curated: CuratedSet) -> tuple[tuple[str, tuple[ConversationView, ...]], ...]:
    """Return rejects of each rule, the most frequent rule first."""
    frame = curated.rejected()
    sizes = frame.head(RAW_ROW_GROUP).select(pl.col("record").bin.size().fill_null(0)).collect().to_series()
    chosen = {rule: _choose_rejects(near, sizes, first) for rule, near, first in _by_rule(frame)}
    rejects = iter(conversations.read_rejected(curated, [row for rows in chosen.values() for row in rows]))
    return tuple((rule, tuple(next(rejects) for _ in rows)) for rule, rows in chosen.items())


def _by_rule(frame: pl.LazyFrame) -> Iterable[tuple[str, list[int], int]]:
    """Yield each rule with its rows near the beginning, and its first row, among rows that store their record."""
    record = pl.struct(SOURCE)  # stored in the first of a record's rows
    rows = frame.select("rule", leads=record.ne_missing(record.shift())).with_row_index("row")
    row, leads = pl.col("row"), pl.col("leads")
    by_rule = rows.group_by("rule").agg(
        count=pl.len(),
        near=row.filter(leads & (row < RAW_ROW_GROUP)),
        first=pl.coalesce(row.filter(leads).min(), row.min()),
    )
    order = by_rule.sort(["count", "rule"], descending=[True, False]).head(RULES).collect(engine="streaming")
    for rule, _, near, first in order.iter_rows():
        yield rule, sorted(near), first


def _choose_rejects(near: Sequence[int], sizes: pl.Series, first: int) -> list[int]:
    short = [row for row in near if sizes[row] <= SHORT]
    return _thin_out(short or near, EACH_RULE) or [first]
