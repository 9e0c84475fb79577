"""`curate identity`: write questions on the model's identity, with answers."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.option("--name", required=True, metavar="NAME", help="Name of your model.")
@click.option("--organisation", default="", metavar="NAME", help="Who trained it.")
@click.option(
    "--template", metavar="FILE", help="Questions and answers of your own (TOML).  [default: eight languages]"
)
@click.option(
    "-o",
    "--output",
    "--out",
    "target",
    default="identity.jsonl",
    metavar="FILE",
    help="File to write.  [default: identity.jsonl]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the count as JSON.")
def identity(as_json: bool, **settings: Any) -> None:
    """Write questions on who your model is, with answers.

    curate finetune trains on them with --identity, beside the set and never
    held out. The file is JSONL: read it, and change what you like.

    \b
    Example:
      curate identity --name Heron --organisation Riverside
    """
    from curate.api.identity import identity as run
    from curate.display.figures import plural
    from curate.display.text import one_line

    result = run(**settings)
    if as_json:
        plain = {"target": str(result.target), "conversations": result.conversations, "left_out": list(result.left_out)}
        click.echo(json.dumps(plain, indent=1, ensure_ascii=False))
    count = result.conversations
    lines = [f"{result.target}: {count:,} {plural(count, 'conversation')}"]
    lines += [f"left out, since it has the name: {question}" for question in result.left_out]
    lines.append(f"to train on them: curate finetune --identity {result.target}")
    for line in lines:
        click.echo(one_line(line, 1000), err=True)
