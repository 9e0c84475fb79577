"""`curate doctor`: check this machine."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check this machine and suggest what to install.

    Reports versions, cores, memory, disk, GPU and driver, tokenizers and extras. Changes nothing and uses
    no network.

    \b
    Example:
      curate doctor --json
    """
    from curate.analysis.doctor import doctor as check
    from curate.cli.progress.stages import show_stages
    from curate.display.text import show, to_json

    with show_stages("checking"):
        report = check()
    if as_json:
        click.echo(to_json(report))
        return
    from curate.report.terminal.doctor import render_doctor

    show(render_doctor(report))
