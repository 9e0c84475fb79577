"""What of a text is prose: without code, tables, formulas and lists."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from curate.filters.structure import FENCED
from curate.pattern_cache import keep_patterns

# Lines of tables, of code outside of fences (indented, or by how they end or begin), and of formulas.
NO_PROSE = (
    r"(?m)^[ \t]*\|.*$|^.*(?:<-|->|=>|:=|==).*$|^(?: {4,}|\t).*$"
    r"|^.*[;{}>\\][ \t]*$|^[ \t]*(?:<[^>]+>|\$|//|#include|@\w).*$"
    r"|^[ \t]*(?:def|class|import|from|return|print|if|for|while|var|let|const|public|private|function)\b.*[({=].*$"
)
ITEM = r"(?m)^[ \t]*(?:[-*+•·–—]|\(?(?:[0-9]{1,3}|\p{L}|[ivxIVX]{1,4})[.):、])[ \t]*\S.*$"


@keep_patterns
def without_code(texts: Sequence[str]) -> list[str]:
    """Return the texts without code, tables and formulas."""
    return pl.Series(texts, dtype=pl.String).str.replace_all(FENCED, "\x01").str.replace_all(NO_PROSE, "\x01").to_list()


def without_lists(texts: Sequence[str]) -> list[str]:
    """Return the texts without the items of lists."""
    return pl.Series(texts, dtype=pl.String).str.replace_all(ITEM, "\x01").to_list()
