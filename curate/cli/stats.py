"""`curate stats`: the numbers of a curated set, or of a dump."""

from __future__ import annotations

import click


@click.command()
@click.argument("path", default="curated", metavar="[SET]")
@click.option("--html", metavar="FILE", help="Write them to this page, with conversations of the set.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.option("--tokenizer", help="Of a dump: the tokenizer to count with; a set is counted already.")
@click.option("--template", help="Of a dump: the prompt template to count in.")
@click.option("--workers", type=click.IntRange(min=1), help="Of a dump: worker processes; all cores if left out.")
def stats(
    path: str, html: str | None, as_json: bool, tokenizer: str | None, template: str | None, workers: int | None
) -> None:
    """Show what a curated set or a dump holds.

    The flow from records read to kept, lengths, languages, models, roles, duplicates, repairs, what fits
    a window and what will be trained. SET is a set's folder, curated/ if left out, or anything that
    curate clean reads, measured as it came.

    \b
    Example:
      curate stats english --html english.html
    """
    from curate.stats import stats as measure
    from curate.terminal import show, to_json

    measured = measure(path, tokenizer=tokenizer, template=template, workers=workers, html=html)
    if as_json:
        click.echo(to_json(measured))
        return
    if html:
        click.echo(f"written {html}", err=True)
        return
    from curate.report_stats import stats_page

    show(stats_page(measured))
