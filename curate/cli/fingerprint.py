"""`curate fingerprint`: make the fingerprint of a benchmark."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from curate.api.fingerprint import FingerprintResult


@click.command()
@click.argument("source", metavar="FILE")
@click.option("-o", "--output", "--out", "target", metavar="PATH", help="File to write.  [default: NAME.fingerprint]")
@click.option("--name", metavar="NAME", help="Name of the benchmark in reports.  [default: the file's]")
@click.option(
    "--text", multiple=True, metavar="COLUMN", help="Column with the question; can be repeated.  [default: by name]"
)
@click.option(
    "--choices", multiple=True, metavar="COLUMN", help="Column with the choices; can be repeated.  [default: by name]"
)
@click.option("--id", metavar="COLUMN", help="Column with the id.  [default: id, question_id, task_id, or the row]")
@click.option("--with-texts", is_flag=True, help="Keep the texts in the file, to show them in rejects.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def fingerprint(source: str, as_json: bool, **settings: Any) -> None:
    """Make the fingerprint of a benchmark from its questions.

    FILE is JSON, JSONL, CSV or Parquet, or a data set on the Hub (hf:owner/name:config:split).
    A recipe names the file that is written in its filter contamination.

    \b
    Example:
      curate fingerprint questions.jsonl -o mine.fingerprint --text question
    """
    from curate.api.fingerprint import fingerprint as run
    from curate.cli.progress.stages import show_stages

    with show_stages("making the fingerprint"):
        result = run(source, **settings)
    if as_json:
        click.echo(json.dumps(_plain(result), indent=1, ensure_ascii=False))
    _report(result)


def _plain(result: FingerprintResult) -> dict[str, object]:
    return {
        "target": str(result.target),
        "benchmark": result.benchmark,
        "items": result.items,
        "texts": result.texts,
        "bytes": result.bytes,
        "columns": {name: list(columns) for name, columns in result.columns.items()},
        "left_out": dict(result.left_out),
        "warnings": list(result.warnings),
    }


def _report(result: FingerprintResult) -> None:
    """Print on stderr what was written, from which columns, what is left out, and how to use it."""
    from curate.display.figures import plural
    from curate.display.text import one_line

    counts = {"item": result.items, "text": result.texts, "byte": result.bytes}
    lines = [f"{result.target}: {', '.join(f'{count:,} {plural(count, noun)}' for noun, count in counts.items())}"]
    columns = (f"{name} {', '.join(map(repr, names))}" for name, names in result.columns.items() if names)
    lines.append(f"columns: {'; '.join(columns)}")
    lines += [f"left out ({what}): {count:,}" for what, count in result.left_out.items()]
    lines += [f"warning: {warning}" for warning in result.warnings]
    lines.append(f'in a recipe: contamination = {{ benchmarks = ["{result.target}"] }}')
    for line in lines:
        click.echo(one_line(line, 1000), err=True)
