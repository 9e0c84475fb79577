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

from collections.abc import Sequence
from typing import Literal

from curate.markdown import flat
from curate.markdown.chrome import is_root, looks_like_html, strip_chrome, trimmed, unwrap_prompt
from curate.markdown.code import Block, lift
from curate.markdown.elements import TAGS
from curate.markdown.marks import without_marks
from curate.markdown.walk import walk

__all__ = ["Citations", "looks_like_html", "strip_chrome", "to_markdown", "unwrap_prompt", "walked"]

Citations = Literal["links", "drop"]

_ROOT_END = "</div>"


def to_markdown(answers: Sequence[str], *, citations: Citations = "links") -> list[str]:
    """Return each answer's HTML as markdown; nothing raises, and no text is lost.

    `citations` says what becomes of the pills that name a source: links in parentheses, or nothing.
    """
    lifted = [_lifted(html) for html in answers]
    bodies = [_without_root(html) for html, _ in lifted]
    converted = flat.convert(bodies, [blocks for _, blocks in lifted])
    return [
        walk(without_marks(html), blocks, TAGS, citations) if markdown is None else markdown
        for markdown, (html, blocks) in zip(converted, lifted, strict=True)
    ]


def walked(html: str, *, citations: Citations = "links") -> str:
    """Return one answer as markdown by the walker alone, which takes any markup; the reference for `flat`."""
    html, blocks = _lifted(html)
    return walk(without_marks(html), blocks, TAGS, citations)


def _lifted(html: str) -> tuple[str, Sequence[Block]]:
    """Return an answer without what surrounds it and without its code blocks, and these."""
    if "\r" in html:
        html = html.replace("\r\n", "\n").replace("\r", "\n")
    root = html.find(">") + 1
    if not _is_plain_root(html[:root]) or not html.endswith(_ROOT_END) or "chars /" in html[-80:]:
        html = trimmed(html)
    return lift(html) if "<pre" in html or "<PRE" in html else (html, ())


def _is_plain_root(tag: str) -> bool:
    known = _ROOTS.get(tag)
    if known is None:
        if len(_ROOTS) > 1024:
            _ROOTS.clear()
        known = _ROOTS[tag] = is_root(tag)
    return known


_ROOTS: dict[str, bool] = {}


def _without_root(html: str) -> str | None:
    """Return what stands inside the root, or None where the answer is not one root and nothing else."""
    root = html.find(">") + 1
    if _is_plain_root(html[:root]) and html.endswith(_ROOT_END):
        return html[root : -len(_ROOT_END)]
    return None
