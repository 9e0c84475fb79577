"""Decide which rejected records of a set a new recipe rejects too, from their columns: most are not parsed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from curate.filters import registry, repairs, verdicts
from curate.pipeline import clusters
from curate.pipeline.recipe import Recipe
from curate.pipeline.repair_turns import LOSSES
from curate.pipeline.sets.changes import DROPPED_BY_USER, WHERE, measured_columns, unchanged_filters

UNREADABLE = "unreadable"
BY_USER = (DROPPED_BY_USER, WHERE, "known")
OUTCOME = {"rule": pl.String(), "reason": pl.String(), "evidence": pl.String()}
INDEX = "index"
SHOWN = [  # of a verdict, as rejected.parquet has it
    pl.col("rule"),
    pl.col("reason").fill_null(""),
    pl.when(pl.col("evidence") != "").then("evidence"),
]


@dataclass(frozen=True)
class Judge:
    """Decides on the rejected rows of sets that were made with the recipe `old`."""

    old: Recipe
    new: Recipe

    @cached_property
    def same(self) -> frozenset[str]:
        """The filters whose verdict on each record is that of the set."""
        return unchanged_filters(self.old, self.new)

    @cached_property
    def changed(self) -> Mapping[str, Mapping[str, Any]]:
        """The filters of the new recipe that must be applied, in its order."""
        known = registry.rules("filter")
        return {name: value for name, value in self.new.filters.items() if name in known and name not in self.same}

    @cached_property
    def repaired(self) -> frozenset[str]:
        """The rules of the recipe that remove exchanges."""
        return frozenset(rule.of or rule.name for rule, _ in repairs.find_repairs(self.new.filters))

    def judge(self, rejected: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the keys of the records to clean again, and `index` and the outcome of those now rejected otherwise.

        `rejected` are rows of rejected.parquet, with `index`.
        """
        records = rejected.filter(pl.col("scope") == "record")
        again = [records.filter(self._is_piece())]
        changed = []
        for (rule,), rows in records.partition_by("rule", as_dict=True).items():
            redo, outcome = self._judge_rule(str(rule), rows)
            again.append(redo)
            changed.append(outcome)
        outcomes = pl.concat(changed) if changed else pl.DataFrame(schema={INDEX: pl.UInt32, **OUTCOME})
        several = rejected.filter(pl.len().over("source_file", "source_index") > 1)
        again.append(several.join(outcomes, on=INDEX, how="semi"))  # the rows of its exchanges change too
        return pl.concat(again).select("source_file", "source_index").unique(), outcomes

    def _is_piece(self) -> pl.Expr:
        """Return which rejected records count where the dump has the pieces of a chat, for which texts are needed."""
        parsed = pl.col("rule").is_in([*LOSSES, *self.repaired]) | pl.col("turns").is_not_null()
        named = pl.col("source_id").map_elements(clusters.may_be_piece, return_dtype=pl.Boolean)
        return parsed & named.fill_null(False) & ~pl.col("rule").is_in([UNREADABLE, *BY_USER])

    def _judge_rule(self, rule: str, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return which rows of a rule to clean again, and the outcome of those that another filter rejects first."""
        outcomes = [pl.DataFrame(schema={INDEX: pl.UInt32, **OUTCOME})]
        if rule in registry.rules("corpus"):
            return rows, outcomes[0]
        if rule in BY_USER:
            return rows.clear(), outcomes[0]
        rows = rows.filter(pl.col("turns").is_not_null())
        order = list(self.old.filters)
        position = order.index(rule) if rule in order else len(order)
        for name in self.new.filters:
            if registry.get(name).kind != "filter" or (name in self.same and order.index(name) < position):
                continue
            if name in self.same and name == rule:
                return rows.clear(), pl.concat(outcomes)
            if not self._is_computable(name):
                return rows, pl.concat(outcomes)
            verdict = verdicts.apply(rows, {name: self.new.filters[name]}).select(SHOWN)
            judged = rows.select(INDEX).hstack(verdict)
            outcomes.append(judged.filter(pl.col("rule").is_not_null()))
            rows = rows.filter(judged["rule"].is_null())
        return (rows if rule in self.old.filters else rows.clear()), pl.concat(outcomes)

    def _is_computable(self, name: str) -> bool:
        """Return whether the columns of rejected rows suffice for a filter."""
        rule = registry.get(name)
        columns = {"source_id", *measured_columns(self.old)}
        return not rule.takes_frame and columns >= set(verdicts.columns_read(rule, self.new.filters[name]))
