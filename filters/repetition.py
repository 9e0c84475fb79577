"""Filters on repetition."""

from __future__ import annotations

import polars as pl

from curate.errors import RecipeError
from curate.filters.examples import Examples, chat
from curate.filters.registry import reject, rule


@rule(examples=Examples(chat("Print zeros.", "000000000"), chat("Print zeros.", "00000000")))
def repeated_digits(times: int = 9) -> pl.Expr:
    r"""Drop conversations in which a digit repeats `times` times in a row (FastChat's `(\d)\1{8}`).

    This also drops good data, such as tables with long runs of zeros.
    """
    if times < 2:
        raise RecipeError(f"filter 'repeated_digits': times = {times} is not allowed; give 2 or more")
    pattern = "|".join(f"{digit}{{{times},}}" for digit in range(10))
    texts = pl.concat_list(pl.col("prompts"), pl.col("answers"))
    digits = texts.list.eval(pl.element().str.extract(f"({pattern})", 1)).list.drop_nulls().list.first()
    return reject(
        digits.is_not_null(),
        "digit {digit} {count} times in a row, maximum {maximum}",
        evidence=digits,
        digit=digits.str.slice(0, 1),
        count=digits.str.len_bytes(),
        maximum=times - 1,
    )
