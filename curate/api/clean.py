"""`curate.clean`: clean dumps into a set, write its page, and convert it if the output is one file."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

from curate import files
from curate.dataset import curated_set, manifest
from curate.dataset.curated_set import CuratedSet
from curate.dataset.manifest import Manifest
from curate.errors import SetError
from curate.ingest.remote.address import is_remote
from curate.ingest.sources import open_inputs
from curate.pipeline import recipe as recipes
from curate.pipeline import run
from curate.pipeline.overrides import Overrides, command_line
from curate.pipeline.parts import sharing
from curate.pipeline.parts.execution import Engine, Execution, Progress
from curate.pipeline.parts.plan import make_plan
from curate.pipeline.recipe import Recipe
from curate.pipeline.replacement import is_made
from curate.pipeline.run import CleanResult, MaskSpans
from curate.remote.sets import fetch_set
from curate.remote.targets import SetTarget, set_target

FILE_FORMATS = {".json": "vicuna", ".jsonl": "jsonl", ".parquet": "parquet"}  # of `-o FILE`
DEFAULT_RECIPE = "vicuna"
MAX_PATHS = 3  # in a message
REFUSED_SUFFIXES = (
    *(".csv", ".tsv", ".txt", ".md", ".html", ".xlsx", ".arrow", ".ndjson"),
    *(".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz"),
)


def clean(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path = "curated",
    *,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    force: bool = False,
    strict: bool = False,
    against: str | Path | None = None,
    workers: int | None = None,
    fresh: bool = False,
    engine: Engine = "local",
    address: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    note: Callable[[str], None] | None = None,
    **overrides: Unpack[Overrides],
) -> CleanResult:
    """Clean chat dumps into a curated set, and return its location and counts.

    `output` is a folder, or a file (.json, .jsonl, .parquet); the set is then in a folder of the same name next to the
    file. For an address (s3://, gs://) the set is made in a hidden folder of the current one, and uploaded.
    `against` is a set whose conversations
    are rejected as known. `force` replaces a set of other inputs or another recipe. `strict` makes a file that is not
    read an error. A run that was killed is taken up again, unless `fresh`; `note` is called with such news.
    `engine` ray makes the parts in a Ray cluster (`address`), on storage that all of its nodes see.
    `overrides` replace settings of the recipe; see
    `curate.pipeline.overrides.Overrides`. Raises InputError if the input has no complete record or none is kept,
    RecipeError, TokenizerError, and SetError if an input is a set or the target must not be overwritten.
    """
    started = time.perf_counter()
    resolved = recipes.override(recipes.load(recipe), **overrides)
    arguments = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    refuse_sets(arguments, Path(output), recipe, overrides)
    known = None if against is None else curated_set.open_set(fetch_set(against))
    execution = Execution(workers, progress, note or (lambda text: None), fresh, engine, address)
    if is_remote(output):
        with set_target(str(output), force=force) as target:
            result = _clean_elsewhere(arguments, target, resolved, strict, known, execution)
    else:
        result = _clean(arguments, Path(output), resolved, force, strict, known, execution)
    return dataclasses.replace(result, seconds=time.perf_counter() - started)


def _clean_elsewhere(
    inputs: Sequence[str | Path],
    target: SetTarget,
    recipe: Recipe,
    strict: bool,
    against: CuratedSet | None,
    execution: Execution,
) -> CleanResult:
    """Make the set that is uploaded afterwards, or take the one whose upload was killed."""
    folder = target.folder
    elsewhere = (target.address, target.earlier) if target.earlier else None
    if manifest.is_set(folder):
        if not execution.fresh and is_made(folder, recipe, open_inputs(inputs), against):
            execution.note(f"the set of an earlier run in {str(folder)!r} is taken up")
            facts = curated_set.open_set(folder).manifest
            return CleanResult(folder, facts, list(facts.warnings), 0.0, 0, address=target.address)
        files.remove(folder, folder.parent)
    result = _clean(inputs, folder, recipe, False, strict, against, execution, elsewhere)
    return dataclasses.replace(result, address=target.address)


def _clean(
    inputs: Sequence[str | Path],
    output: Path,
    recipe: Recipe,
    force: bool,
    strict: bool,
    against: CuratedSet | None,
    execution: Execution,
    elsewhere: tuple[str, Manifest] | None = None,
) -> CleanResult:
    folder, file = find_target(output)
    plan = None
    if execution.engine == "ray":
        plan = make_plan(inputs, output, recipe)
        sharing.make_share(plan, folder, recipe, 1, 1, execution)
    result = run.clean(
        inputs,
        folder,
        recipe,
        file=file,
        force=force,
        strict=strict,
        against=against,
        execution=dataclasses.replace(execution, workers=None, fresh=False) if plan else execution,
        plan=plan,
        page=Page(),
        elsewhere=elsewhere,
    )
    if file is not None:
        convert_set(folder, file)
    return result


def find_target(output: Path) -> tuple[Path, Path | None]:
    """Return the set's folder, and the file to convert it to if `output` names one."""
    if output.is_dir() or output.suffix.lower() not in {*FILE_FORMATS, *REFUSED_SUFFIXES}:
        return output, None
    if output.suffix not in FILE_FORMATS:
        raise SetError(f"cannot write {str(output)!r}: give a folder, or a file ending in {', '.join(FILE_FORMATS)}")
    return output.with_suffix(""), output


def refuse_sets(inputs: Sequence[str | Path], output: Path, recipe: str | Path | Recipe, overrides: Overrides) -> None:
    """Raise SetError if an input is a set in place of a dump, with the commands that do what may be meant."""
    for argument in inputs:
        _refuse_set(Path(argument), output, [*_recipe_option(recipe), *command_line(overrides)])


def _recipe_option(recipe: str | Path | Recipe) -> list[str]:
    name = recipe.name if isinstance(recipe, Recipe) else str(recipe)
    return [] if name == DEFAULT_RECIPE else ["--recipe", name]


def _refuse_set(path: Path, output: Path, settings: Sequence[str]) -> None:
    """Raise SetError if an input is a set in place of a dump, with the commands that do what may be meant."""
    if not manifest.is_set(path):
        return
    name = path.resolve().name
    target = path.with_name(f"{name}-again") if output.resolve() == path.resolve() else output
    again = shlex.join(["curate", "clean", *_dumps(path), "-o", str(target), *settings])
    convert = shlex.join(["curate", "convert", str(path), f"{name}.jsonl", "--to", "jsonl"])
    problem = f"{str(path)!r} is a curated set, not a dump"
    raise SetError(f"{problem}; to clean what it was made from: {again}; to convert it: {convert}")


def _dumps(path: Path) -> list[str]:
    """Return the paths that a set was made from, or that of its conversations if these do not exist any more."""
    run_facts = curated_set.open_set(path).manifest.run
    paths = list(dict.fromkeys(run_facts.paths)) if run_facts else []
    if not paths or not all(Path(dump).exists() for dump in paths):
        return [str(path / curated_set.CONVERSATIONS)]
    return paths if len(paths) <= MAX_PATHS else [os.path.commonpath(map(os.path.abspath, paths))]


class Page:
    """Measures a new set and writes its report.html."""

    def load(self) -> None:
        """Import what the page needs (0.3 s) while workers write the tables."""
        from curate.report.html import samples, stats  # noqa: F401

    def measure(self, folder: Path, manifest: Manifest) -> Manifest:
        """Return the manifest of a new set with what is measured of its tables."""
        from curate.analysis.recorded import record
        from curate.analysis.set_stats import measure_tables

        return record(folder, manifest, partial(measure_tables, CuratedSet(folder, manifest)))

    def write(self, folder: Path, name: str, mask_spans: MaskSpans) -> None:
        """Write the page of a set that is still in its temporary folder."""
        from curate.analysis.set_stats import measure_set
        from curate.report.html import pages

        curated = curated_set.open_set(folder)
        pages.write_stats(folder / curated_set.REPORT, measure_set(curated), curated, name=name, read_masks=mask_spans)


def convert_set(folder: Path, file: Path) -> None:
    """Convert a new set to the file that the output names."""
    from curate.conversion.convert import convert

    try:
        convert(folder, file, to=FILE_FORMATS[file.suffix])
    except KeyboardInterrupt as stop:
        stop.args = (f"the set {str(folder)!r} is complete, but {str(file)!r} was not written",)
        raise
