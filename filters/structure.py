"""Filters on a conversation's shape: too little of it, plugins, other models, lists damaged by a conversion."""

from __future__ import annotations

import polars as pl

from curate.errors import RecipeError
from curate.filters.registry import reject, rule

# a code block, closed or cut off: a longer fence holds shorter ones (a README as code), so the longest come first
FENCED = "(?ms)" + "|".join(
    rf"^[ \t>]*{fence}[^`\n]*(?:\n.*?(?:^[ \t>]*{fence}`*[ \t]*$|\z)|\z)"
    for fence in ("`{5,}", "`{4}", "`{3}", "~{3,}")
)
# What starts another list: an item with another number, a heading ("Step 2: …" and "II. …" too), a line in bold,
# a ruled line.
OTHER_LIST = (
    r"(?m)^(?:(?:[02-9]|[0-9]{2,})[.)] | {0,3}#{1,6} "
    r"|\p{L}{1,12} (?:[0-9]{1,3}|[IVX]{1,4})(?:[:：.)]| ?[-–—]|[ \t]*$)|[IVX]{2,4}[.)] "
    r"|第[0-9一二三四五六七八九十]{1,3}\p{L}"
    r"| {0,3}(?:\*\*|__)[^\n]*(?:\*\*|__)[:：]?[ \t]*$| {0,3}(?:-{3,}|\*{3,}|_{3,}|[─━═]{3,})[ \t]*$).*"
)
# And right before an item: "The steps:", a section such as "B. Filling" (but no row of options A, B, C), or a short
# title such as "Lunch": a line by itself that ends no sentence.
LEAD_IN = (
    r"(?:[:：][*_ \t]*|\n[ \t]*\n(?:[A-Z][.)] [^\n]*|[\p{Lu}\p{Lo}][^\n]{0,58}[^\n\s.!?,;…。！？，；]))"
    r"\n(?:[ \t]*\n)*1[.)] "
)
BROKEN = r"((?m:^)1[.)] [^\x02]*?\n1[.)] [^\n]*)"  # at the margin: an inner list has numbers of its own


@rule
def min_messages(minimum: int = 2) -> pl.Expr:
    """Drop conversations of fewer than `minimum` messages."""
    return reject(
        pl.col("turns") < minimum, "messages: {turns}, minimum {minimum}", turns=pl.col("turns"), minimum=minimum
    )


@rule
def min_characters(minimum: int = 16) -> pl.Expr:
    """Drop conversations of fewer than `minimum` characters in all (16: FastChat)."""
    return reject(
        pl.col("characters") < minimum,
        "characters: {characters}, minimum {minimum}",
        evidence=pl.concat_list(pl.col("prompts"), pl.col("answers")).list.join(" | ", ignore_nulls=True),
        characters=pl.col("characters"),
        minimum=minimum,
    )


@rule
def plugins(even_empty: bool = False) -> pl.Expr:
    """Drop conversations made with ChatGPT's plugins, whose answers lean on pages and tools a model never sees.

    The record's key `plugins` tells them. An empty list there means that none was used; `even_empty` drops
    those too, as FastChat does.
    """
    found = pl.col("metadata").str.json_path_match("$.plugins")
    empty = pl.lit(even_empty) | ~found.is_in(["[]", "{}", "", "false"])
    return reject(found.is_not_null() & empty, "made with plugins", evidence=found)


@rule
def models(keep: tuple[str, ...] = ("gpt-4",), unknown: bool = False) -> pl.Expr:
    """Drop conversations of other models than those in `keep` (GPT-4 only, as it stands).

    A name matches as a beginning, without regard to case, dashes and the label "Model:", so that `gpt-4` keeps
    "GPT-4", "gpt4" and "gpt-4-0613". Most old dumps do not say which model answered: asking for one model drops
    those, and `unknown = true` keeps them (FastChat does).
    """
    if not keep:
        raise RecipeError("filter 'models': keep = [] would drop everything; give names, like [\"gpt-4\"]")
    model = _model_name(pl.col("model"))
    wanted = [name for name in (pl.select(_model_name(pl.lit(word))).item() for word in keep) if name]
    kept = pl.any_horizontal([model.str.starts_with(name) for name in wanted])
    dropped = ~kept if unknown else ~kept.fill_null(False)
    shown = pl.col("model").fill_null("not said")
    return reject(
        dropped, "model {model}, kept are {keep}", evidence=pl.col("model"), model=shown, keep=", ".join(keep)
    )


def _model_name(model: pl.Expr) -> pl.Expr:
    """Fold a model's label to letters, digits and dots; null where nothing is left."""
    folded = model.str.to_lowercase().str.replace(r"^\s*model\s*:", "").str.replace_all(r"[^a-z0-9.]", "")
    return pl.when(folded != "").then(folded)


@rule
def list_indices(any_source: bool = False) -> pl.Expr:
    """Drop conversations with a numbered list whose items all became `1.` when someone converted the HTML.

    Such a converter restarts the numbers after each code block, bullet list or paragraph. Answers that curate itself
    converts from HTML keep their numbers and are not checked; nor are the rows of a curated set, which were checked
    when it was made. The items must belong to one list: another number, a heading, a line in bold or a short title
    between them starts a new one, and so does a line that ends in a colon right before an item. `any_source` is
    FastChat's rule instead, `\\n1. [^2]*\\n1. ` in any message, code and sound lists included.
    """
    if any_source:
        every = pl.concat_list(pl.col("prompts"), pl.col("answers"))
        found = every.list.eval(pl.element().str.extract(r"(?s)(\n1\. [^2]*\n1\. )", 1)).list.drop_nulls().list.first()
    else:
        converted = pl.col("html_answers").list.eval(pl.element().fill_null(False).not_().arg_true())
        numbered = pl.element().filter(pl.element().str.count_matches("1[.)] ") > 1)  # spares most texts the work
        broken = pl.col("answers").list.gather(converted).list.eval(_broken_list(numbered))
        found = broken.list.drop_nulls().list.first()
    return reject(found.is_not_null(), "items of one list are all numbered 1.", evidence=found)


def _broken_list(text: pl.Expr) -> pl.Expr:
    """Return the stretch from one `1.` item to the next of the same list, null where there is none."""
    marked = text.str.replace_all(FENCED, "\x01")
    marked = marked.str.replace_all(LEAD_IN, ":\x02\n1. ").str.replace_all(OTHER_LIST, "\x02")
    return marked.str.extract(BROKEN, 1).str.replace_all("\x01", "[code]", literal=True)
