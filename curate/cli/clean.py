"""`curate clean`: turn dumps into a curated set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curate.pipeline.overrides import Override, read_declarations

if TYPE_CHECKING:
    from curate.pipeline.run import CleanResult


LARGE = 16 << 20  # bytes of input; above this, several workers pay off


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each setting of the recipe that the command may override."""
    for name, (kind, override) in reversed(read_declarations().items()):
        command = _option(name, kind, override)(command)
    return command


def _option(name: str, kind: object, override: Override) -> Callable[[Callable[..., None]], Callable[..., None]]:
    flag = override.option(name)
    if kind == bool | None:
        value = not override.turns_off
        return click.option(flag, name, flag_value=value, type=bool, default=None, help=override.help)
    kinds: dict[object, click.ParamType[Any]] = {
        int | None: click.IntRange(min=override.minimum),
        float | None: click.FloatRange(override.minimum, override.below, max_open=True),
    }
    many = kind in (Sequence[str], Sequence[str | Path])
    return click.option(flag, name, type=kinds.get(kind), multiple=many, metavar=override.metavar, help=override.help)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    "--out",
    "output",
    default="curated",
    show_default=True,
    help="Folder to write; a .json, .jsonl or .parquet name also writes that file.",
)
@click.option("--recipe", default="vicuna", show_default=True, help="Built-in recipe (curate recipes) or a .toml file.")
@recipe_options
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes.  [default: all cores]")
@click.option("--force", is_flag=True, help="Replace a set that was made from other inputs or with another recipe.")
@click.option("--against", metavar="SET", help="Keep only what is not in this set already: the next month's dump.")
@click.option("--strict", is_flag=True, help="Write nothing if a file is not read; exit with 1 if an input is damaged.")
@click.option("--quiet", "-q", is_flag=True, help="Print warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's manifest as JSON.")
def clean(
    inputs: tuple[str, ...],
    strict: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Turn dumps into a curated set.

    Every record is either kept, repaired and split if necessary, or rejected with a reason. INPUT is a
    .json, .jsonl, .csv, .parquet or .arrow file (also .gz, .zst, .bz2, .xz, .zip or .tar), a folder of
    such files, hf:owner/name for a data set of the Hugging Face Hub, or - for standard input.

    \b
    Example:
      curate clean dump.json --language en --max-tokens 4096 -o english
    """
    from curate.engine import pool

    _start_workers(inputs, settings["workers"])
    try:
        from curate.api.clean import clean as run
        from curate.cli.clean_progress import show_progress

        with show_progress(quiet) as progress:
            result = run(inputs, strict=strict, progress=progress, **settings)
    finally:
        pool.stop_prestarted()
    report(result, quiet, as_json)
    if strict and result.damaged:
        click.get_current_context().exit(1)


def _start_workers(inputs: tuple[str, ...], workers: int | None) -> None:
    """Start the workers of a large run early, so that they import Polars while this process does."""
    from curate.engine import base, pool

    count = workers or base.default_workers()
    size = sum(Path(path).stat().st_size for path in inputs if Path(path).is_file())
    if count > 1 and size > LARGE:
        pool.prestart(count, "curate.pipeline.steps")


def report(result: CleanResult, quiet: bool, as_json: bool) -> None:
    """Print the manifest or the summary on stdout, warnings on stderr."""
    from curate.display.text import one_line, show, to_json

    if as_json:
        click.echo(to_json(result.manifest.to_dict()))
    elif not quiet:
        from curate.report.terminal.summary import render_summary

        show(render_summary(result.manifest, result.output, result.file))
    for warning in result.warnings:
        click.echo(f"warning: {one_line(warning, 1000)}", err=True)
