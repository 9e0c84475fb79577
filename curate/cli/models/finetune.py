"""`curate finetune`: train a model or an adapter on a curated set."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from curate.model.choices import ATTENTION, DTYPES, METHODS

if TYPE_CHECKING:
    from curate.train.run.log import RunResult

OBJECTIVES = ("sft", "dpo")  # as in `curate.train.config`, which imports more
POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("data", required=False, metavar="[SET]")
@click.option("--model", metavar="NAME", help="Model: a folder, a GGUF file, a Hub name, or tiny (a small new model).")
@click.option("--preset", metavar="NAME|FILE", help="Built-in preset (curate presets) or a .toml file.")
@click.option("--objective", type=click.Choice(OBJECTIVES), help="sft, or dpo on pairs.  [default: sft]")
@click.option("--beta", type=POSITIVE, help="For dpo: how closely to stay to the model before training.")
@click.option("--method", type=click.Choice(list(METHODS)), help="Which parameters to train.")
@click.option(
    "-o",
    "--output",
    "--out",
    "out",
    type=click.Path(),
    metavar="RUN",
    help="Folder to write.  [default: runs/MODEL-METHOD]",
)
@click.option("--epochs", type=POSITIVE, help="Passes over the set.")
@click.option("--max-steps", type=click.IntRange(1), help="Stop after this many steps.")
@click.option("--lr", type=POSITIVE, help="Peak learning rate.")
@click.option("--global-batch", type=click.IntRange(1), help="Pieces per step, over all devices.")
@click.option("--micro-batch", type=click.IntRange(1), help="Rows per forward pass and device.  [default: what fits]")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens in a piece; longer ones are split.")
@click.option("--template", metavar="NAME", help="Prompt template; model: the model's own.")
@click.option("--chat-template", type=click.Path(), metavar="FILE", help="Jinja chat template to use instead.")
@click.option("--loss", metavar="WHICH", help="Train on all answers, last, or roles:assistant,tool.")
@click.option("--identity", metavar="FILE", help="Also train on answers on what the model is (curate identity).")
@click.option("--rank", type=click.IntRange(1), help="Rank of the adapter.")
@click.option("--dtype", type=click.Choice(["auto", *DTYPES]), help="Number type to compute in.")
@click.option("--attention", type=click.Choice(["auto", *ATTENTION]), help="Attention kernel.")
@click.option("--tokenizer", metavar="NAME", help="Tokenizer instead of the model's.")
@click.option("--limit", type=click.IntRange(1), help="Train only on the first conversations.")
@click.option("--seed", type=click.IntRange(0), help="Seed of row order, new weights and dropout.")
@click.option("--init", metavar="RESULT", help="Start from the weights of an adapter, model, run or checkpoint.")
@click.option(
    "--log", type=click.Choice(["tensorboard", "wandb"]), multiple=True, help="Also log metrics there; can be repeated."
)
@click.option(
    "--setting",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting, such as train.compile=off; can be repeated.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Device.  [default: cuda if there is one]")
@click.option("--dry-run", is_flag=True, help="Print the plan and exit; a large set is counted, not proven.")
@click.option("--prove", is_flag=True, help="With --dry-run: prove the loss mask of every piece.")
@click.option(
    "--for",
    "machine",
    metavar="MACHINE",
    help="Print the plan for another machine: h200, '2x RTX 4090', 24GB, cpu:64GB.",
)
@click.option("--resume", is_flag=False, flag_value="", metavar="[RUN]", help="Resume a run, by default the latest.")
@click.option("--quiet", "-q", is_flag=True, help="Print warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan (with --dry-run) or the result as JSON.")
def finetune(
    data: str | None,
    resume: str | None,
    log: tuple[str, ...],
    dry_run: bool,
    prove: bool,
    machine: str | None,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a model on a curated set.

    Before the first step, the loss mask of every piece is verified, and memory, time and disk are
    planned. Ctrl-C saves a checkpoint and exits; --resume continues with exactly the same losses. With
    several GPUs: torchrun --nproc-per-node GPUS -m curate finetune ...

    \b
    Example:
      curate finetune curated --model tiny --out runs/first
    """
    from curate import finetune as run
    from curate.cli.progress.finetune import follow

    resumed: str | bool = True if resume == "" else resume or False
    dry_run = dry_run or machine is not None
    if prove and not dry_run:
        raise click.UsageError("--prove is for --dry-run; a run proves every piece anyway")
    flags |= {"dry_run": dry_run, "prove": prove, "machine": machine}
    with follow(quiet=quiet or as_json, dry_run=dry_run) as tell:
        result = run(data, resume=resumed, log=list(log) or None, on_event=tell, **flags)
    if int(os.environ.get("RANK", "0")) == 0:
        _report(result, quiet, as_json)
    if dry_run:
        result.plan.require_fit()
    if result.signal is not None:
        click.get_current_context().exit(128 + result.signal)


def _report(result: RunResult, quiet: bool, as_json: bool) -> None:
    """Print the plan or the result on stdout."""
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
