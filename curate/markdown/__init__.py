"""Turns the HTML of ChatGPT's answers, 2022 to 2026, into the markdown it was rendered from.

    looks_like_html(text)    is this ChatGPT's own markup?
    to_markdown(answers)     HTML in, markdown out, a batch at a time
    strip_chrome(text)       for answers that are text already
    unwrap_prompt(text)      for prompts stored with their bubble's markup

Code blocks are lifted out first (`code`). What is left of most answers is flat and is converted column
by column (`flat`); what nests is walked once (`walk`, `elements`). Both give the same text, and only
what markdown would take for markup is escaped (`escape`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from curate.markdown import flat
from curate.markdown.chrome import looks_like_html, strip_chrome, trimmed, unwrap_prompt
from curate.markdown.code import Block, lift
from curate.markdown.elements import TAGS
from curate.markdown.placeholders import without_marks
from curate.markdown.walk import walk

__all__ = ["Citations", "looks_like_html", "strip_chrome", "to_markdown", "unwrap_prompt", "walked"]

Citations = Literal["links", "drop"]
_CUT_TAG = re.compile(r"<(?:/?[a-zA-Z][^<>]*)?\Z")  # text holds no `<` of its own in HTML


def to_markdown(answers: Sequence[str], *, citations: Citations = "links") -> list[str]:
    """Return each answer's HTML as markdown; nothing raises, and no text is lost.

    `citations` says what becomes of the pills that name a source: links in parentheses, or nothing.
    """
    bodies = list(answers)
    blocks: list[Sequence[Block]] = [()] * len(bodies)
    for place in flat.with_code(bodies):
        bodies[place], blocks[place] = _lifted(bodies[place])
    return [
        _walked(body, lifted, citations) if markdown is None else markdown
        for markdown, body, lifted in zip(flat.convert(bodies, blocks), bodies, blocks, strict=True)
    ]


def walked(html: str, *, citations: Citations = "links") -> str:
    """Return one answer as markdown by the walker alone, which takes any markup; the reference for `flat`."""
    return _walked(*_lifted(html), citations)


def _walked(html: str, blocks: Sequence[Block], citations: Citations) -> str:
    if not blocks:
        html, blocks = _lifted(html)  # tags in capitals
    return walk(without_marks(trimmed(html)), blocks, TAGS, citations)


def _lifted(html: str) -> tuple[str, Sequence[Block]]:
    if "\r" in html:
        html = html.replace("\r\n", "\n").replace("\r", "\n")
    if html[-1:] != ">" and (cut := _CUT_TAG.search(html, max(0, html.rfind("<")))):
        html = html[: cut.start()]
    return lift(html) if "<pre" in html or "<PRE" in html else (html, ())
