"""`curate refilter` and `curate combine`: make a set from sets, without their dumps."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("source", metavar="SET")
@click.option(
    "-o",
    "--output",
    "--out",
    "output",
    required=True,
    help="Folder to write, or s3://BUCKET/NAME; a .json, .jsonl or .parquet name also writes that file.",
)
@click.option("--recipe", help="Built-in recipe or a .toml file.  [default: the set's]")
@click.option("--where", metavar="SQL", help='Keep only these: a condition on the columns, such as "turns > 4".')
@click.option("--drop", metavar="FILE", help="Ids or FILE:INDEX to reject, one on each line of this file.")
@click.option("--keep", metavar="FILE", help="Ids or FILE:INDEX to keep although a filter rejects them.")
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes.  [default: all cores]")
@click.option("--force", is_flag=True, help="Replace a set that was not made from SET.")
@click.option("--quiet", "-q", is_flag=True, help="Print warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def refilter(source: str, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Make a set again with another recipe, without its dump.

    Reads the kept and the rejected rows of SET, and writes the set that cleaning the dump with the recipe
    would give. Only records whose outcome may change are parsed again. What only the dump can give (other
    tokenizers, windows, repairs, new signals) is refused with its name.

    \b
    Example:
      curate refilter curated -o strict --recipe strict --drop ids.txt
    """
    from curate.api.refilter import refilter as run
    from curate.cli.clean import report
    from curate.cli.progress.clean import show_progress

    with show_progress(quiet) as progress:
        result = run(source, progress=progress, **settings)
    report(result, quiet, as_json)


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "-o",
    "--output",
    "--out",
    "output",
    required=True,
    help="Folder to write, or s3://BUCKET/NAME; a .json, .jsonl or .parquet name also writes that file.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes.  [default: all cores]")
@click.option("--force", is_flag=True, help="Replace a set that was not made from A and B.")
@click.option("--quiet", "-q", is_flag=True, help="Print warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def combine(first: str, second: str, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Put two sets together.

    Duplicates are decided again across A and B, and ids are unique. What A trains on and holds out stays
    so: what B has in common with A's eval split is held out too.

    \b
    Example:
      curate combine curated more -o both
    """
    from curate.api.refilter import combine as run
    from curate.cli.clean import report
    from curate.cli.progress.clean import show_progress

    with show_progress(quiet) as progress:
        result = run(first, second, progress=progress, **settings)
    report(result, quiet, as_json)
