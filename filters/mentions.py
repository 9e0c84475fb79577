"""Filters on names: answers that mention a vendor, or claim to be its model."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from curate.errors import RecipeError
from curate.filters.examples import Examples, chat
from curate.filters.registry import reject, rule

CONTEXT = 120  # characters of evidence after a mention


@rule(
    examples=Examples(
        chat("Who made GPT-4?", "OpenAI made it, in 2023."), chat("Who made GPT-4? OpenAI?", "Yes, they did, in 2023.")
    )
)
def vendor_mention(
    words: tuple[str, ...] = ("openai", "chatgpt"), any_turn: bool = False, whole_words: bool = True
) -> pl.Expr:
    """Drop conversations in which an answer names a vendor or its model, ignoring case.

    FastChat's rule is `any_turn = true, whole_words = false`: any message, and matches inside words. Koala's list
    adds gpt-3, gpt3, chadgpt, chat-gpt, open-ai, open ai.
    """
    if not words or not all(word.strip() for word in words):
        raise RecipeError(f"filter 'vendor_mention': words = {list(words)!r} must name at least one word, none empty")
    texts = pl.concat_list(pl.col("prompts"), pl.col("answers")) if any_turn else pl.col("answers")
    return _reject_matches(texts, _alternation(words, whole_words), "names {match}")


@rule(
    examples=Examples(
        chat("Who are you?", "I am ChatGPT, a language model trained by OpenAI."),
        chat("What is ChatGPT?", "ChatGPT is a language model trained by OpenAI."),
    )
)
def identity(
    names: tuple[str, ...] = ("chatgpt", "gpt-3", "gpt-3.5", "gpt-4", "claude", "bard", "gemini", "bing chat"),
    makers: tuple[str, ...] = ("openai", "anthropic", "google", "microsoft", "deepmind"),
) -> pl.Expr:
    """Drop conversations in which an answer claims to be a vendor's model ("I am ChatGPT", "trained by OpenAI").

    Answers that only mention a name are kept; `vendor_mention` drops them.
    """
    if not names or not makers:
        raise RecipeError("filter 'identity': names and makers must each have at least one word")
    name, maker = _alternation(names), _alternation(makers)
    model = r"(?:an? |the )?(?:large |ai |artificial intelligence )*(?:language model|assistant|chatbot|model|ai)"
    made_by = r"(?:trained|created|developed|made|built|designed|programmed) by"
    patterns = (
        rf"\bI(?:['’]m| am) (?:called |named )?(?:{name})\b",
        rf"\b(?:my name is|you can call me|call me) (?:{name})\b",
        rf"\bI(?:['’]m| am| was|['’]ve been| have been) (?:{model},? )?(?:called \w+,? )?{made_by} (?:{maker})\b",
        rf"\bas {model},? (?:that was |which was )?{made_by} (?:{maker})\b",
        rf"\bas (?:{name}),? (?:I|an? )\b",
        rf"我是(?:由)?\s*(?:{name}|{maker})",
    )
    return _reject_matches(pl.col("answers"), "|".join(patterns), "says who it is: {match}")


def _alternation(terms: Sequence[str], whole_words: bool = False) -> str:
    """Return a pattern that matches any of the terms, longest first so that `gpt-3.5` does not match as `gpt-3`."""
    longest = sorted((term.strip() for term in terms), key=lambda term: (-len(term), term))
    return "|".join(_whole_word(term) if whole_words else re.escape(term) for term in longest)


def _whole_word(word: str) -> str:
    """Return a pattern with ASCII word boundaries at letters: Chinese text has no spaces around a Latin name."""
    before, after = (r"(?-u:\b)" if re.match(r"\w", letter, re.ASCII) else "" for letter in (word[0], word[-1]))
    return before + re.escape(word) + after


def _reject_matches(texts: pl.Expr, pattern: str, reason: str) -> pl.Expr:
    """Reject rows with a matching text; the reason counts matching texts, the evidence starts at the first match."""
    matches = texts.list.eval(pl.element().str.extract(f"(?i)({pattern})", 1)).list.drop_nulls()
    excerpts = texts.list.eval(pl.element().str.extract(f"(?is)((?:{pattern}).{{0,{CONTEXT}}})", 1)).list.drop_nulls()
    return reject(
        matches.list.len() > 0,
        reason + " ({count} of {texts} messages)",
        evidence=excerpts.list.first(),
        match=matches.list.first(),
        count=matches.list.len(),
        texts=texts.list.len(),
    )
