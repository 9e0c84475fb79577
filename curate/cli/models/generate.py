"""`curate generate`: make conversations with a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from curate.cli.options import POSITIVE, request_options
from curate.model.choices import DTYPES

if TYPE_CHECKING:
    from curate.generation.generate import GenerateResult

METHODS = ("self-instruct", "evol", "magpie", "answers")  # as in `curate.generation.plan`, which imports more
LANGUAGES = ("en", "de", "fr", "es", "zh")


@click.command()
@click.argument("method", type=click.Choice(METHODS))
@click.option("--server", metavar="URL", help="OpenAI-compatible server.  [default: none; MODEL is local]")
@click.option("--model", required=True, metavar="MODEL", help="The model's name there; or as in curate chat.")
@click.option("--key-env", default="OPENAI_API_KEY", show_default=True, metavar="NAME", help="Variable with the key.")
@click.option(
    "-o",
    "--output",
    "--out",
    "output",
    default="generated.jsonl",
    show_default=True,
    metavar="FILE",
    help="Dump to write.",
)
@click.option("--prompts", type=click.Path(), metavar="FILE", help="Prompts for evol and answers: lines, or records.")
@click.option("--seeds", type=click.Path(), metavar="FILE", help="Tasks to begin self-instruct with.  [default: ours]")
@click.option("--language", "languages", multiple=True, metavar="CODE", help=f"Of our seeds: {', '.join(LANGUAGES)}.")
@click.option("--count", type=POSITIVE, help="Conversations.  [default: 100, or one for each prompt]")
@click.option("--turns", type=POSITIVE, default=1, show_default=True, help="Exchanges in a conversation.")
@click.option("--rounds", type=POSITIVE, default=1, show_default=True, help="Rewritings, one after the other (evol).")
@click.option("--system", default="", metavar="TEXT", help="System prompt of the conversations.")
@click.option("--template", metavar="NAME|FILE|FOLDER", help="The model's prompt template, for magpie.")
@click.option("--temperature", type=click.FloatRange(0, 5), help="Of prompts.  [default: 1.0]")
@click.option("--answer-temperature", type=click.FloatRange(0, 5), default=0.7, show_default=True, help="Of answers.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Of both.")
@click.option("--reply-tokens", type=POSITIVE, help="Most in a reply.  [default: 1024; self-instruct: 3072]")
@click.option(
    "--similarity",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.7,
    show_default=True,
    help="Drop prompts whose ROUGE-L with an earlier one is above this.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of the requests.")
@click.option("--body", default="", metavar="JSON", help="More keys of requests; null takes one out.")
@request_options
@click.option("--dtype", type=click.Choice(["auto", *DTYPES]), default="auto", help="Number type of a local model.")
@click.option("--device", default="auto", help="Device of a local model: auto, cpu or cuda.")
@click.option("--fresh", is_flag=True, help="Begin again; the old journal is set aside.")
@click.option("--dry-run", is_flag=True, help="Print the plan (calls, tokens), and ask nothing.")
@click.option("--quiet", "-q", is_flag=True, help="Print warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def generate(method: str, key_env: str, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Generate conversations with a model.

    METHOD is self-instruct (tasks with answers, as Alpaca's), evol (harder and other prompts made of given
    ones), magpie (prompts that the model itself writes), or answers (to given prompts). The result is a dump
    for curate clean. A run that was stopped or killed continues where it was: type the same command.

    \b
    Example:
      curate generate self-instruct --server http://localhost:8000 --model NAME --max-calls 50
    """
    import curate
    from curate.cli.progress.generate import follow

    key = os.environ.get(key_env) or None if settings["server"] is not None else None
    with follow(quiet=quiet or as_json) as (say, watch):
        result = curate.generate(method, key=key, say=say, watch=watch, **settings)
    _report(result, quiet, as_json)


def _report(result: GenerateResult, quiet: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from curate.display.figures import number, plural
    from curate.display.text import to_json

    if as_json:
        click.echo(to_json({**asdict(result), "output": str(result.output), "dropped_file": str(result.dropped_file)}))
        return
    if result.message:
        click.echo(f"warning: {result.message}", err=True)
    if quiet or result.ended == "planned":
        return
    dropped = sum(result.dropped.values())
    click.echo(
        f"{number(result.accepted)} {plural(result.accepted, 'conversation')} in {result.output}; "
        f"{number(dropped)} dropped, with reasons, in {result.dropped_file}"
    )
    for rule, count in sorted(result.dropped.items(), key=lambda item: -item[1]):
        click.echo(f"  {rule:<14} {number(count)}")
    click.echo(f"{number(result.calls)} {plural(result.calls, 'call')}, {number(result.tokens)} tokens")
