"""Your own filters, for `curate clean dump.json --filters examples/my_filters.py`.

Each filter is a function that returns a Polars expression. Its name is the key in a recipe and the rule of its
rejects, its keyword defaults are its settings, and the first line of its docstring is its documentation.
"""

from __future__ import annotations

import polars as pl

from curate.filters import reject, rule


@rule
def shouting(share: float = 0.5, minimum: int = 20) -> pl.Expr:
    """Drop conversations in which more than `share` of the letters in prompts are capitals."""
    text = pl.col("prompts").list.join("\n")
    letters = text.str.count_matches(r"\p{L}")
    capitals = text.str.count_matches(r"\p{Lu}")
    return reject(
        (letters >= minimum) & (capitals > share * letters),
        "{capitals} of {letters} letters are capitals, allowed share {share}",
        evidence=text,
        capitals=capitals,
        letters=letters,
        share=share,
    )


@rule
def one_word_answers() -> pl.Expr:
    """Drop conversations in which no answer is longer than one word."""
    return pl.col("answers").list.eval(pl.element().str.strip_chars().str.contains(r"\s")).list.any().not_()
