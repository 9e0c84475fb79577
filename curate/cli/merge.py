"""`curate merge`: an adapter and its base made one model."""

from __future__ import annotations

import click

from curate.model.choices import DTYPES


@click.command()
@click.argument("adapter")
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--base", help="Another base than the adapter names: a folder or a Hub name.")
@click.option("--dtype", type=click.Choice(["auto", *DTYPES]), default="auto", help="Numbers of OUT.")
@click.option("--device", default="auto", help="Where to merge: auto, cpu, cuda.")
def merge(adapter: str, out: str, base: str | None, dtype: str, device: str) -> None:
    """Merge an adapter into its base, as one model.

    ADAPTER is a folder, a run of curate finetune, or a Hub name; OUT a folder that does not exist yet. The
    merged model is held against base and adapter before it is kept. What was trained by QLoRA is merged
    into the base as it was then, in 4 bits made whole again.

    \b
    Example:
      curate merge runs/first my-model
    """
    import curate

    made = curate.merge(
        adapter, out, base=base, dtype=dtype, device=device, say=lambda text: click.echo(text, err=True)
    )
    for name, value in (
        ("merged", f"{made.method} adapter {adapter} into {made.base}"),
        ("wrote", f"{made.folder} ({made.dtype})"),
        ("checked", f"logits within {made.difference:.2%} of base and adapter, {made.tolerance:.1%} allowed"),
        ("adapter", f"moves the base's logits by {made.effect:.2%}"),
        ("next", f"curate chat {made.folder}"),
    ):
        click.echo(f"{name:<9}{value}")
