"""Convert the HTML of ChatGPT's answers, 2022 to 2026, back to the markdown it was rendered from.

    looks_like_html(text)    is this ChatGPT's own markup?
    to_markdown(answers)     a batch of HTML to markdown
    strip_chrome(text)       an answer that is already text, without text of the page
    unwrap_prompt(text)      a prompt without the markup of its message bubble
    split_wrappers(text)     ChatGPT's markup after a few words of the page, and those words
    has_html(text)           is there any HTML or entity in this, other than as code?

Code blocks are extracted first (`code`). What remains of most answers is flat and is converted as a Polars column
(`flat`); nested answers are walked tag by tag (`walker`, `elements`). Both paths give the same text. Only
characters that markdown would read as markup are escaped (`escaping`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from curate.markdown import flat
from curate.markdown.chrome import looks_like_html, strip_chrome, trim_chrome, unwrap_prompt
from curate.markdown.code import Block, extract_blocks
from curate.markdown.elements import TAGS
from curate.markdown.placeholders import remove_placeholders
from curate.markdown.walker import walk
from curate.markdown.wrapper import has_wrapper, is_of_the_page, page_words_after, split_wrappers

__all__ = [
    "Citations",
    "has_html",
    "has_wrapper",
    "is_of_the_page",
    "looks_like_html",
    "page_words_after",
    "split_wrappers",
    "strip_chrome",
    "to_markdown",
    "unwrap_prompt",
    "walk_html",
]

Citations = Literal["links", "drop"]
_CODE = re.compile(r"^([`~])\1\1[^\n]*\n(?:(?!\1\1\1)[^\n]*+\n)*+(?:\1\1\1|\Z)|`[^`\n]+`", re.M)  # fenced, or in a line
_ELEMENT = re.compile(
    r"</?(?:p|div|br|hr|ul|ol|li|b|strong|em|i|u|code|pre|h[1-6]|a|span|table|t[rdh]|blockquote|img|article|section)\b[^<>]*>",
    re.I,
)
_CUT_TAG = re.compile(r"<(?:/?[a-zA-Z][^<>]*)?\Z")  # in HTML, text has no unescaped `<`


def to_markdown(answers: Sequence[str], *, citations: Citations = "links") -> list[str]:
    """Return the markdown of each answer; never raises, and loses no text.

    `citations`: citation pills become links in parentheses, or are dropped.
    """
    bodies = list(answers)
    blocks: list[Sequence[Block]] = [()] * len(bodies)
    for index in flat.indices_with_code(bodies):
        bodies[index], blocks[index] = _extract(bodies[index])
    return [
        _walk(body, extracted, citations) if markdown is None else markdown
        for markdown, body, extracted in zip(flat.convert(bodies, blocks), bodies, blocks, strict=True)
    ]


def has_html(text: str) -> bool:
    """Return whether there is an element of HTML in a text, other than as code."""
    return "<" in text and _ELEMENT.search(_CODE.sub("", text)) is not None


def walk_html(html: str, *, citations: Citations = "links") -> str:
    """Return the markdown of one answer with the walker, which handles any markup; tests compare `flat` with it."""
    return _walk(*_extract(html), citations)


def _walk(html: str, blocks: Sequence[Block], citations: Citations) -> str:
    if not blocks:
        html, blocks = _extract(html)  # tags may be in capitals
    return walk(remove_placeholders(trim_chrome(html)), blocks, TAGS, citations)


def _extract(html: str) -> tuple[str, Sequence[Block]]:
    if "\r" in html:
        html = html.replace("\r\n", "\n").replace("\r", "\n")
    if html[-1:] != ">" and (cut := _CUT_TAG.search(html, max(0, html.rfind("<")))):
        html = html[: cut.start()]
    return extract_blocks(html) if "<pre" in html or "<PRE" in html else (html, ())
