"""Decisions over the whole corpus: duplicates, unique ids, train or eval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from curate import files
from curate.dataset import columns
from curate.filters import caps, duplicates
from curate.filters.registry import Settings
from curate.ingest.damaged_records import DAMAGED_STREAM, DOUBT, DamagedRecords
from curate.pipeline import clusters, holdout, train_marks
from curate.pipeline.near.decision import TWINS, Finder, Twins
from curate.pipeline.recipe import Recipe
from curate.pipeline.sets import earlier
from curate.pipeline.sets.earlier import Known
from curate.pipeline.steps import Part
from curate.pipeline.whole import lone as lone_rows
from curate.pipeline.whole.decided import DecidedGroups
from curate.pipeline.whole.doubt import with_doubt
from curate.pipeline.whole.groups import GROUP_ROWS, divide, have_pieces
from curate.pipeline.whole.limits import WideLimits, add_lone, read_capped, without_capped
from curate.pipeline.whole.lone import Lone, Members
from curate.pipeline.whole.names import with_ids
from curate.pipeline.whole.rest import Rest

DUPLICATES = "exact_duplicates"
KIND_TEXTS = {  # in reasons, by the kind of duplicate
    "exact": "the same as",
    "prefix": "the beginning of",
    "first_exchange": "the same first exchange as",
    "id": "the same id as",
    duplicates.NEAR: "nearly the same as",
    caps.PROMPT_CAP: "one more with the prompt of",
}
FIGURES = {duplicates.NEAR: ", Jaccard ", caps.PROMPT_CAP: ", cosine "}
TWIN: columns.Types = {**TWINS, "kind": pl.String, "via": pl.UInt32}
P = TypeVar("P", bound=Part)
DECIDED = tuple(name for name in columns.DECISION if name not in ("part", "row", "split"))
EARLIER = ("set", "earlier_split", "prompt")  # that decide on the split
PART_KEY = ["part", "row"]  # identifies a conversation among the parts
LARGE = 100_000  # conversations, from which on those that share nothing are not held in memory


@dataclass(frozen=True)
class Decisions:
    """The decisions on conversations that no filter rejected, in record order.

    Columns of `blocks`: those of `columns.DECISION`; the type of one that is null throughout may be Null. All rows of
    a part are in one block. Columns of `gains`: those of `train_marks.GAINS`. Of a large corpus, the blocks are files,
    and `rest` has the conversations that share nothing with another, and that are in no block.
    """

    blocks: Sequence[pl.DataFrame | pl.LazyFrame]
    gains: pl.DataFrame  # messages that only a dropped copy trains
    alone: Mapping[str, int]  # conversations that each of these rules would reject on its own
    warnings: Sequence[str] = ()
    rest: Rest | None = None

    @property
    def rows(self) -> pl.DataFrame:
        """The rows of all blocks."""
        return pl.concat(self.select(pl.all()), how="diagonal_relaxed")

    def select(self, *wanted: pl.Expr | str) -> Iterator[pl.DataFrame]:
        """Yield what is wanted of the rows of each block."""
        for rows in self.blocks:
            yield rows.lazy().select(*wanted).collect()

    def without_rows(self) -> Decisions:
        """Return the decisions without what is read from files once it is written: it is large."""
        return replace(self, blocks=(), rest=None)


def decide(
    parts: list[P],
    recipe: Recipe,
    damaged: Sequence[DamagedRecords] = (),
    finders: Sequence[Finder] = (),
    known: Known | None = None,
    large: int = LARGE,
    group_rows: int = GROUP_ROWS,
    folder: Path | None = None,
) -> Decisions:
    """Find duplicates, assign unique ids, and choose train or eval, from the parts' summaries.

    `parts` lose these: together they are the largest thing that the process holds, and nothing else needs them.
    `finders` are those of the recipe's further corpus rules, each of which sees what the rules before it keep. `known`
    has the summaries of an earlier set's conversations: what is the same as one, or its beginning, is rejected.
    Records of damaged streams are rejected or marked before that, so that none is the twin of a sound record.
    From `large` conversations on, only those that share something with another are decided together, if the rules
    allow, in groups of about `group_rows`; keys and decisions are in files in the `folder`, while these are used.
    """
    if folder is not None and _may_divide(parts, finders, large):
        decided = _decide_large(parts, recipe, damaged, finders, known, group_rows, folder)
    else:
        decided = _decide_whole(parts, recipe, damaged, finders, known)
    parts[:] = [replace(part, summary=part.summary.clear()) for part in parts]
    return decided


def _decide_whole(
    parts: list[P],
    recipe: Recipe,
    damaged: Sequence[DamagedRecords],
    finders: Sequence[Finder],
    known: Known | None,
) -> Decisions:
    """Decide on all conversations at once."""
    old = None if known is None else earlier.collect(known)
    decided = _decide(_measured(_take(parts)), None, recipe, damaged, finders, old)
    held_out = holdout.choose(lambda: [_kept_clusters(decided.rows)], list, recipe.eval)
    rows = _with_split(decided.rows, decided.known, held_out)
    rows = pl.concat([rows, _verdicts(parts)], how="diagonal_relaxed").select(*columns.DECISION)
    return Decisions([rows], decided.gains.sort(*PART_KEY, "position"), dict(decided.alone), _warnings(finders))


def _decide_large(
    parts: list[P],
    recipe: Recipe,
    damaged: Sequence[DamagedRecords],
    finders: Sequence[Finder],
    known: Known | None,
    size: int,
    folder: Path,
) -> Decisions:
    """Decide on those that share something a group at a time, and on all others by their number alone."""
    dividing = _Dividing(parts, recipe, damaged, finders, known, size, folder)
    lone = dividing.find_lone()
    groups = DecidedGroups(folder)
    gains, alone = [pl.DataFrame(schema=train_marks.GAINS)], Counter[str]()
    if _has_wide_limits(recipe):
        decided_groups, lone = dividing.decide_capped(lone)
    else:
        decided_groups = dividing.decide(lone)
    for decided in decided_groups:
        groups.add(decided.rows, decided.known)
        gains.append(decided.gains)
        alone += decided.alone
    held_out = holdout.choose(groups.clusters, lone.prompts, recipe.eval)
    blocks = groups.by_part(lone.firsts, lambda rows, old: _with_split(rows, old, held_out), _verdicts(parts))
    rest = Rest.of(lone, held_out.of_alone)
    every = pl.concat(gains).sort(*PART_KEY, "position")
    return Decisions(blocks, every, dict(alone), _warnings(finders), rest)


@dataclass
class _Dividing:
    """Divides a large corpus into conversations that share nothing with others, and groups of the others."""

    parts: Sequence[Part]
    recipe: Recipe
    damaged: Sequence[DamagedRecords]
    finders: Sequence[Finder]
    known: Known | None
    size: int
    folder: Path
    pieces: bool = False  # whether ids name the pieces of chats

    def find_lone(self) -> Lone:
        """Return the conversations that share nothing with others, in the eyes of any rule."""
        lone = self._find_lone(None)
        self.pieces = have_pieces(self.parts, lone)
        for finder in self.finders:
            if finder.surveys:
                self._survey(finder, lone)
                lone = self._find_lone(finder.link(self.parts, lone.firsts, self.folder))
            for rows in self._rest(lone) if finder.notes_rest else ():
                finder.pass_by(rows)
        return lone

    def groups(self, lone: Lone) -> Iterator[tuple[pl.DataFrame, pl.DataFrame | None]]:
        """Yield the conversations of each group, with the known ones; None without a known set."""
        exchanges = _compares_exchanges(self.recipe)
        for group in divide(self.parts, lone, self._old, pieces=self.pieces, exchanges=exchanges, size=self.size):
            yield _measured(group.rows), None if self.known is None else group.known

    def decide(self, lone: Lone) -> Iterator[_Decided]:
        """Yield the decisions on each group."""
        for measured, old in self.groups(lone):
            yield _decide(measured, self.pieces, self.recipe, self.damaged, self.finders, old)

    def decide_capped(self, lone: Lone) -> tuple[Iterator[_Decided], Lone]:
        """Return the decisions on each group and on the lone ones over a limit, and which lone ones are kept.

        Limits of `cap` on files, models and languages are for all groups together.
        """
        limits = self.recipe.filters[caps.CAP]
        every, sole = (WideLimits(self.folder, name, limits, lone) for name in ("cap", "sole"))
        found = []
        for number, (measured, old) in enumerate(self.groups(lone)):
            own = _find(measured, self.pieces, self.recipe, self.damaged, self.finders, old)
            every.add_group(_candidates(own.rows.filter(pl.col("twin").is_null())), number)
            sole.add_group(_candidates(own.sole), number)
            found.append(_StoredFound.of(own, self.folder, number))
        add_lone(self.parts, lone, every, sole)
        every.find()
        alone = Counter({caps.CAP: sole.find()})
        kept = without_capped(lone, every)
        return self._finish_groups(found, every, +alone, lone, kept), kept

    def _finish_groups(
        self, found: Sequence[_StoredFound], limits: WideLimits, alone: Counter[str], before: Lone, after: Lone
    ) -> Iterator[_Decided]:
        for number, own in enumerate(found):
            yield _finish(own.load(), limits.of_group(number))
        none = pl.DataFrame(schema=train_marks.GAINS)
        known = earlier.no_known().with_columns(cluster=pl.lit(None, pl.String))
        yield _Decided(_rejected_lone(pl.DataFrame()), known, none, alone)
        for rows in read_capped(self.parts, before, after, limits):
            yield _Decided(_rejected_lone(rows), known, none, Counter())

    @property
    def _old(self) -> Known:
        return () if self.known is None else self.known

    def _find_lone(self, links: Path | None) -> Lone:
        exchanges = _compares_exchanges(self.recipe)
        return lone_rows.find_lone(self.parts, self.damaged, self._old, self.folder, exchanges=exchanges, links=links)

    def _survey(self, finder: Finder, lone: Lone) -> None:
        """Show a finder all conversations that the rules before it keep."""
        numbers = [
            part.number for part, count in zip(self.parts, lone_rows.count_rows(self.parts), strict=True) if count
        ]
        for measured, old in self.groups(lone):
            rows = _with_doubt(measured, self.pieces, self.damaged)
            surviving, _, twins = _find_exact(rows, self.recipe, earlier.no_known() if old is None else old)
            finder.survey(_distinct(surviving, twins), numbers)
        for rows in self._rest(lone):
            finder.survey(rows, numbers)

    def _rest(self, lone: Lone) -> Iterator[pl.DataFrame]:
        """Yield those that share nothing with others, as finders see them."""
        kept = Members(lone.kept, lone.firsts)
        for rows in lone_rows.read(self.parts, kept, [pl.col("row", "chain", r"^protected$")]):
            yield _select(_measured([rows]), ~pl.col("protected"))


def _warnings(finders: Sequence[Finder]) -> list[str]:
    return [text for finder in finders for text in finder.warnings()]


@dataclass(frozen=True)
class _Found:
    """What rules find among some conversations, without limits of `cap`.

    `rows` are those that no filter rejects, with their twins and clusters, `dropped` those that are rejected first,
    `known` the known conversations with their clusters, and `sole` what each rule would see by itself.
    """

    rows: pl.DataFrame
    dropped: pl.DataFrame
    known: pl.DataFrame
    sole: pl.DataFrame
    alone: Counter[str]  # without `cap`


@dataclass(frozen=True)
class _StoredFound:
    """What rules find in a group, in files."""

    paths: Sequence[Path]
    alone: Counter[str]

    @classmethod
    def of(cls, found: _Found, folder: Path, number: int) -> _StoredFound:
        """Write what was found."""
        frames = {"found": found.rows, "dropped": found.dropped, "known": found.known}
        paths = [folder / f"{name}-{number:06d}.found.arrow" for name in frames]
        for path, rows in zip(paths, frames.values(), strict=True):
            rows.write_ipc(path)
        return cls(paths, found.alone)

    def load(self) -> _Found:
        """Read what was found, without `sole`, and remove the files."""
        rows, dropped, known = (pl.scan_ipc(path).collect() for path in self.paths)
        for path in self.paths:
            files.remove(path, path.parent)
        return _Found(rows, dropped, known, rows.clear(), self.alone)


@dataclass(frozen=True)
class _Decided:
    """The decisions on some conversations, without their split; `known` has the known ones with their clusters."""

    rows: pl.DataFrame
    known: pl.DataFrame
    gains: pl.DataFrame
    alone: Counter[str]


def _decide(
    measured: pl.DataFrame,
    pieces: bool | None,
    recipe: Recipe,
    damaged: Sequence[DamagedRecords],
    finders: Sequence[Finder],
    known: pl.DataFrame | None,
) -> _Decided:
    """Decide on conversations that share nothing with others; `pieces` says whether ids name the pieces of chats."""
    found = _find(measured, pieces, recipe, damaged, finders, known)
    alone = found.alone
    if caps.CAP in recipe.filters:
        alone = alone | Counter({caps.CAP: _cap(_candidates(found.sole), recipe.filters[caps.CAP]).height})
    return replace(_finish(found, _cap_rows(found.rows, recipe)), alone=alone)


def _find(
    measured: pl.DataFrame,
    pieces: bool | None,
    recipe: Recipe,
    damaged: Sequence[DamagedRecords],
    finders: Sequence[Finder],
    known: pl.DataFrame | None,
) -> _Found:
    """Find duplicates and clusters."""
    old = earlier.no_known() if known is None else known
    measured = _with_doubt(measured, pieces, damaged)
    sole = _select(measured, pl.col("alone")).with_row_index("order")
    surviving, dropped, twins = _find_exact(measured, recipe, old)
    del measured
    twins, found = _find_further(surviving, sole, twins, finders)
    edges = [np.empty((0, 2), np.int64), *(each.edges for each in found.values())]
    surviving, old = earlier.add_clusters(surviving, old, np.concatenate(edges))
    rows = surviving.join(twins, on="order", how="left", maintain_order="left")
    alone = Counter(_count_alone(sole, recipe, known) | {name: each.alone for name, each in found.items()})
    return _Found(rows, pl.concat(dropped, how="diagonal"), old, sole, +alone)


def _finish(found: _Found, capped: pl.DataFrame) -> _Decided:
    """Decide, with those over a limit of `cap` (`caps.CAPPED`, by their order)."""
    rows = found.rows.join(capped.rename({"row": "order"}), on="order", how="left", maintain_order="left")
    rows = rows.with_columns(kept=pl.col("twin").is_null() & pl.col("capped").is_null())
    gains = train_marks.find_gains(rows.filter(pl.col("capped").is_null()))
    rows = _with_twin_names(with_ids(rows))
    rows = pl.concat([rows, found.dropped], how="diagonal").select(*PART_KEY, *DECIDED, *EARLIER)
    return _Decided(rows, found.known, gains, found.alone)


def _rejected_lone(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the decisions on lone conversations that are over a limit, from their `capped` and `measures`."""
    schema = {name: dtype for name, dtype in columns.DECISION.items() if name != "split"}
    empty = pl.DataFrame(schema={**schema, "set": pl.UInt32, "earlier_split": pl.String, "prompt": pl.UInt64})
    if rows.is_empty():
        return empty
    rows = rows.with_columns(rule=pl.lit(caps.CAP), reason="capped", evidence="measures")
    return pl.concat([empty, rows.drop("place", "capped", "measures")], how="diagonal_relaxed")


def _with_doubt(measured: pl.DataFrame, pieces: bool | None, damaged: Sequence[DamagedRecords]) -> pl.DataFrame:
    """Add `chat` and `doubt`."""
    return with_doubt(measured.with_columns(chat=clusters.split_chats(measured, pieces)), damaged)


def _find_exact(
    measured: pl.DataFrame, recipe: Recipe, known: pl.DataFrame
) -> tuple[pl.DataFrame, tuple[pl.DataFrame, ...], pl.DataFrame]:
    """Return those that no filter rejects, with their `order`, those that are rejected first, and exact duplicates."""
    surviving, dropped = _reject_earliest(_select(measured, pl.col("pieces") > 0), recipe, known)
    surviving = surviving.with_row_index("order")
    return surviving, dropped, _twins(_select(surviving, ~pl.col("protected")), recipe)


def _distinct(rows: pl.DataFrame, twins: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that further rules see."""
    return _select(rows, ~pl.col("protected") & ~pl.col("order").is_in(twins["order"].implode()))


def _may_divide(parts: Sequence[Part], finders: Sequence[Finder], large: int) -> bool:
    """Return whether the corpus is large, and the rules allow that it is decided in groups."""
    in_files = all(isinstance(part.summary, pl.LazyFrame) for part in parts)
    divides = in_files and all(finder.divides for finder in finders)
    return divides and sum(lone_rows.count_rows(parts)) >= large


def _has_wide_limits(recipe: Recipe) -> bool:
    """Return whether more than the conversations of a cluster are limited."""
    return any(limit for name, limit in recipe.filters.get(caps.CAP, {}).items() if name != "cluster")


def _compares_exchanges(recipe: Recipe) -> bool:
    return bool(recipe.filters.get(DUPLICATES, {}).get("first_exchange"))


def _reject_earliest(
    rows: pl.DataFrame, recipe: Recipe, known: pl.DataFrame
) -> tuple[pl.DataFrame, tuple[pl.DataFrame, ...]]:
    """Return the rows, without those of damaged streams and those that are known, and these; `continues` is added."""
    damaged = pl.col("doubt").is_not_null() & (recipe.input.damaged_streams == "reject")
    surviving = _select(rows, ~damaged)
    repeated = earlier.find_known(surviving, known)
    if repeated.height:
        surviving = surviving.join(repeated, on=PART_KEY, how="anti", maintain_order="left")
    continued = earlier.find_continued(surviving, known)
    surviving = surviving.join(continued, on=PART_KEY, how="left", maintain_order="left")
    return surviving, (_reject_damaged(rows.filter(damaged)), _reject_known(repeated))


def _find_further(
    rows: pl.DataFrame, sole: pl.DataFrame, twins: pl.DataFrame, finders: Sequence[Finder]
) -> tuple[pl.DataFrame, dict[str, Twins]]:
    """Return the twins with those of further rules, and what each of these finds, by its name."""
    found = {}
    for finder in finders:
        found[finder.name] = finder.find(_distinct(rows, twins), sole)
        twins = _join_twins(twins, found[finder.name].rows, finder.name)
    return twins, found


def _count_alone(sole: pl.DataFrame, recipe: Recipe, known: pl.DataFrame | None) -> dict[str, int]:
    """Return how many conversations each rule would reject by itself, but for the rules that finders have."""
    alone = {DUPLICATES: _twins(sole, recipe).height}
    if recipe.input.damaged_streams == "reject":
        alone[DAMAGED_STREAM] = sole.filter(pl.col("doubt").is_not_null()).height
    if known is not None:
        alone[earlier.KNOWN] = earlier.find_known(sole, known).height
    return alone


def _select(rows: pl.DataFrame, condition: pl.Expr) -> pl.DataFrame:
    """Return the rows of which a condition is true; not a copy if that is all of them, as it mostly is."""
    chosen = rows.select(condition).to_series()
    return rows if chosen.sum() == rows.height else rows.filter(chosen)


def _take(parts: list[P]) -> list[pl.DataFrame]:
    """Return the summaries of all parts, which lose them."""
    collected = pl.collect_all([_numbered(part) for part in parts])
    parts[:] = [replace(part, summary=part.summary.clear()) for part in parts]
    return collected


def _measured(collected: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return the summaries of conversations in one frame, with the columns of parts that are made of sets."""
    further = {**columns.SET_SUMMARY, **columns.GROUP_SUMMARY, "part": pl.UInt32}
    schema = pl.DataFrame(schema={**columns.PART_SUMMARY, **further})
    rows = pl.concat([schema, *collected], how="diagonal").rechunk()
    return rows.with_columns(pl.col("protected").fill_null(False))


def _numbered(part: Part) -> pl.LazyFrame:
    own = pl.lit(part.number, pl.UInt32)
    return part.summary.lazy().with_columns(pl.col("source_index") + part.first, part=own)


def _verdicts(parts: Sequence[Part]) -> pl.DataFrame:
    """Return the rows that a part has as kept, and that are rejected after all; the others lack `evidence`."""
    every = [pl.DataFrame(schema={"evidence": pl.String, "part": pl.UInt32})]
    for part in parts:
        if part.verdicts is not None:
            every.append(part.verdicts.with_columns(part=pl.lit(part.number, pl.UInt32)))
    return pl.concat(every, how="diagonal_relaxed")


def _reject_damaged(rows: pl.DataFrame) -> pl.DataFrame:
    reason = pl.col("doubt") + f"; {DOUBT}"
    return rows.with_columns(rule=pl.lit(DAMAGED_STREAM), reason=reason, doubt=pl.lit(None, dtype=pl.String))


def _reject_known(rows: pl.DataFrame) -> pl.DataFrame:
    kind = pl.col("kind").replace_strict(KIND_TEXTS)
    reason = pl.format("{} {} in the set that is known", kind, "twin")
    return rows.select(*PART_KEY, "twin", rule=pl.lit(earlier.KNOWN), reason=reason)


def _twins(rows: pl.DataFrame, recipe: Recipe) -> pl.DataFrame:
    """Return order, twin (the order of the kept conversation) and kind of each duplicate; none if that rule is off."""
    settings = recipe.filters.get(DUPLICATES)
    if settings is None:
        return pl.DataFrame(schema=TWIN)
    untrained = train_marks.count_untrained(pl.col("marks"))
    source_id = pl.when(pl.col("branch") == 0).then("source_id")  # all branches of a record have its id
    frame = rows.select(pl.col("order").alias("row"), "chain", "exchange", source_id, "chat", untrained=untrained)
    twins = duplicates.exact_duplicates(frame, **settings)  # type: ignore[arg-type]  # checked by the registry
    return twins.filter(pl.col("twin").is_not_null()).select(
        pl.col("row").cast(pl.UInt32).alias("order"),
        pl.col("twin").cast(pl.UInt32),
        "kind",
        via=pl.lit(None, dtype=pl.UInt32),
        figure=pl.lit(None, dtype=pl.Float64),
        evidence=pl.lit(None, dtype=pl.String),
    )


def _join_twins(earlier: pl.DataFrame, found: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Return what earlier rules and this one drop; `via` is an earlier twin that is itself dropped for the `twin`."""
    kept = found.select(twin="order", kept="twin")
    earlier = earlier.join(kept, on="twin", how="left", maintain_order="left")
    via = pl.when(pl.col("kept").is_not_null()).then(pl.coalesce("via", "twin")).otherwise("via")
    earlier = earlier.with_columns(twin=pl.coalesce("kept", "twin"), via=via)
    found = found.with_columns(kind=pl.lit(kind), via=pl.lit(None, dtype=pl.UInt32))
    return pl.concat([earlier.select(*TWIN), found.select(*TWIN)])


def _cap_rows(rows: pl.DataFrame, recipe: Recipe) -> pl.DataFrame:
    """Return the conversations over a limit (`caps.CAPPED`), by their order as `row`; none without a limit."""
    limits = recipe.filters.get(caps.CAP)
    if limits is None:
        return pl.DataFrame(schema=caps.CAPPED)
    return _cap(_candidates(rows.filter(pl.col("twin").is_null())), limits)


def _cap(candidates: pl.DataFrame, limits: Settings) -> pl.DataFrame:
    return caps.cap(candidates, **limits)  # type: ignore[arg-type]  # checked by the registry


def _candidates(rows: pl.DataFrame) -> pl.DataFrame:
    """Return what limits need of conversations, numbered by their order as `row`; clusters are found if not known."""
    rows = rows if "cluster" in rows.columns else rows.with_columns(cluster=clusters.cluster_names(rows))
    return rows.select(
        "protected",
        "source_id",
        "source_file",
        "cluster",
        *columns.GROUP_SUMMARY,
        row="order",
        **train_marks.WORTH,
    )


def _kept_clusters(rows: pl.DataFrame) -> pl.Series:
    return rows["cluster"].filter(rows["rule"].is_null()).cast(pl.String)


def _with_split(rows: pl.DataFrame, known: pl.DataFrame, held_out: holdout.HoldOut) -> pl.DataFrame:
    """Add `split`; `known` has the known conversations with their clusters."""
    kept = rows["rule"].is_null()
    splits = np.zeros(rows.height, np.uint8)
    splits[kept.to_numpy()] = 1 + held_out.of(_kept_clusters(rows)).to_numpy()
    split = pl.Series(splits).replace_strict([0, 1, 2], [None, "train", "eval"], return_dtype=pl.String)
    return earlier.keep_splits(rows.with_columns(split=split), known)


def _with_twin_names(rows: pl.DataFrame) -> pl.DataFrame:
    """Replace the order of the twin with its id, and add the `rule` and a `reason` with the key of the twin.

    A twin that is over a limit is named in the reason only.
    """
    place = pl.format("{}:{}", "source_file", "source_index")
    over = pl.when(pl.col("capped").is_not_null()).then(pl.lit(f", which {caps.CAP} drops")).otherwise(pl.lit(""))
    twins = rows.filter(pl.col("order").is_in(rows["twin"].drop_nulls().unique().implode()))
    vias = rows.filter(pl.col("order").is_in(rows["via"].drop_nulls().unique().implode()))
    twin = twins.select(twin="order", twin_id="id", name=pl.coalesce("id", "plain"), key=place, over=over)
    named = rows.join(twin, on="twin", how="left", maintain_order="left")
    named = named.join(vias.select(via="order", via_key=place), on="via", how="left", maintain_order="left")
    kind = pl.col("kind").replace_strict(KIND_TEXTS, default="a duplicate of")
    via = pl.format(" {}, which is dropped for", "via_key").fill_null("")
    label = pl.col("kind").replace_strict(FIGURES, default=None, return_dtype=pl.String)
    figure = pl.concat_str(label, pl.col("figure").round(2).cast(pl.String)).fill_null("")
    dropped = pl.col("twin").is_not_null()
    rule = pl.when(pl.col("kind").is_in(list(FIGURES))).then("kind").otherwise(pl.lit(DUPLICATES))
    capped = pl.when(pl.col("capped").is_not_null()).then(pl.lit(caps.CAP))
    return named.with_columns(
        rule=pl.when(dropped).then(rule).otherwise(capped),
        reason=pl.when(dropped)
        .then(pl.format("{}{} {} ({}){}{}", kind, via, "name", "key", figure, "over"))
        .otherwise("capped"),
        evidence=pl.coalesce("evidence", "measures"),
        twin=pl.col("twin_id"),
    )
