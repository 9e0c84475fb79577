"""`curate explain`: the history of a record."""

from __future__ import annotations

import click


@click.command()
@click.argument("record_id", metavar="ID")
@click.option(
    "--set", "set_path", default="curated", show_default=True, metavar="SET", help="The curated set's folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(record_id: str, set_path: str, as_json: bool) -> None:
    """Show what happened to one record.

    Shows its source, its repairs with the text before and after, why it was rejected, its twin and its
    pieces. ID is an id of the set, an id of the dump, or FILE:INDEX, the position in the input, from 0.

    \b
    Example:
      curate explain dump.json:17 --set english
    """
    from curate.analysis.explanation import explain as look_up
    from curate.cli.progress.stages import show_stages
    from curate.display.text import show, to_json

    with show_stages("searching"):
        explanation = look_up(record_id, set_path)
    if as_json:
        click.echo(to_json(explanation))
        return
    from curate.report.terminal.explain import render_explanation

    show(render_explanation(explanation))
