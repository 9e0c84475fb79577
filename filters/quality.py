"""Signals of what may tell good conversations from bad ones, and filters on those that a model measures.

Sizes, code, lists and wording are measured by `clean`; signals of a model, by `curate score`.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from curate.errors import RecipeError, did_you_mean
from curate.filters.examples import Examples, chat
from curate.filters.language_id.prose import without_blocks
from curate.filters.registry import check_range, reject, rule, score, signal

URL = r"https?://\S|\bwww\.\w"
COUNTS = ("prompt_words", "answer_words", "urls")  # whole numbers
ACTIONS = ("flag", "drop")
LIKELIHOOD: dict[str, pl.DataType | type[pl.DataType]] = {
    "perplexity": pl.Float32,
    "ifd": pl.Float32,
    "worst_ifd": pl.Float32,
    "answer_perplexities": pl.List(pl.Float32),
    "answer_ifds": pl.List(pl.Float32),
}


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


# ---- signals of a model


@score("curate score SET --model MODEL", LIKELIHOOD)
def likelihood(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure how well a model predicts the answers: with their prompts, and beside that without them.

    `perplexity`: of all answers that are trained on, each after what precedes it. `ifd`: that divided by the perplexity
    of the answers by themselves (instruction-following difficulty, arXiv 2308.12032); over 1, the prompts make the
    answers less likely, so they do not belong together. `worst_ifd`: that of the answer with the highest.
    `answer_perplexities` and `answer_ifds` have an entry for each answer, null for one that is not trained on.
    """
    return _unmeasured(frame, LIKELIHOOD)


GUARD: dict[str, pl.DataType | type[pl.DataType]] = {
    "unsafe_probability": pl.Float32,
    "prompt_unsafe": pl.List(pl.Float32),
    "answer_unsafe": pl.List(pl.Float32),
    "unsafe_categories": pl.List(pl.String),
}


@score("curate score SET --model GUARD --signal guard", GUARD)
def guard(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure how likely a guard model, such as Llama Guard, finds each prompt and each answer unsafe.

    `unsafe_probability`: the highest of a conversation. `prompt_unsafe` and `answer_unsafe` have an entry for each
    prompt and answer, null where the guard gives no verdict. `unsafe_categories`: the names of the categories of those
    that are more likely unsafe than safe.
    """
    return _unmeasured(frame, GUARD)


def _unmeasured(frame: pl.DataFrame, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    return pl.DataFrame({name: [None] * frame.height for name in columns}, schema=columns)


@rule(
    examples=Examples(  # with what a model measures of them
        chat(
            "Name the capital of France.",
            "Knead the dough for ten minutes.",
            ifd=1.31,
            worst_ifd=1.31,
            answer_ifds=[1.31],
        ),
        chat("Name the capital of France.", "Paris is the capital.", ifd=0.42, worst_ifd=0.42, answer_ifds=[0.42]),
        settings={"action": "drop"},
    )
)
def misaligned(action: str = "flag", max_ifd: float = 1.0) -> pl.Expr:
    """Flag or drop conversations whose answers a model finds less likely with their prompts than without.

    It needs a set with the signal `likelihood`: `curate score SET --model MODEL`, then `curate refilter`. `action`:
    `flag` only measures, `drop` rejects a conversation with an `ifd` above `max_ifd`.
    """
    _check_action("misaligned", action)
    check_range("misaligned", "max_ifd", max_ifd, 0)
    return reject(
        pl.lit(action == "drop") & (pl.col("ifd") > max_ifd),
        "IFD {ifd}, at most {max_ifd} allowed; the highest is {worst}, of answer {place}",
        ifd=pl.col("ifd").round(3),
        max_ifd=max_ifd,
        worst=pl.col("worst_ifd").round(3),
        place=pl.col("answer_ifds").list.arg_max() + 1,
    )


@rule(
    examples=Examples(  # with what a guard measures of them
        chat(
            "How do I hurt my neighbour?",
            "Wait at night.",
            unsafe_probability=0.98,
            unsafe_categories=["violent crimes"],
        ),
        chat("How do I greet my neighbour?", "Wave to him.", unsafe_probability=0.01, unsafe_categories=[]),
        settings={"action": "drop"},
    )
)
def unsafe(action: str = "flag", above: float = 0.5) -> pl.Expr:
    """Flag or drop conversations in which a guard model finds a prompt or an answer unsafe.

    It needs a set with the signal `guard`: `curate score SET --model GUARD --signal guard`, then `curate refilter`.
    `action`: `flag` only measures, `drop` rejects a conversation with an `unsafe_probability` above `above`.
    """
    _check_action("unsafe", action)
    check_range("unsafe", "above", above, 0, 1)
    return reject(
        pl.lit(action == "drop") & (pl.col("unsafe_probability") > above),
        "unsafe with probability {probability}, at most {above} allowed: {categories}",
        probability=pl.col("unsafe_probability").round(3),
        above=above,
        categories=pl.col("unsafe_categories").list.join(", "),
    )


def _check_action(name: str, action: str) -> None:
    if action not in ACTIONS:
        raise RecipeError(f"filter {name!r}: action = {action!r}{did_you_mean(action, ACTIONS)}")
