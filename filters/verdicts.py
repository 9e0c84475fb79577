"""Apply a recipe's signals and filters to a batch of conversations, with one Polars query for all filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from curate.errors import CurateError, RecipeError
from curate.filters.registry import EVIDENCE, VERDICT, Rule, Settings, first_line, get, reject, rules

FAILURES = (Exception, pl.exceptions.PanicException)  # what a user's expression may raise
RuleSettings = Mapping[str, Mapping[str, object]]  # rule name to settings, in the recipe's order


def needed_signals(filters: RuleSettings, named: RuleSettings) -> dict[str, Settings]:
    """Return the signals to run, with their settings, sorted by name.

    They are those that are always on, a user's own, those that the recipe names, and those of which a filter that is on
    reads a column; it passes on those of its settings that the signal has too. Raises RecipeError if two of these
    give a signal other settings.
    """
    read = [(set(columns_read(get(name), settings)), name) for name, settings in filters.items()]
    signals: dict[str, Settings] = {}
    for name, rule in rules("signal").items():
        readers = {reader: filters[reader] for columns, reader in read if columns & rule.columns.keys()}
        if rule.always or rule.is_users or name in named or readers:
            signals[name] = _signal_settings(rule, readers, named.get(name, {}))
    return signals


def _signal_settings(rule: Rule, readers: RuleSettings, named: Settings) -> Settings:
    """Return a signal's settings: those of the filters that read it, or else of the recipe's [signals].

    A setting in [signals] that has its default is no reason to measure otherwise than a filter says.
    """
    settings = {**rule.settings, **named}
    for key, default in rule.settings.items():
        given = {f"filter {name!r}": own[key] for name, own in readers.items() if key in own}
        if given and settings[key] != default:
            given["[signals]"] = settings[key]
        (source, value), *others = given.items() if given else [("", settings[key])]
        for other, its in others:
            if its != value:
                raise RecipeError(
                    f"signal {rule.name!r} is measured once, but {source} has {key} = {_shown(value)}, and {other} has "
                    f"{_shown(its)}; give both the same"
                )
        settings[key] = value
    return settings


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else repr(value)


def columns_read(rule: Rule, settings: Settings) -> Sequence[str]:
    """Return the columns that a filter reads; none of another rule."""
    if rule.kind != "filter":
        return ()
    return rule.reads if rule.takes_frame else rule.expression(settings).meta.root_names()


def scores(signals: Iterable[str]) -> dict[str, Rule]:
    """Return those of these signals that a model measures on a set, after `clean`."""
    return {name: rule for name in signals if (rule := get(name, "signal")).measured_by}


def refuse_scores(filters: RuleSettings, named: RuleSettings) -> None:
    """Raise RecipeError, with what to type, if a recipe for a dump needs a signal that only a set can have."""
    for signal, rule in scores(needed_signals(filters, named)).items():
        readers = [
            name for name, settings in filters.items() if rule.columns.keys() & {*columns_read(get(name), settings)}
        ]
        what = f"the filter {readers[0]!r} reads" if readers else "[signals] names"
        raise RecipeError(
            f"{what} the signal {signal!r}, which a model measures on a set: clean without it, then "
            f"{rule.measured_by} and curate refilter SET --recipe RECIPE"
        )


def measure(frame: pl.DataFrame, signals: RuleSettings) -> pl.DataFrame:
    """Return the frame with the columns of these signals added."""
    for name, settings in signals.items():
        frame = frame.hstack(_measure(get(name, "signal"), settings, frame))
    return frame


def _measure(rule: Rule, settings: Mapping[str, object], frame: pl.DataFrame) -> pl.DataFrame:
    """Return a signal's columns; raises RecipeError if it fails or returns other columns or rows than declared."""
    try:
        columns = rule.call(frame, settings)
    except CurateError:
        raise
    except FAILURES as error:
        raise RecipeError(f"{rule.label} failed: {first_line(error)}") from error
    if not isinstance(columns, pl.DataFrame) or dict(columns.schema) != dict(rule.columns):
        actual = dict(columns.schema) if isinstance(columns, pl.DataFrame) else type(columns).__name__
        raise RecipeError(f"{rule.label} must return a frame of {dict(rule.columns)}, not {actual}")
    if columns.height != frame.height:
        raise RecipeError(f"{rule.label} returned {columns.height} rows for {frame.height} conversations")
    return columns


KEPT: dict[str, pl.DataType] = {"rule": pl.String(), "reason": pl.String(), "evidence": pl.String()}


def apply(frame: pl.DataFrame, filters: RuleSettings) -> pl.DataFrame:
    """Return which filters reject each row; see `Filters.apply`."""
    return Filters(filters).apply(frame)


class Filters:
    """A recipe's filters, built once and checked once per frame schema; names of other rules are ignored."""

    def __init__(self, filters: RuleSettings) -> None:
        known = [(rule, filters[name]) for name in filters if (rule := get(name)).kind == "filter"]
        self._computed = [(rule, settings) for rule, settings in known if rule.takes_frame]
        self._filters = [
            (rule, pl.col(_computed_name(rule)) if rule.takes_frame else rule.expression(settings))
            for rule, settings in known
        ]
        self._verdicts: dict[tuple[tuple[str, pl.DataType], ...], list[pl.Expr]] = {}

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return `rule`, `reason` and `evidence` of the first filter that rejects each row, and `rules`: all that do.

        Filters run in the recipe's order. For a kept row the first three are None and `rules` is empty. `rules`
        shows what each filter would reject on its own.
        """
        if not self._filters or frame.is_empty():
            return pl.DataFrame(
                {**dict.fromkeys(KEPT), "rules": [[]] * frame.height}, schema={**KEPT, "rules": pl.List(pl.String)}
            )
        frame = frame.with_columns(_compute(rule, settings, frame) for rule, settings in self._computed)
        verdicts = self._checked_verdicts(frame)
        names = [rule.name for rule, _ in self._filters]
        try:
            return frame.lazy().with_columns(verdicts).select(*_outcome(names)).collect()
        except FAILURES as error:
            raise _failure(self._filters, frame, error) from error

    def _checked_verdicts(self, frame: pl.DataFrame) -> list[pl.Expr]:
        """Return the filters' verdict expressions; raises RecipeError for a filter that fails on this schema."""
        schema = tuple(frame.schema.items())
        if schema not in self._verdicts:
            rows = frame.head(1).vstack(frame.head(1))  # two rows tell a column from a single value
            self._verdicts[schema] = [
                _verdict(rule, expression, rows).alias(f"verdict {rule.name}") for rule, expression in self._filters
            ]
        return self._verdicts[schema]


def _computed_name(rule: Rule) -> str:
    return f"computed {rule.name}"


def _compute(rule: Rule, settings: Settings, frame: pl.DataFrame) -> pl.Series:
    """Return the values of a filter that takes the frame; raises RecipeError if it fails or gives other rows."""
    try:
        values = pl.Series(_computed_name(rule), rule.call(frame, settings))
    except FAILURES as error:
        raise RecipeError(f"{rule.label} failed: {first_line(error)}") from error
    if len(values) != frame.height:
        raise RecipeError(f"{rule.label} returned {len(values)} values for {frame.height} conversations")
    return values


def _outcome(names: Sequence[str]) -> list[pl.Expr]:
    """Return the columns of `Filters.apply` from one verdict column per filter."""
    verdicts = [pl.col(f"verdict {name}").struct for name in names]
    rejects = [verdict.field("reason").is_not_null() for verdict in verdicts]
    first = pl.lit(None, dtype=pl.String)
    evidence = pl.lit(None, dtype=pl.String)
    for name, rejected, verdict in reversed(list(zip(names, rejects, verdicts, strict=True))):
        first = pl.when(rejected).then(pl.lit(name)).otherwise(first)
        evidence = pl.when(rejected).then(verdict.field("evidence").str.slice(0, EVIDENCE)).otherwise(evidence)
    rules = [pl.when(rejected).then(pl.lit(name)) for name, rejected in zip(names, rejects, strict=True)]
    reason = pl.coalesce([verdict.field("reason") for verdict in verdicts])
    return [
        first.alias("rule"),
        reason.alias("reason"),
        evidence.alias("evidence"),
        pl.concat_list(rules).list.drop_nulls().alias("rules"),
    ]


def _verdict(rule: Rule, expression: pl.Expr, rows: pl.DataFrame) -> pl.Expr:
    """Return a filter's expression (bool, text or verdict) as a verdict, after checking it on two rows."""
    dtype = _check(rule, expression, rows)
    if dtype == pl.Boolean:
        return reject(expression, rule.summary.replace("{", "(").replace("}", ")"))
    if dtype == pl.String:
        return pl.when(expression.is_not_null()).then(
            pl.struct(reason=expression, evidence=pl.lit(None, dtype=pl.String))
        )
    if dtype == pl.Null:
        return pl.lit(None, dtype=VERDICT)
    if dtype == VERDICT:
        return expression
    raise RecipeError(f"{rule.label} gives {dtype}; allowed are true, text, or a verdict from curate.filters.reject")


def _check(rule: Rule, expression: pl.Expr, rows: pl.DataFrame) -> pl.DataType:
    """Return the type of a filter's expression; raises RecipeError if it fails or gives another number of rows.

    A constant applies to every row. A single value computed from the rows is refused: it would differ by batch.
    """
    try:
        values = rows.select(verdict=expression)["verdict"]
    except FAILURES as error:
        raise RecipeError(f"{rule.label} failed: {first_line(error)}") from error
    if len(values) != rows.height and expression.meta.root_names():
        raise RecipeError(f"{rule.label} gives {len(values)} values for {rows.height} rows; give one for each row")
    return values.dtype


def _failure(filters: Sequence[tuple[Rule, pl.Expr]], frame: pl.DataFrame, error: Exception) -> RecipeError:
    """Return an error that names the filter that fails on these rows."""
    for rule, expression in filters:
        try:
            frame.select(verdict=expression)
        except FAILURES as failure:
            return RecipeError(f"{rule.label} failed: {first_line(failure)}")
    return RecipeError(f"the filters failed: {first_line(error)}")
