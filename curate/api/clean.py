"""`curate.clean`: clean dumps into a set, write its page, and convert it if the output is one file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from curate.dataset import curated_set
from curate.errors import SetError
from curate.pipeline import recipe as recipes
from curate.pipeline import run
from curate.pipeline.overrides import Overrides
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import CleanResult, MaskSpans, Progress

FILE_FORMATS = {".json": "vicuna", ".jsonl": "jsonl", ".parquet": "parquet"}  # of `-o FILE`
REFUSED_SUFFIXES = (".csv", ".tsv", ".txt", ".md", ".html", ".xlsx", ".arrow", ".ndjson", ".gz", ".zst", ".zip")


def clean(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path = "curated",
    *,
    recipe: str | Path | Recipe = "vicuna",
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    **overrides: Unpack[Overrides],
) -> CleanResult:
    """Clean chat dumps into a curated set, and return its location and counts.

    `output` is a folder, or a file (.json, .jsonl, .parquet); the set is then in a folder of the same name next to the
    file. `overrides` replace settings of the recipe; see `curate.pipeline.overrides.Overrides`. Raises InputError if
    the input has no complete record, RecipeError, TokenizerError, and SetError if the target must not be overwritten.
    """
    started = time.perf_counter()
    resolved = recipes.override(recipes.load(recipe), **overrides)
    folder, file = _target(Path(output))
    arguments = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    result = run.clean(arguments, folder, resolved, file=file, workers=workers, progress=progress, page=_Page())
    if file is not None:
        _convert(folder, file)
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


def _target(output: Path) -> tuple[Path, Path | None]:
    """Return the set's folder, and the file to convert it to if `output` names one."""
    if output.is_dir() or output.suffix.lower() not in {*FILE_FORMATS, *REFUSED_SUFFIXES}:
        return output, None
    if output.suffix not in FILE_FORMATS:
        raise SetError(f"cannot write {str(output)!r}: give a folder, or a file ending in {', '.join(FILE_FORMATS)}")
    return output.with_suffix(""), output


class _Page:
    """Writes a set's report.html."""

    def load(self) -> None:
        """Import what the page needs (0.3 s) while workers write the tables."""
        from curate.report.html import samples, stats  # noqa: F401

    def write(self, folder: Path, name: str, mask_spans: MaskSpans) -> None:
        """Write the page of a set that is still in its temporary folder."""
        from curate.analysis.set_stats import measure_set
        from curate.report.html import pages

        curated = curated_set.open_set(folder)
        pages.write_stats(folder / curated_set.REPORT, measure_set(curated), curated, name=name, read_masks=mask_spans)


def _convert(folder: Path, file: Path) -> None:
    from curate.conversion.convert import convert

    try:
        convert(folder, file, to=FILE_FORMATS[file.suffix])
    except KeyboardInterrupt as stop:
        stop.args = (f"the set {str(folder)!r} is complete, but {str(file)!r} was not written",)
        raise
