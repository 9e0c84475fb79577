"""`curate evaluate`: benchmarks through lm-eval."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from curate.cli.options import model_options

if TYPE_CHECKING:
    from curate.evaluation.evaluate import EvaluationResult


@click.command()
@click.argument("model", required=False)
@click.option("--tasks", "names", multiple=True, metavar="NAMES", help="Tasks or groups, with commas between them.")
@click.option(
    "--include", multiple=True, metavar="FOLDER", help="Folder with tasks of your own (YAML); can be repeated."
)
@click.option("-o", "--output", "--out", "output", metavar="FOLDER", help="Where to write.  [default: RUN/results]")
@click.option("--shots", type=click.IntRange(0), help="Examples in each prompt.  [default: each task's]")
@click.option("--limit", type=click.IntRange(1), help="Ask only so many items of each task.")
@click.option(
    "--chat-template/--no-chat-template", default=None, help="Ask as chats.  [default: if the model has a template]"
)
@click.option("--multiturn/--no-multiturn", default=True, help="Show examples as turns of a chat.  [default: so]")
@click.option("--template", help="Built-in prompt template instead of the model's.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Items asked together.")
@click.option("--seed", type=click.IntRange(0), default=1234, show_default=True, help="Seed that draws examples.")
@model_options
@click.option("--fresh", is_flag=True, help="Ask finished tasks again.")
@click.option("--compare", "pair", nargs=2, metavar="A B", help="Compare two results: runs or files.")
@click.option("--unlike", is_flag=True, help="Compare results that were asked in different ways.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    model: str | None,
    names: tuple[str, ...],
    pair: tuple[str, str] | None,
    unlike: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Evaluate a model on benchmarks.

    MODEL is as in curate chat. Tasks are those of lm-eval; openllm and leaderboard are the two versions of the Open
    LLM Leaderboard. Beside each score stands that on the items which the run's training set does not hold. Finished
    tasks are kept: the same command continues a run that was stopped. --compare runs/first runs/second puts two
    results side by side.

    \b
    Example:
      curate evaluate runs/first --tasks leaderboard
    """
    if pair:
        _compare(pair, model, unlike, as_json)
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL': the run or model to evaluate.")
    if unlike:
        raise click.UsageError("--unlike belongs to --compare A B.")
    from curate.cli.progress.bars import print_message
    from curate.cli.progress.stages import show_stages

    run = _load()
    tasks = [name for text in names for name in text.split(",") if name]
    with show_stages("evaluating", quiet=as_json):
        result = run(model, tasks, say=print_message, **settings)
    if as_json:
        click.echo(json.dumps(_plain(result), indent=1, ensure_ascii=False))
        return
    from curate.display.text import show
    from curate.report.terminal.evaluation import render_evaluation

    show(render_evaluation(result.evaluation))
    _report(result)


def _load() -> Any:
    from curate.errors import MissingExtra

    try:
        from curate.evaluation.evaluate import evaluate as run
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name == "curate":
            raise
        raise MissingExtra("curate evaluate", "eval") from error
    return run


def _compare(pair: tuple[str, str], model: str | None, unlike: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from curate.display.text import show
    from curate.evaluation.comparison import compare_evaluations
    from curate.report.terminal.evaluation import render_comparison

    if model is not None:
        raise click.UsageError(f"--compare takes two results; leave out {model!r}.")
    compared = compare_evaluations(*pair, unlike=unlike)
    for text in compared.unlike:
        click.echo(f"warning: asked in different ways: {text}", err=True)
    if as_json:
        click.echo(json.dumps(asdict(compared), indent=1, ensure_ascii=False))
    else:
        rows = [
            (each.task, each.shots, each.items, each.one, each.other, each.difference, each.stderr)
            for each in compared.tasks
        ]
        show(render_comparison(compared.one, compared.other, rows))
        if compared.alone:
            click.echo(f"asked of one only: {', '.join(compared.alone)}", err=True)


def _plain(result: EvaluationResult) -> dict[str, object]:
    from dataclasses import asdict

    return {"path": str(result.path), "kept": list(result.kept), **asdict(result.evaluation)}


def _report(result: EvaluationResult) -> None:
    from curate.display.figures import duration, number, plural

    unmatched = sum(task.unmatched for task in result.evaluation.tasks)
    if unmatched:
        click.echo(
            f"{number(unmatched)} {plural(unmatched, 'item')} could not be looked for in the training set, for too few "
            "words; they do not count as clean",
            err=True,
        )
    if result.kept:
        click.echo(f"from an earlier run: {', '.join(result.kept)}", err=True)
    click.echo(f"written to {result.path} in {duration(result.seconds)}", err=True)
