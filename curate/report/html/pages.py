"""Write the pages of statistics and of comparisons, each one file that loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curate import files
from curate.errors import InputError

if TYPE_CHECKING:
    from curate.analysis.comparison import Comparison
    from curate.analysis.stats import Stats
    from curate.dataset.curated_set import CuratedSet
    from curate.rendering.mask_view import MaskedText
    from curate.schemas.conversation import Message

ENDINGS = (".html", ".htm")


def check_suffix(file: Path) -> None:
    """Check the file of a page before the work, so that nothing else is overwritten by mistake.

    Raises InputError for a file that does not end in .html, UnsafePathError for a folder or a link at a temporary name.
    """
    if file.suffix.lower() not in ENDINGS:
        raise InputError(f"{str(file)!r} does not end in {ENDINGS[0]}; use a name such as report.html")
    files.check_replaceable(file.resolve())


def write_stats(
    file: Path,
    stats: Stats,
    curated: CuratedSet | None = None,
    *,
    name: str = "",
    read_masks: Callable[[Sequence[Sequence[Message]]], Sequence[MaskedText]] | None = None,
) -> None:
    """Write the page of a set's or a dump's statistics, with sample conversations.

    `name` is the title, by default the folder's name; `read_masks` returns the spans of conversations, each with
    whether it is trained on. The same set gives the same page. Raises OSError if the file cannot be written.
    """
    from curate.dataset.curated_set import translate_errors
    from curate.report.html import samples
    from curate.report.html import stats as stats_page

    if curated is None:
        chosen = samples.sample_dump(stats.header.path)
    else:
        with translate_errors(curated):
            chosen = samples.sample_set(curated, read_masks)
    files.write_text(file, stats_page.render(stats, chosen, name or _name(stats)), follow_link=True)


def write_comparison(file: Path, comparison: Comparison, sets: tuple[CuratedSet, CuratedSet]) -> None:
    """Write the page of a comparison, with conversations that only one set keeps; raises InputError."""
    from curate.report.html import compare

    try:
        files.write_text(file, compare.render(comparison, sets), follow_link=True)
    except OSError as error:
        raise InputError(f"cannot write {str(file)!r}: {error.strerror or error}") from error


def _name(stats: Stats) -> str:
    return Path(stats.header.path).resolve().name
