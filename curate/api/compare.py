"""`curate.compare`: compare two sets, and write the page of the comparison."""

from __future__ import annotations

from pathlib import Path

from curate.analysis.comparison import Comparison, compare_sets, open_comparable


def compare(one: str | Path, other: str | Path, *, html: str | Path | None = None) -> Comparison:
    """Compare two curated sets, such as those of two recipes over one dump.

    `html` names a file for the page. Raises SetError if a path is not a set, or the set is damaged.
    """
    if html is not None:
        from curate.report.html import pages

        pages.check_suffix(Path(html))
    sets = open_comparable(one), open_comparable(other)
    comparison = compare_sets(*sets)
    if html is not None:
        pages.write_comparison(Path(html), comparison, sets)
    return comparison
