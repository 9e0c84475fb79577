"""`curate stats`: the numbers of a curated set, or of a dump."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from curate.analysis.compare import Comparison
    from curate.analysis.stats import Stats


@click.command()
@click.argument("path", default="curated", metavar="[SET]")
@click.option(
    "--compare", "other", metavar="OTHER", help="Put another set beside it: what one keeps and not the other."
)
@click.option("--html", metavar="FILE", help="Write them to this page, with conversations of the set.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.option("--tokenizer", help="Of a dump: the tokenizer to count with; a set is counted already.")
@click.option("--template", help="Of a dump: the prompt template to count in.")
@click.option("--workers", type=click.IntRange(min=1), help="Of a dump: worker processes; all cores if left out.")
def stats(path: str, other: str | None, html: str | None, as_json: bool, **counting: Any) -> None:
    """Show what a curated set or a dump holds.

    The flow from records read to kept, lengths, languages, models, roles, duplicates, repairs, what fits
    a window and what will be trained. SET is a set's folder, curated/ if left out, or anything that
    curate clean reads, measured as it came.

    \b
    Example:
      curate stats english --html english.html
    """
    from curate.display.text import show, to_json

    found = _compared(path, other, html, counting) if other else _measured(path, html, counting)
    if as_json:
        click.echo(to_json(found))
    elif html:
        click.echo(f"written {html}", err=True)
    else:
        show(_page(found))


def _measured(path: str, html: str | None, counting: dict[str, Any]) -> Stats:
    from curate.api.stats import stats as measure

    return measure(path, html=html, **counting)


def _compared(path: str, other: str, html: str | None, counting: dict[str, Any]) -> Comparison:
    from curate.api.compare import compare

    given = [name for name, value in counting.items() if value is not None]
    if given:
        raise click.UsageError(f"--{given[0]} is for a dump; --compare takes two sets, whose tokens are counted")
    return compare(path, other, html=html)


def _page(result: Stats | Comparison) -> RenderableType:
    from curate.analysis.stats import Stats
    from curate.report.terminal.compare import render_comparison
    from curate.report.terminal.stats import render_stats

    return render_stats(result) if isinstance(result, Stats) else render_comparison(result)
