"""`curate.stats`: measure a set or a dump, and write its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curate.analysis.recorded import read_recorded
from curate.analysis.stats import Stats
from curate.dataset import manifest as manifests
from curate.errors import InputError, SetError
from curate.remote.sets import find_set

if TYPE_CHECKING:
    from curate.dataset.curated_set import CuratedSet
    from curate.rendering.mask_view import MaskedText
    from curate.schemas.conversation import Message


def stats(
    path: str | Path = "curated",
    *,
    tokenizer: str | None = None,
    template: str | None = None,
    workers: int | None = None,
    html: str | Path | None = None,
) -> Stats:
    """Measure a curated set, or the conversations of any input that `curate` reads, before cleaning.

    `html` names a file for the page, which includes sample conversations. `tokenizer`, `template` and
    `workers` apply to a dump only: the tokens of a set were counted when it was cleaned. Raises SetError or
    InputError if there is nothing to measure or the input is damaged.
    """
    if html is not None:
        from curate.report.html import pages

        pages.check_suffix(Path(html))
    path = find_set(path)
    if manifests.is_dump(path) or _is_missing_dump(path):  # reading a missing dump raises its error
        from curate.analysis.dump_stats import measure_dump  # reading and parsing, which a set does not need

        measured = measure_dump(path, tokenizer=tokenizer, template=template, workers=workers)
        _write_page(html, measured, None)
        return measured
    folder, manifest = manifests.read(path)
    if tokenizer or template:
        raise SetError(
            f"the tokens of the set {str(path)!r} were counted when it was cleaned, in {manifest.template!r}; "
            "to change tokenizer or template, clean again: curate clean --tokenizer … --template …"
        )
    recorded = read_recorded(folder, manifest)
    return recorded if recorded is not None and html is None else _open_and_measure(path, recorded, html)


def _open_and_measure(path: str | Path, recorded: Stats | None, html: str | Path | None) -> Stats:
    """Measure the tables of a set, if its manifest does not record their measures, and write its page."""
    from curate.analysis.set_stats import measure_again  # with Polars, which takes longer than the rest
    from curate.dataset.curated_set import open_set

    curated = open_set(path)
    measured = recorded or measure_again(curated)
    _write_page(html, measured, curated)
    return measured


def _is_missing_dump(path: str | Path) -> bool:
    """Return whether a path does not exist, and ends like a dump or names a data set of the Hub."""
    if Path(path).exists():
        return False
    from curate.ingest.kinds import HUB_PREFIX, is_dump_name
    from curate.ingest.remote.address import is_remote

    return is_remote(path) or str(path).startswith(HUB_PREFIX) or is_dump_name(str(path))


def _write_page(file: str | Path | None, measured: Stats, curated: CuratedSet | None) -> None:
    if file is None:
        return
    from curate.report.html import pages

    try:
        pages.write_stats(Path(file), measured, curated, read_masks=_mask_spans(curated) if curated else None)
    except OSError as error:
        raise InputError(f"cannot write {str(file)!r}: {error.strerror or error}") from error


def _mask_spans(curated: CuratedSet) -> Callable[[Sequence[Sequence[Message]]], Sequence[MaskedText]] | None:
    """Return a function that shows which text is trained on, or None if the set's tokenizer cannot be loaded."""
    from curate.dataset.curated_set import translate_errors
    from curate.rendering.mask_view import load_viewer, masked_text

    with translate_errors(curated):
        viewer, _ = load_viewer(curated.manifest)
    return (
        None
        if viewer is None
        else lambda conversations: [masked_text(viewer.compiled, messages) for messages in conversations]
    )
