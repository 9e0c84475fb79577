"""Run a recipe's signals and filters over a batch of conversations, one Polars plan for all filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from curate.errors import RecipeError
from curate.filters.registry import EVIDENCE, VERDICT, Rule, first_line, get, reject, rules

FAILURES = (Exception, pl.exceptions.PanicException)  # what a user's expression can end in
Chosen = Mapping[str, Mapping[str, object]]  # rule's name -> its settings, in the recipe's order


def measure(frame: pl.DataFrame, chosen: Chosen | None = None) -> pl.DataFrame:
    """Return the frame with the columns of the chosen signals added, or of all that are registered.

    Names that are no signals are passed over.
    """
    for name, settings in ({key: {} for key in rules("signal")} if chosen is None else chosen).items():
        found = get(name)
        if found.kind == "signal":
            frame = frame.hstack(_measured(found, settings, frame))
    return frame


def _measured(found: Rule, settings: Mapping[str, object], frame: pl.DataFrame) -> pl.DataFrame:
    try:
        measured = found.function(frame, **{**found.settings, **settings})
    except FAILURES as error:
        raise RecipeError(f"{found.label} failed: {first_line(error)}") from error
    if not isinstance(measured, pl.DataFrame) or dict(measured.schema) != dict(found.columns):
        got = dict(measured.schema) if isinstance(measured, pl.DataFrame) else type(measured).__name__
        raise RecipeError(f"{found.label} must return a frame of {dict(found.columns)}, not {got}")
    if measured.height != frame.height:
        raise RecipeError(f"{found.label} returned {measured.height} rows for {frame.height} conversations")
    return measured


KEPT: dict[str, pl.DataType] = {"rule": pl.String(), "reason": pl.String(), "evidence": pl.String()}


def apply(frame: pl.DataFrame, chosen: Chosen) -> pl.DataFrame:
    """Return who rejects each row: see `Filters`."""
    return Filters(chosen).apply(frame)


class Filters:
    """A recipe's filters, built once and tried once for a shape of frame; names that are no filters are passed over."""

    def __init__(self, chosen: Chosen) -> None:
        self._built = [
            (found, found.expression(chosen[name])) for name in chosen if (found := get(name)).kind == "filter"
        ]
        self._verdicts: dict[tuple[tuple[str, pl.DataType], ...], list[pl.Expr]] = {}

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return who rejects each row: `rule`, `reason`, `evidence` of the first in the recipe's order, all in `rules`.

        The first three are null, and `rules` empty, where the row is kept. A filter's two counts: what it took first
        is in `rule`, what it would have taken alone in `rules`.
        """
        if not self._built or frame.is_empty():
            return pl.DataFrame(
                {**dict.fromkeys(KEPT), "rules": [[]] * frame.height}, schema={**KEPT, "rules": pl.List(pl.String)}
            )
        verdicts = self._tried(frame)
        names = [found.name for found, _ in self._built]
        try:
            return frame.lazy().with_columns(verdicts).select(*_outcome(names)).collect()
        except FAILURES as error:
            raise _blame(self._built, frame, error) from error

    def _tried(self, frame: pl.DataFrame) -> list[pl.Expr]:
        """Return the verdicts' expressions; raises RecipeError for a filter that cannot be used on such a frame."""
        shape = tuple(frame.schema.items())
        if shape not in self._verdicts:
            rows = frame.head(1).vstack(frame.head(1))
            self._verdicts[shape] = [
                _verdict(found, built, rows).alias(f"verdict {found.name}") for found, built in self._built
            ]
        return self._verdicts[shape]


def _outcome(names: Sequence[str]) -> list[pl.Expr]:
    """Bring the columns of verdicts, one per filter, to the columns that `apply` returns."""
    verdicts = [pl.col(f"verdict {name}").struct for name in names]
    taken = [verdict.field("reason").is_not_null() for verdict in verdicts]
    first = pl.lit(None, dtype=pl.String)
    evidence = pl.lit(None, dtype=pl.String)
    for name, took, verdict in reversed(list(zip(names, taken, verdicts, strict=True))):
        first = pl.when(took).then(pl.lit(name)).otherwise(first)
        evidence = pl.when(took).then(verdict.field("evidence").str.slice(0, EVIDENCE)).otherwise(evidence)
    each = [pl.when(took).then(pl.lit(name)) for name, took in zip(names, taken, strict=True)]
    reason = pl.coalesce([verdict.field("reason") for verdict in verdicts])
    return [
        first.alias("rule"),
        reason.alias("reason"),
        evidence.alias("evidence"),
        pl.concat_list(each).list.drop_nulls().alias("rules"),
    ]


def _verdict(found: Rule, built: pl.Expr, rows: pl.DataFrame) -> pl.Expr:
    """Bring what a filter gives (true, text or a verdict) to a verdict, after trying it on two rows."""
    dtype = _try(found, built, rows)
    if dtype == pl.Boolean:
        return reject(built, found.summary.replace("{", "(").replace("}", ")"))
    if dtype == pl.String:
        return pl.when(built.is_not_null()).then(pl.struct(reason=built, evidence=pl.lit(None, dtype=pl.String)))
    if dtype == pl.Null:
        return pl.lit(None, dtype=VERDICT)
    if dtype == VERDICT:
        return built
    raise RecipeError(f"{found.label} gives {dtype}; allowed are true, text, or a verdict from curate.filters.reject")


def _try(found: Rule, built: pl.Expr, rows: pl.DataFrame) -> pl.DataType:
    """Return the type a filter gives; raises RecipeError if it fails or gives another number of rows.

    A constant is stretched over the batch; one value drawn from the batch's rows would differ by batch.
    """
    try:
        given = rows.select(verdict=built)["verdict"]
    except FAILURES as error:
        raise RecipeError(f"{found.label} failed: {first_line(error)}") from error
    if len(given) != rows.height and built.meta.root_names():
        raise RecipeError(f"{found.label} gives {len(given)} values for {rows.height} rows; give one for each row")
    return given.dtype


def _blame(filters: Sequence[tuple[Rule, pl.Expr]], frame: pl.DataFrame, error: Exception) -> RecipeError:
    """Find the filter that fails on these rows, and say so."""
    for found, built in filters:
        try:
            frame.select(verdict=built)
        except FAILURES as own:
            return RecipeError(f"{found.label} failed: {first_line(own)}")
    return RecipeError(f"the filters failed: {first_line(error)}")
