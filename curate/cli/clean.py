"""`curate clean`: turn dumps into a curated set."""

from __future__ import annotations

import shlex
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
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    "--out",
    "output",
    default="curated",
    show_default=True,
    help="Folder to write, or s3://BUCKET/NAME; a .json, .jsonl or .parquet name also writes that file.",
)
@click.option("--recipe", default="vicuna", show_default=True, help="Built-in recipe (curate recipes) or a .toml file.")
@recipe_options
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes.  [default: all cores]")
@click.option("--force", is_flag=True, help="Replace a set that was made from other inputs or with another recipe.")
@click.option("--fresh", is_flag=True, help="Start over; do not go on with a run that was killed.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Who cleans.")
@click.option("--address", help="Of the Ray cluster: auto, or ray://HOST:PORT.  [default: start one on this machine]")
@click.option("--plan", metavar="FILE", help="With INPUT: write the plan of this run, to clean it in shares.")
@click.option("--part", metavar="K/N", help="With --plan: clean the share K of N, on any machine.")
@click.option("--gather", is_flag=True, help="With --plan: make the set, when all shares are cleaned.")
@click.option("--against", metavar="SET", help="Keep only what is not in this set already: the next month's dump.")
@click.option("--strict", is_flag=True, help="Write nothing if a file is not read; exit with 1 if an input is damaged.")
@click.option("--quiet", "-q", is_flag=True, help="Print warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's manifest as JSON.")
def clean(
    inputs: tuple[str, ...],
    strict: bool,
    quiet: bool,
    as_json: bool,
    plan: str | None,
    part: str | None,
    gather: bool,
    **settings: Any,
) -> None:
    """Turn dumps into a curated set.

    Every record is either kept, repaired and split if necessary, or rejected with a reason. INPUT is a
    .json, .jsonl, .csv, .parquet or .arrow file (also .gz, .zst, .bz2, .xz, .zip or .tar), a folder of
    such files, the address of one (https, s3, gs, hf), hf:owner/name for a data set of the Hugging Face
    Hub, or - for standard input.

    \b
    Example:
      curate clean dump.json --language en --max-tokens 4096 -o english
    """
    from curate.engine import pool

    if plan is not None or part is not None or gather:
        _follow_plan(inputs, plan, part, gather, {**settings, "strict": strict}, quiet, as_json)
        return
    if not inputs:
        raise click.UsageError("Missing argument 'INPUT...'.")
    if settings["engine"] == "local":
        start_workers(inputs, settings["workers"], "curate.pipeline.parts.step")
    try:
        from curate.api.clean import clean as run
        from curate.cli.progress.clean import show_progress

        with show_progress(quiet) as progress:
            result = run(inputs, strict=strict, progress=progress, note=None if quiet else _note, **settings)
    finally:
        pool.stop_prestarted()
    report(result, quiet, as_json)
    if strict and result.damaged:
        click.get_current_context().exit(1)


def _follow_plan(
    inputs: tuple[str, ...],
    plan: str | None,
    part: str | None,
    gather: bool,
    settings: dict[str, Any],
    quiet: bool,
    as_json: bool,
) -> None:
    """Write a plan, clean a share of it, or gather its parts."""
    given = [bool(inputs), part is not None, gather]
    if plan is None or sum(given) != 1:
        raise click.UsageError("give --plan FILE with INPUT to write it, with --part K/N, or with --gather")
    from curate.api import plans
    from curate.cli.progress.clean import show_progress
    from curate.cli.progress.stages import show_stages

    workers, fresh = settings.pop("workers"), settings.pop("fresh")
    if settings.pop("engine") != "local" or settings.pop("address") is not None:
        raise click.UsageError("--engine ray makes a plan of its own; leave out --plan")
    if inputs:
        with show_stages("planning", quiet=quiet):
            written = plans.write_plan(inputs, settings.pop("output"), plan, **settings)
        count = len(written.units)
        command = shlex.join(["curate", "clean", "--plan", plan, "--part", f"1/{min(count, 16)}"])
        click.echo(f"{plan}: {count:,} units; clean the shares 1 to N, such as: {command}")
        return
    if gather:
        with show_progress(quiet) as progress:
            gathered = plans.gather(plan, workers=workers, progress=progress, note=None if quiet else _note)
        report(gathered, quiet, as_json)
        return
    share, count = _share(str(part))
    with show_progress(quiet) as progress:
        result = plans.clean_share(plan, share, count, workers=workers, fresh=fresh, progress=progress)
    if not quiet:
        made = f"{result.parts:,} parts of {result.units:,} units, {result.reused:,} of them made before"
        click.echo(f"part {part}: {made}; {result.records:,} records in {result.seconds:.1f} s")


def _share(text: str) -> tuple[int, int]:
    share, slash, count = text.partition("/")
    if not (slash and share.isdecimal() and count.isdecimal()):
        raise click.BadParameter(f"{text!r} is not K/N, such as 3/16", param_hint="'--part'")
    return int(share), int(count)


def _note(text: str) -> None:
    click.echo(text, err=True)


def start_workers(inputs: Sequence[str], workers: int | None, module: str) -> None:
    """Start the workers of a large run early, so that they import a module, and Polars, while this process does."""
    from curate.engine import base, pool

    count = workers or base.default_workers()
    size = sum(Path(path).stat().st_size for path in inputs if Path(path).is_file())
    if count > 1 and size > LARGE:
        pool.prestart(count, module)


def report(result: CleanResult, quiet: bool, as_json: bool) -> None:
    """Print the manifest or the summary on stdout, warnings on stderr."""
    from curate.display.text import one_line, show, to_json

    if as_json:
        click.echo(to_json(result.manifest.to_dict()))
    elif not quiet:
        from curate.report.terminal.summary import render_summary

        show(render_summary(result.manifest, result.address or result.output, result.file))
    for warning in result.warnings:
        click.echo(f"warning: {one_line(warning, 1000)}", err=True)
