"""Filters on a conversation's structure: minimum sizes, plugins, models, numbered lists broken by a conversion."""

from __future__ import annotations

import polars as pl

from curate.errors import RecipeError
from curate.filters.examples import Examples, chat
from curate.filters.registry import check_range, reject, rule

# A code block, closed or cut off. A longer fence may contain shorter ones (a README as code): longest first.
FENCED = "(?ms)" + "|".join(
    rf"^[ \t>]*{fence}[^`\n]*(?:\n.*?(?:^[ \t>]*{fence}`*[ \t]*$|\z)|\z)"
    for fence in ("`{5,}", "`{4}", "`{3}", "~{3,}")
)
# A line that separates two lists: an item with another number, a heading (also "Step 2: …" and "II. …"), a bold
# line, a horizontal rule.
LIST_SEPARATOR = (
    r"(?m)^(?:(?:[02-9]|[0-9]{2,})[.)] | {0,3}#{1,6} "
    r"|\p{L}{1,12} (?:[0-9]{1,3}|[IVX]{1,4})(?:[:：.)]| ?[-–—]|[ \t]*$)|[IVX]{2,4}[.)] "
    r"|第[0-9一二三四五六七八九十]{1,3}\p{L}"
    r"| {0,3}(?:\*\*|__)[^\n]*(?:\*\*|__)[:：]?[ \t]*$| {0,3}(?:-{3,}|\*{3,}|_{3,}|[─━═]{3,})[ \t]*$).*"
)
# A line right before an item that introduces a new list: "The steps:", a section such as "B. Filling" (not a row of
# options A, B, C), or a short title such as "Lunch" (a single line without a sentence's end).
LEAD_IN = (
    r"(?:[:：][*_ \t]*|\n[ \t]*\n(?:[A-Z][.)] [^\n]*|[\p{Lu}\p{Lo}][^\n]{0,58}[^\n\s.!?,;…。！？，；]))"
    r"\n(?:[ \t]*\n)*1[.)] "
)
EAST_ASIAN = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"
BROKEN_LIST = r"((?m:^)1[.)] [^\x02]*?\n1[.)] [^\n]*)"  # at the margin: nested lists have their own numbers


@rule(
    examples=Examples(
        chat("Name a river.", "The Nile."),
        chat("Name a river.", "The Nile.", "Another?", "The Rhine."),
        settings={"minimum": 4},
    )
)
def min_messages(minimum: int = 2) -> pl.Expr:
    """Drop conversations with fewer than `minimum` messages."""
    check_range("min_messages", "minimum", minimum, 0)
    return reject(
        pl.col("turns") < minimum, "messages: {turns}, minimum {minimum}", turns=pl.col("turns"), minimum=minimum
    )


@rule(examples=Examples(chat("你好", "您好！"), chat("法国的首都是哪里？", "巴黎")))
def min_characters(minimum: int = 16, wide: int = 2) -> pl.Expr:
    """Drop conversations with fewer than `minimum` characters in total (FastChat's value is 16).

    A letter of Chinese, Japanese or Korean counts as `wide` characters, since it says as much as two or three others.
    """
    check_range("min_characters", "minimum", minimum, 0)
    check_range("min_characters", "wide", wide, 1)
    texts = pl.concat_list(pl.col("prompts"), pl.col("answers"))
    start = texts.list.join("", ignore_nulls=True).str.head(minimum)  # all of a text that may be too short
    characters = pl.col("characters") + (wide - 1) * start.str.count_matches(EAST_ASIAN)
    return reject(
        characters < minimum,
        "characters: {characters}, minimum {minimum}",
        evidence=texts.list.join(" | ", ignore_nulls=True),
        characters=characters,
        minimum=minimum,
    )


@rule(
    examples=Examples(
        chat("What is new?", "The page says: nothing.", plugins=["browser"]),
        chat("What is new?", "The page says: nothing.", plugins=[]),
    )
)
def plugins(even_empty: bool = False) -> pl.Expr:
    """Drop conversations that used ChatGPT's plugins: their answers rely on pages and tools the model cannot see.

    They are recognised by the record's key `plugins`. An empty list there means that no plugin was used;
    `even_empty` drops those too, as FastChat does.
    """
    value = pl.col("metadata").str.json_path_match("$.plugins")
    used = pl.lit(even_empty) | ~value.is_in(["[]", "{}", "", "false"])
    return reject(value.is_not_null() & used, "made with plugins", evidence=value)


@rule(
    examples=Examples(
        chat("Name a large river.", "The Nile.", model="gpt-3.5-turbo"),
        chat("Name a large river.", "The Nile.", model="gpt-4-0613"),
    )
)
def models(keep: tuple[str, ...] = ("gpt-4",), unknown: bool = False) -> pl.Expr:
    """Keep only conversations with the models in `keep` (by default GPT-4).

    A name matches as a prefix, ignoring case, dashes and the label "Model:": `gpt-4` keeps "GPT-4", "gpt4" and
    "gpt-4-0613". Most old dumps do not record the model; `unknown = true` keeps those conversations, as FastChat
    does.
    """
    model = _model_name(pl.col("model"))
    prefixes = [name for name in (pl.select(_model_name(pl.lit(word))).item() for word in keep) if name]
    if not prefixes:
        raise RecipeError(f"filter 'models': keep = {list(keep)} would drop everything; give names, like [\"gpt-4\"]")
    kept = pl.any_horizontal([model.str.starts_with(name) for name in prefixes])
    dropped = ~kept if unknown else ~kept.fill_null(False)
    shown = pl.col("model").fill_null("not recorded")
    return reject(
        dropped, "model {model}, kept are {keep}", evidence=pl.col("model"), model=shown, keep=", ".join(keep)
    )


def _model_name(model: pl.Expr) -> pl.Expr:
    """Reduce a model's label to letters, digits and dots; None if nothing is left."""
    folded = model.str.to_lowercase().str.replace(r"^\s*model\s*:", "").str.replace_all(r"[^a-z0-9.]", "")
    return pl.when(folded != "").then(folded)


@rule(
    examples=Examples(
        chat("List three colours.", "Three colours\n1. red\n1. green\n1. blue"),
        chat("List three colours.", "Three colours\n1. red\n2. green\n3. blue"),
    )
)
def list_indices(any_source: bool = False) -> pl.Expr:
    """Drop conversations with a numbered list in which an earlier HTML conversion numbered every item `1.`.

    Such a conversion restarts the numbers after each code block, bullet list or paragraph. Answers that curate
    converts from HTML keep their numbers and are not checked; nor are the rows of a curated set, which were checked
    when it was written. The items must belong to one list: another number, a heading, a bold line or a short title
    between them starts a new list, and so does a line that ends in a colon right before an item. `any_source`
    applies FastChat's rule instead, `\\n1. [^2]*\\n1. ` in any message, which also matches code and correct lists.
    """
    if any_source:
        texts = pl.concat_list(pl.col("prompts"), pl.col("answers"))
        match = texts.list.eval(pl.element().str.extract(r"(?s)(\n1\. [^2]*\n1\. )", 1)).list.drop_nulls().list.first()
    else:
        converted = pl.col("html_answers").list.eval(pl.element().fill_null(False).not_().arg_true())
        numbered = pl.element().filter(
            pl.element().str.count_matches("1[.)] ") > 1
        )  # most texts have none: skip the slow patterns
        broken = pl.col("answers").list.gather(converted).list.eval(_broken_list(numbered))
        match = broken.list.drop_nulls().list.first()
    return reject(match.is_not_null(), "items of one list are all numbered 1.", evidence=match)


def _broken_list(text: pl.Expr) -> pl.Expr:
    """Return the text from one `1.` item to the next of the same list, None where there is no such pair."""
    # \x01 stands for a code block, \x02 for a boundary between lists
    marked = text.str.replace_all(FENCED, "\x01")
    marked = marked.str.replace_all(LEAD_IN, ":\x02\n1. ").str.replace_all(LIST_SEPARATOR, "\x02")
    return marked.str.extract(BROKEN_LIST, 1).str.replace_all("\x01", "[code]", literal=True)
