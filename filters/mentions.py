"""Filters on names: answers that mention a vendor, or say whose model they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from curate.errors import RecipeError
from curate.filters.registry import reject, rule

AFTER = 120  # characters shown after a mention


@rule
def vendor_mention(
    words: tuple[str, ...] = ("openai", "chatgpt"), any_turn: bool = False, whole_words: bool = True
) -> pl.Expr:
    """Drop conversations in which an answer names a vendor or its model.

    Case does not matter. FastChat's rule is `any_turn = true, whole_words = false`: in any message, and within
    words too. Koala's list adds gpt-3, gpt3, chadgpt, chat-gpt, open-ai, open ai.
    """
    if not words or not all(word.strip() for word in words):
        raise RecipeError(f"filter 'vendor_mention': words = {list(words)!r} must name at least one word, none empty")
    texts = pl.concat_list(pl.col("prompts"), pl.col("answers")) if any_turn else pl.col("answers")
    return _found_in(texts, _either(words, whole=whole_words), "names {what}")


@rule
def identity(
    names: tuple[str, ...] = ("chatgpt", "gpt-3", "gpt-3.5", "gpt-4", "claude", "bard", "gemini", "bing chat"),
    makers: tuple[str, ...] = ("openai", "anthropic", "google", "microsoft", "deepmind"),
) -> pl.Expr:
    """Drop conversations in which an answer says that it is a vendor's model ("I am ChatGPT", "trained by OpenAI").

    A name that an answer merely talks about stays; `vendor_mention` takes those.
    """
    if not names or not makers:
        raise RecipeError("filter 'identity': names and makers must each hold at least one word")
    name, maker = _either(names), _either(makers)
    model = r"(?:an? |the )?(?:large |ai |artificial intelligence )*(?:language model|assistant|chatbot|model|ai)"
    made = r"(?:trained|created|developed|made|built|designed|programmed) by"
    patterns = (
        rf"\bI(?:['’]m| am) (?:called |named )?(?:{name})\b",
        rf"\b(?:my name is|you can call me|call me) (?:{name})\b",
        rf"\bI(?:['’]m| am| was|['’]ve been| have been) (?:{model},? )?(?:called \w+,? )?{made} (?:{maker})\b",
        rf"\bas {model},? (?:that was |which was )?{made} (?:{maker})\b",
        rf"\bas (?:{name}),? (?:I|an? )\b",
        rf"我是(?:由)?\s*(?:{name}|{maker})",
    )
    return _found_in(pl.col("answers"), "|".join(patterns), "says who it is: {what}")


def _either(words: Sequence[str], whole: bool = False) -> str:
    """Join words to one alternation, the longer first, so that `gpt-3.5` is not read as `gpt-3`."""
    longest = sorted((word.strip() for word in words), key=lambda word: (-len(word), word))
    return "|".join(_edged(word) if whole else re.escape(word) for word in longest)


def _edged(word: str) -> str:
    """Ask for a word's ends where it ends in a letter: an ASCII end, for Chinese writes no space around a name."""
    before, after = (r"(?-u:\b)" if re.match(r"\w", letter, re.ASCII) else "" for letter in (word[0], word[-1]))
    return before + re.escape(word) + after


def _found_in(texts: pl.Expr, pattern: str, says: str) -> pl.Expr:
    """Reject where a text of the list matches; the reason counts the texts, the evidence is the first from there on."""
    hits = texts.list.eval(pl.element().str.extract(f"(?i)({pattern})", 1)).list.drop_nulls()
    shown = texts.list.eval(pl.element().str.extract(f"(?is)((?:{pattern}).{{0,{AFTER}}})", 1)).list.drop_nulls()
    return reject(
        hits.list.len() > 0,
        says + " ({hits} of {texts} messages)",
        evidence=shown.list.first(),
        what=hits.list.first(),
        hits=hits.list.len(),
        texts=texts.list.len(),
    )
