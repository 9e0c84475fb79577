"""Results as HTML pages, each one file that loads nothing: a set's statistics, two sets compared, a training run.

document.py  the page, from head to foot          samples.py  which conversations stand on it
beside.py    the page of two sets side by side    talk.py     a conversation, and what changed in it
frame.py     head, policy, scripts, data          parts.py    escaped text, tables, facts
page.css, page.js, vendor/                        its looks, its charts and sorting, Apache ECharts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curate import files
from curate.errors import InputError

if TYPE_CHECKING:
    from curate.analysis.compare import Comparison
    from curate.analysis.stats import Stats
    from curate.dataset.curated_set import CuratedSet
    from curate.rendering.mask_view import MaskedText
    from curate.schemas.conversation import Message

ENDINGS = (".html", ".htm")


def check(file: Path) -> None:
    """Raise InputError for a file that does not end in .html, so that none is written over by a slip."""
    if file.suffix.lower() not in ENDINGS:
        raise InputError(f"{str(file)!r} does not end in {ENDINGS[0]}; name the page so: --html report.html")


def write(
    file: Path,
    stats: Stats,
    curated: CuratedSet | None = None,
    *,
    name: str = "",
    told: Callable[[Sequence[Sequence[Message]]], Sequence[MaskedText]] | None = None,
) -> None:
    """Write the page of statistics, with conversations of the set that they are of.

    `name` is what the set is called there, that of its folder if left out; `told` tells what is trained on in
    conversations. The same set gives the same page. Raises OSError where it cannot be written.
    """
    from curate.dataset.curated_set import translate_errors
    from curate.report.html import samples
    from curate.report.html import stats as document

    if curated is None:
        chosen = samples.sample_dump(stats.header.path)
    else:
        with translate_errors(curated):
            chosen = samples.sample_set(curated, told)
    files.write_text(file, document.render(stats, chosen, name or _name(stats)))


def write_comparison(file: Path, comparison: Comparison, sets: tuple[CuratedSet, CuratedSet]) -> None:
    """Write the page of a comparison, with conversations that one of the sets keeps alone; raises InputError."""
    from curate.report.html import compare

    try:
        files.write_text(file, compare.render(comparison, sets))
    except OSError as error:
        raise InputError(f"cannot write {str(file)!r}: {error.strerror or error}") from error


def _name(stats: Stats) -> str:
    return Path(stats.header.path).resolve().name
