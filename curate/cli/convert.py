"""`curate convert`: any format in, any out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from curate.conversion.output import ConvertResult


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--to", required=True, metavar="FORMAT", help="What to write; curate formats lists them.")
@click.option("--template", help="For text and rendered: the prompt template; the set's own, or vicuna.")
@click.option("--tokenizer", help="For rendered: whose ids; the set's own. For text: whose control tokens to show.")
@click.option("--max-tokens", type=click.IntRange(1), help="For rendered: the window; the set's own.")
@click.option("--loss", help="For rendered: train on all answers, the last, or roles:assistant,tool.")
@click.option("--chat-template", metavar="FILE", help="For rendered: a Jinja chat template instead.")
@click.option("--split", type=click.Choice(["train", "eval"]), help="Of a curated set, this part only.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of the records as JSON.")
def convert(source: str, target: str, as_json: bool, **settings: Any) -> None:
    """Write conversations in another format.

    IN is a curated set or a file in any known format; OUT is the file to write. A record that OUT
    cannot hold goes to OUT.left-out.jsonl with its reason.

    \b
    Example:
      curate convert curated train.json --to vicuna --split train
    """
    from curate.conversion.convert import convert as run

    result = run(source, target, **settings)
    if as_json:
        click.echo(json.dumps(_plain(result), indent=1))
    _report(result)


def _plain(result: ConvertResult) -> dict[str, object]:
    return {
        "target": str(result.target),
        "read": result.read,
        "written": result.written,
        "left_out": dict(result.left_out),
        "other_split": result.other_split,
        "edits": dict(result.edits),
        "left_out_file": str(result.left_out_file) if result.left_out_file else None,
        "warnings": list(result.warnings),
    }


def _report(result: ConvertResult) -> None:
    """Say on stderr what was written, and what was not."""
    from curate.display.text import one_line

    other = f", {result.other_split:,} of the other split" if result.other_split else ""
    click.echo(one_line(f"{result.target}: {result.written:,} of {result.read:,} records{other}", 1000), err=True)
    if result.left_out:
        rules = ", ".join(f"{name} {count:,}" for name, count in sorted(result.left_out.items()))
        count = sum(result.left_out.values())
        click.echo(one_line(f"warning: {count:,} left out ({rules}): {result.left_out_file}", 1000), err=True)
    for warning in result.warnings:
        click.echo(f"warning: {one_line(warning, 1000)}", err=True)
