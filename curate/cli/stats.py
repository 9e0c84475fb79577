"""`curate stats`: a curated set's numbers."""

from __future__ import annotations

import click


@click.command()
@click.argument("set_path", default="curated", metavar="[SET]")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def stats(set_path: str, as_json: bool) -> None:
    """Show what a curated set holds.

    The flow from records read to kept, lengths, languages, models and repairs.
    SET is the set's folder, curated/ if left out.

    \b
    Example:
      curate stats english --json
    """
    from curate.report import stats_page, to_json
    from curate.stats import stats as measure

    measured = measure(set_path)
    if as_json:
        click.echo(to_json(measured))
        return
    from curate.terminal import show

    show(stats_page(measured))
