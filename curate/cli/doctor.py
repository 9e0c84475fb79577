"""`curate doctor`: what this machine has."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def doctor(as_json: bool) -> None:
    """Tell what this machine has, and what to type for what is missing.

    Versions, cores, memory, disk, GPU and driver, tokenizers and extras. Nothing is changed and nothing
    is asked of the network.

    \b
    Example:
      curate doctor --json
    """
    from curate.analysis.doctor import doctor as look
    from curate.display.text import show, to_json

    found = look()
    if as_json:
        click.echo(to_json(found))
        return
    from curate.report.terminal.doctor import render_doctor

    show(render_doctor(found))
