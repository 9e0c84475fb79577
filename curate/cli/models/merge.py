"""`curate merge`: merge an adapter into its base model."""

from __future__ import annotations

import click

from curate.cli.options import base_options
from curate.model.choices import DTYPES


@click.command()
@click.argument("adapter")
@click.argument("out", type=click.Path(file_okay=False))
@base_options
@click.option("--dtype", type=click.Choice(["auto", *DTYPES]), default="auto", help="Number type of OUT.")
@click.option("--device", default="auto", help="Where to merge: auto, cpu, cuda.")
def merge(adapter: str, out: str, base: str | None, other_base: bool, dtype: str, device: str) -> None:
    """Merge an adapter into its base model.

    ADAPTER is a folder, a run of curate finetune, or a Hub name; OUT is a new folder. The merged model is
    kept only if its logits match those of base and adapter. A QLoRA adapter is merged into the base as it
    was during training: quantised to 4 bits, then dequantised.

    \b
    Example:
      curate merge runs/first my-model
    """
    import curate
    from curate.cli.progress.stages import show_stages
    from curate.display.figures import percent

    with show_stages("merging"):
        merged = curate.merge(
            adapter,
            out,
            base=base,
            other_base=other_base,
            dtype=dtype,
            device=device,
            say=lambda text: click.echo(text, err=True),
        )
    difference, effect = percent(merged.difference, digits=2), percent(merged.effect, digits=2)
    for name, value in (
        ("merged", f"{merged.method} adapter {adapter} into {merged.base}"),
        ("wrote", f"{merged.folder} ({merged.dtype})"),
        ("checked", f"logits within {difference} of base and adapter, {percent(merged.tolerance)} allowed"),
        ("adapter", f"changes the base's logits by {effect}"),
        ("next", f"curate chat {merged.folder}"),
    ):
        click.echo(f"{name:<9}{value}")
