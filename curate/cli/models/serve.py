"""`curate serve`: serve models over HTTP with OpenAI's API."""

from __future__ import annotations

import os

import click

from curate.model.choices import DTYPES

TOKEN = "CURATE_SERVE_TOKEN"


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; another needs a token.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--token-env", default=TOKEN, show_default=True, metavar="NAME", help="Environment variable with the token."
)
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
@click.option("--base", help="Base to use instead of the adapter's: a folder or Hub name.")
@click.option("--other-base", is_flag=True, help="Accept a base that the adapter was not trained on.")
@click.option(
    "--4bit/--no-4bit", "quantise", default=None, help="Load the weights in 4 bits.  [default: as in training]"
)
@click.option("--dtype", type=click.Choice(["auto", *DTYPES]), default="auto", help="Number type to compute in.")
@click.option("--device", default="auto", help="Device: auto, cpu or cuda.")
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
