"""Filters on repetition."""

from __future__ import annotations

import polars as pl

from curate.errors import RecipeError
from curate.filters.registry import reject, rule


@rule
def repeated_digits(times: int = 9) -> pl.Expr:
    r"""Drop conversations where one digit stands `times` times in a row (FastChat's `(\d)\1{8}`).

    It takes good data too, such as addresses and tables with many zeros.
    """
    if times < 2:
        raise RecipeError(f"filter 'repeated_digits': times = {times} is not allowed; give 2 or more")
    run = "|".join(f"{digit}{{{times},}}" for digit in range(10))
    texts = pl.concat_list(pl.col("prompts"), pl.col("answers"))
    found = texts.list.eval(pl.element().str.extract(f"({run})", 1)).list.drop_nulls().list.first()
    return reject(
        found.is_not_null(),
        "digit {digit} {count} times in a row, maximum {maximum}",
        evidence=found,
        digit=found.str.slice(0, 1),
        count=found.str.len_bytes(),
        maximum=times - 1,
    )
