"""`curate convert`: write conversations in another format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curate.cli.rendering_options import choice_options

if TYPE_CHECKING:
    from curate.conversion.output import ConvertResult


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--to", required=True, metavar="FORMAT", help="Format to write; curate formats lists them.")
@click.option("--history", is_flag=True, help="For alpaca: write earlier exchanges as history.")
@click.option(
    "--shape", metavar="SHAPE", help="For trl: messages, prompt-completion or preference.  [default: by content]"
)
@click.option("--template", help="For text, rendered: prompt template.  [default: the set's, or vicuna]")
@click.option("--tokenizer", help="For text, rendered: tokenizer.  [default: the set's]")
@click.option("--max-tokens", type=click.IntRange(1), help="For rendered: window.  [default: the set's]")
@click.option("--loss", help="For rendered: train on all answers, last, or roles:assistant,tool.")
@click.option("--chat-template", metavar="FILE", help="For text, rendered: Jinja chat template to use instead.")
@choice_options
@click.option("--where", metavar="SQL", help='Condition on the columns, such as "turns > 4".')
@click.option("--search", metavar="TEXT", help="Text in any message; case is ignored.")
@click.option("--ids", metavar="FILE", help="Ids or FILE:INDEX to write, one on each line of this file.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Write N of them, chosen at random.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of --sample.")
@click.option("--stratify", metavar="COLUMN", help="For --sample: each value, such as a language, has its share.")
@click.option("--split", type=click.Choice(["train", "eval"]), help="Write only this split of a curated set.")
@click.option(
    "--keep", multiple=True, metavar="RULE", help="Write records of a dump with this flaw: bad_label, multimodal."
)
@click.option(
    "--shards", type=click.IntRange(min=1), metavar="N", help="Write N files, such as OUT-00000-of-00008.jsonl."
)
@click.option(
    "--config-for",
    multiple=True,
    metavar="TRAINER",
    help="Also write the settings of llama-factory (dataset_info.json) or axolotl.",
)
@click.option(
    "--push-to-hub", metavar="OWNER/NAME", help="Also upload it to the Hugging Face Hub, as a private data set."
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def convert(source: str, target: str, as_json: bool, **settings: Any) -> None:
    """Write conversations in another format.

    IN is a curated set or a file in any known format; OUT is the file to write. Records that
    the format cannot represent are written to OUT.left-out.jsonl, each with the reason.

    \b
    Example:
      curate convert curated train.json --to vicuna --split train
    """
    from curate.cli.progress.stages import show_stages

    with show_stages("converting"):
        from curate.conversion.convert import convert as run
        from curate.remote.sets import find_set

        source = str(find_set(source))
        result = run(source, target, **settings)
    if as_json:
        click.echo(json.dumps(_plain(result), indent=1))
    _report(source, result)


def _plain(result: ConvertResult) -> dict[str, object]:
    return {
        "target": str(result.target),
        "read": result.read,
        "written": result.written,
        "left_out": dict(result.left_out),
        "not_selected": result.not_selected,
        "edits": dict(result.edits),
        "files": [str(file) for file in result.files],
        "configs": [str(file) for file in result.configs],
        "pushed_to": result.pushed_to,
        "not_held": dict(result.not_held),
        "uploaded_to": result.uploaded_to,
        "left_out_file": str(result.left_out_file) if result.left_out_file else None,
        "warnings": list(result.warnings),
    }


def _report(source: str, result: ConvertResult) -> None:
    """Print on stderr how many pieces of a set, or records of a file, were written and left out."""
    from curate.dataset import manifest
    from curate.display.text import one_line

    unit = "pieces" if manifest.is_set(Path(source)) else "records"
    skipped = f", {result.not_selected:,} not selected" if result.not_selected else ""
    files = f" in {len(result.files)} files" if len(result.files) > 1 else ""
    click.echo(
        one_line(f"{result.target}{files}: {result.written:,} of {result.read:,} {unit}{skipped}", 1000), err=True
    )
    if result.left_out:
        rules = ", ".join(f"{name} {count:,}" for name, count in sorted(result.left_out.items()))
        count = sum(result.left_out.values())
        click.echo(one_line(f"warning: {count:,} left out ({rules}): {result.left_out_file}", 1000), err=True)
    for file in result.configs:
        click.echo(one_line(f"settings {file}", 1000), err=True)
    if result.uploaded_to:
        click.echo(one_line(f"uploaded to {result.uploaded_to}", 1000), err=True)
    if result.pushed_to:
        click.echo(one_line(f"pushed to {result.pushed_to}", 1000), err=True)
    if result.not_held:
        fields = ", ".join(f"{name} of {count:,}" for name, count in sorted(result.not_held.items()))
        click.echo(one_line(f"the format has no place for: {fields} (conversations)", 1000), err=True)
    for warning in result.warnings:
        click.echo(f"warning: {one_line(warning, 1000)}", err=True)
