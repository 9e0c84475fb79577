"""`curate stats`: statistics of a curated set or a dump."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from curate.analysis.comparison import Comparison
    from curate.analysis.stats import Stats


@click.command()
@click.argument("path", default="curated", metavar="[SET]")
@click.option(
    "--compare", "second", metavar="OTHER", help="Compare with another set: the records that only one of them keeps."
)
@click.option("--html", metavar="FILE", help="Write an HTML page with sample conversations to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--tokenizer", help="For a dump: tokenizer for counting tokens.")
@click.option("--template", help="For a dump: prompt template for counting tokens.")
@click.option("--workers", type=click.IntRange(min=1), help="For a dump: number of processes.  [default: all cores]")
def stats(path: str, second: str | None, html: str | None, as_json: bool, **counting: Any) -> None:
    """Show statistics of a curated set or a dump.

    Shows how many records each rule rejected, lengths, languages, models, roles, duplicates, repairs, how
    much fits a window, and how much is trained on. SET is a set's folder (by default curated/), or any
    input of curate clean, which is measured without cleaning.

    \b
    Example:
      curate stats english --html english.html
    """
    from curate.analysis.stats import Stats
    from curate.cli.progress.stages import show_stages
    from curate.display.text import one_line, show, to_json

    with show_stages("comparing" if second else "measuring"):
        result = _compare(path, second, html, counting) if second else _measure(path, html, counting)
    if as_json:
        click.echo(to_json(result))
    elif html:
        click.echo(f"wrote {html}", err=True)
    else:
        show(_render(result))
    for warning in result.header.warnings if isinstance(result, Stats) else ():
        click.echo(f"warning: {one_line(warning, 1000)}", err=True)


def _measure(path: str, html: str | None, counting: dict[str, Any]) -> Stats:
    if not Path(path).is_file():  # a set needs no worker
        from curate.api.stats import stats as measure

        return measure(path, html=html, **counting)
    from curate.cli.clean import start_workers
    from curate.engine.pool import stop_prestarted

    start_workers([path], counting["workers"], "curate.analysis.dump_stats")
    try:
        from curate.api.stats import stats as measure  # while the workers import the same

        return measure(path, html=html, **counting)
    finally:
        stop_prestarted()


def _compare(path: str, second: str, html: str | None, counting: dict[str, Any]) -> Comparison:
    from curate.api.compare import compare

    options = [name for name, value in counting.items() if value is not None]
    if options:
        raise click.UsageError(
            f"--{options[0]} is for a dump; --compare takes two sets, whose tokens are already counted"
        )
    return compare(path, second, html=html)


def _render(result: Stats | Comparison) -> RenderableType:
    from curate.analysis.stats import Stats

    if isinstance(result, Stats):
        from curate.report.terminal.stats import render_stats

        return render_stats(result)
    from curate.report.terminal.compare import render_comparison  # with Polars

    return render_comparison(result)
