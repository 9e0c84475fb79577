"""`curate judge`: let a model judge answers."""

from __future__ import annotations

import os
from typing import Any

import click

from curate.cli.options import POSITIVE, request_options


@click.command()
@click.argument("answers", metavar="FILE...", nargs=-1, required=True)
@click.option("--server", required=True, metavar="URL", help="OpenAI-compatible server of the judge.")
@click.option("--model", required=True, metavar="NAME", help="The judge's name there.")
@click.option("--key-env", default="OPENAI_API_KEY", show_default=True, metavar="NAME", help="Variable with the key.")
@click.option(
    "-o", "--output", "--out", "out", default="judged", show_default=True, metavar="FOLDER", help="For all files."
)
@click.option("--single", is_flag=True, help="Rate the answers of several files by themselves, in place of comparing.")
@click.option("--references", metavar="FILE", help="Reference answers to some or all of the prompts.")
@click.option("--repeats", type=POSITIVE, default=1, show_default=True, help="Judgements of each answer or order.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Of the judge.  [default: 0, or 0.7 with repeats]")
@click.option("--reply-tokens", type=POSITIVE, default=1024, show_default=True, help="Most in a reply.")
@request_options
@click.option("--fresh", is_flag=True, help="Begin again, without the replies of earlier runs.")
@click.option("--dry-run", is_flag=True, help="Print how much would be asked, and ask nothing.")
@click.option("--run", "attached", metavar="NAME=RUN", help="Show the figures of this model on its run's page too.")
@click.option("--quiet", "-q", is_flag=True, help="Print figures only.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def judge(
    answers: tuple[str, ...],
    out: str,
    key_env: str,
    attached: str | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Let a model rate answers, or compare those of models.

    FILE has chats, or {instruction, output} for each prompt; NAME=FILE names the model. One file is rated from 1
    to 10. Of several, the first is the baseline that the others are compared with, in both orders.

    A run that was stopped or killed continues where it was: type the same command.

    \b
    Example:
      curate judge base=base.jsonl tuned=tuned.jsonl --server http://localhost:8000 --model NAME
    """
    import curate
    from curate.api import attach
    from curate.display.text import show, to_json

    model = None if attached is None else attach.read_run(attached)  # before anything is asked
    report = curate.judge(
        answers,
        out,
        key=os.environ.get(key_env) or None,
        say=lambda text: None if quiet or as_json else click.echo(text, err=True),
        **settings,
    )
    if report is not None and model is not None:
        click.echo(f"written to {attach.attach_judgements(model, report)}", err=True)
    if report is not None and as_json:
        click.echo(to_json(report))
    elif report is not None:
        from curate.report.terminal.judge import render_judgements

        show(render_judgements(report))
