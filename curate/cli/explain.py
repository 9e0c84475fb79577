"""`curate explain`: one record's way through."""

from __future__ import annotations

import click


@click.command()
@click.argument("record_id", metavar="ID")
@click.option(
    "--set", "set_path", default="curated", show_default=True, metavar="SET", help="The curated set's folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def explain(record_id: str, set_path: str, as_json: bool) -> None:
    """Tell one record's way through a set.

    Where it came from, its repairs before and after, what rejected it, its twin and its pieces.
    ID is an id of the set, the dump's own id, or FILE:INDEX, the place in the input, from 0.

    \b
    Example:
      curate explain dump.json:17 --set english
    """
    from curate.analysis.explain import explain as look_up
    from curate.display.text import show, to_json

    found = look_up(record_id, set_path)
    if as_json:
        click.echo(to_json(found))
        return
    from curate.report.terminal.explain import render_explanation

    show(render_explanation(found))
