"""`curate serve`: serve models over HTTP with OpenAI's API."""

from __future__ import annotations

import os

import click

from curate.cli.options import address_options, model_options

TOKEN = "CURATE_SERVE_TOKEN"


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@address_options(8000, TOKEN)
@click.option(
    "--allow-origin", "origins", multiple=True, metavar="URL", help="Let scripts of this origin use it (CORS)."
)
@click.option(
    "--batch", "rows", type=click.IntRange(1), default=8, show_default=True, help="Answers generated together."
)
@click.option(
    "--max-waiting", "waiting", type=click.IntRange(0), default=256, show_default=True, help="Answers that may wait."
)
@click.option(
    "--max-new-tokens", "new_tokens", type=click.IntRange(1), default=4096, show_default=True, help="Most in an answer."
)
@click.option("--template", help="Built-in prompt template instead of the model's.")
@model_options
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    token_env: str,
    origins: tuple[str, ...],
    rows: int,
    waiting: int,
    new_tokens: int,
    template: str | None,
    base: str | None,
    other_base: bool,
    quantise: bool | None,
    dtype: str,
    device: str,
) -> None:
    """Serve models with OpenAI's API.

    MODEL is as in curate chat: a run, a model, an adapter, a GGUF file or a Hub name; NAME=MODEL gives it a
    name. Prompts are rendered as in training, and waiting requests are answered together.

    \b
    Example:
      curate serve runs/first --port 8001
    """
    from curate.errors import MissingExtra

    try:
        from curate.serving.access import Address
        from curate.serving.run import serve_models
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name == "curate":
            raise
        raise MissingExtra("curate serve", "serve" if name in ("starlette", "uvicorn", "h11") else "train") from error

    token = os.environ.get(token_env) or None
    serve_models(
        models,
        Address(host, port, token, token_env, origins),
        rows=rows,
        waiting=waiting,
        new_tokens=new_tokens,
        template=template,
        base=base,
        other_base=other_base,
        quantise=quantise,
        dtype=dtype,
        device=device,
        say=lambda text: click.echo(text, err=True),
    )
