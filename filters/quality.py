"""A signal of what may tell good conversations from bad ones: sizes, code, lists, wording. It rejects nothing."""

from __future__ import annotations

import polars as pl

from curate.filters.language_id.prose import without_blocks
from curate.filters.registry import signal

URL = r"https?://\S|\bwww\.\w"
COUNTS = ("prompt_words", "answer_words", "urls")  # whole numbers


@signal(
    prompt_words=pl.UInt32,
    answer_words=pl.UInt32,
    answer_ratio=pl.Float32,
    code_share=pl.Float32,
    list_share=pl.Float32,
    type_token_ratio=pl.Float32,
    slop_rate=pl.Float32,
    urls=pl.UInt32,
)
def quality(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure the sizes of prompts and answers, and the code, lists, addresses and wording of the answers.

    `answer_ratio`: words of the answers for each word of the prompts. `code_share`: of the answers' characters, those
    in code blocks. `list_share`: of the lines outside of these, those that are items of lists. `type_token_ratio`:
    different words among the first 256 of the answers, divided by their number. `slop_rate`: words and phrases that
    models overuse, for each 1,000 words of the answers, in English. `urls`: addresses in the answers. A Han letter or
    kana is a word.
    """
    from curate.filters.text.wording import measure_wording  # imports NumPy: late
    from curate.filters.text.words import find_words

    joined = frame.select(pl.col("prompts", "answers").list.join("\n\n", ignore_nulls=True).fill_null(""))
    prompt_words = find_words(joined["prompts"].to_list()).counts
    wording = measure_wording(joined["answers"].to_list())
    words = pl.Series(wording.words)
    columns = _shapes(frame).select(
        prompt_words=pl.Series(prompt_words),
        answer_words=words,
        answer_ratio=words / pl.Series(prompt_words).clip(1),
        code_share=(pl.col("characters") - pl.col("prose")) / pl.col("characters").clip(1),
        list_share=pl.col("items") / pl.col("lines").clip(1),
        type_token_ratio=pl.Series(wording.different),
        slop_rate=pl.Series(wording.phrases) * 1000 / words.clip(1),
        urls=pl.col("urls"),
    )
    return columns.select(pl.col(name).cast(pl.UInt32 if name in COUNTS else pl.Float32) for name in columns.columns)


def _shapes(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the answers' characters, those outside of code, lines there, items of lists, and addresses, by row."""
    from curate.filters.text.prose import ITEM

    answers = frame.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"), text="answers").explode("text")
    measured = answers.with_columns(prose=without_blocks(pl.col("text"), "")).select(
        "row",
        characters=pl.col("text").str.len_chars(),
        lines=pl.col("prose").str.count_matches(r"\S[^\n]*"),
        items=pl.col("prose").str.count_matches(ITEM),
        urls=pl.col("text").str.count_matches(URL),
        prose=pl.col("prose").str.len_chars(),
    )
    rows = frame.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"))
    sums = measured.group_by("row").agg(pl.all().sum())
    return rows.join(sums, on="row", how="left", maintain_order="left").fill_null(0)
