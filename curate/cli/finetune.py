"""`curate finetune`: a curated set and a model in, a tuned model or adapter out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from curate.model.choices import ATTENTION, DTYPES, METHODS

if TYPE_CHECKING:
    from curate.train.run.log import RunResult

POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("data", required=False, metavar="[SET]")
@click.option("--model", metavar="NAME", help="A folder, a name on the Hub, or tiny, which is made on the spot.")
@click.option("--preset", metavar="NAME|FILE", help="Published settings (curate presets), or a .toml file of yours.")
@click.option("--method", type=click.Choice(list(METHODS)), help="Which parameters are trained.")
@click.option("--out", type=click.Path(), metavar="RUN", help="Folder of the run.  [default: runs/MODEL-METHOD]")
@click.option("--epochs", type=POSITIVE, help="Times through the set.")
@click.option("--max-steps", type=click.IntRange(1), help="So many steps, whatever the epochs.")
@click.option("--lr", type=POSITIVE, help="Learning rate at its highest.")
@click.option("--global-batch", type=click.IntRange(1), help="Conversations a step, over all devices.")
@click.option("--micro-batch", type=click.IntRange(1), help="Rows at once on a device; as memory allows if left out.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest piece; longer conversations are split again.")
@click.option("--template", metavar="NAME", help="Prompt template; model takes the model's own.")
@click.option("--chat-template", type=click.Path(), metavar="FILE", help="A Jinja template of your own instead.")
@click.option("--loss", metavar="WHICH", help="What is trained on: all answers, last, or roles:assistant,tool.")
@click.option("--rank", type=click.IntRange(1), help="Rank of an adapter.")
@click.option("--dtype", type=click.Choice(["auto", *DTYPES]), help="Numbers to compute in.")
@click.option("--attention", type=click.Choice(["auto", *ATTENTION]), help="Attention kernel.")
@click.option("--tokenizer", metavar="NAME", help="Another tokenizer than the model's own.")
@click.option("--limit", type=click.IntRange(1), help="Train on the set's first conversations only.")
@click.option("--seed", type=click.IntRange(0), help="Of the order of rows, new weights and dropout.")
@click.option("--init", metavar="RESULT", help="Train on from an adapter, a model, a run or a checkpoint.")
@click.option("--log", type=click.Choice(["tensorboard", "wandb"]), multiple=True, help="Send numbers there too.")
@click.option(
    "--setting", "settings", multiple=True, metavar="KEY=VALUE", help="Any other, such as train.compile=off; repeat."
)
@click.option("--device", "place", type=click.Choice(["cpu", "cuda"]), help="Where to train; CUDA where there is one.")
@click.option("--dry-run", is_flag=True, help="Print the plan and leave.")
@click.option(
    "--resume", is_flag=False, flag_value="", metavar="[RUN]", help="Go on with a run; the latest one if none is named."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress and no summary; warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan (with --dry-run) or the result as JSON.")
def finetune(
    data: str | None,
    resume: str | None,
    log: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a model on a curated set.

    Before the first step every conversation's mask is proven, and memory, time and disk are planned. Ctrl-C
    saves and leaves; --resume goes on with the very same losses. With several GPUs: torchrun --nproc-per-node
    GPUS -m curate finetune ...

    \b
    Example:
      curate finetune curated --model tiny --out runs/first
    """
    from curate import finetune as run
    from curate.cli.finetune_progress import follow

    go_on: str | bool = True if resume == "" else resume or False
    with follow(quiet=quiet or as_json, dry_run=dry_run) as tell:
        result = run(data, resume=go_on, log=list(log) or None, dry_run=dry_run, on_event=tell, **flags)
    if int(os.environ.get("RANK", "0")) == 0:
        _report(result, quiet, as_json)
    if dry_run:
        result.plan.require_fit()
    if result.signal is not None:
        click.get_current_context().exit(128 + result.signal)


def _report(result: RunResult, quiet: bool, as_json: bool) -> None:
    """Print what came of a run on stdout."""
    from curate.display.text import show, to_json

    if as_json:
        click.echo(to_json(result.to_dict()))
    elif quiet:
        return
    elif result.status == "planned":
        from curate.train.report.terminal import render_plan

        show(render_plan(result.plan, result.facts))
    else:
        from curate.train.report.terminal import render_result
        from curate.train.run import records

        show(render_result(result, records.read(result.run)))
