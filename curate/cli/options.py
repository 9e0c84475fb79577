"""Groups of options that several commands take: loading a model, asking a server, listening on an address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from curate.model.choices import DTYPES

Command = TypeVar("Command", bound=Callable[..., Any])
POSITIVE = click.IntRange(1)


def add_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds options to a command, in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def base_options(command: Command) -> Command:
    """Add `--base` and `--other-base`: which base an adapter is put on."""
    return add_options(
        click.option("--base", help="Base to use instead of the adapter's: a folder or Hub name."),
        click.option("--other-base", is_flag=True, help="Accept a base that the adapter was not trained on."),
    )(command)


def device_options(command: Command) -> Command:
    """Add `--dtype` and `--device`: how a model computes."""
    return add_options(
        click.option(
            "--dtype", type=click.Choice(["auto", *DTYPES]), default="auto", help="Number type to compute in."
        ),
        click.option("--device", default="auto", help="Device: auto, cpu or cuda."),
    )(command)


def model_options(command: Command) -> Command:
    """Add the options for loading a model: base, 4 bits, number type and device."""
    quantise = click.option(
        "--4bit/--no-4bit", "quantise", default=None, help="Load the weights in 4 bits.  [default: as in training]"
    )
    return add_options(base_options, quantise, device_options)(command)


def request_options(command: Command) -> Command:
    """Add the limits of requests to a server: calls and tokens in all, at a time, attempts, seconds."""
    return add_options(
        click.option("--max-calls", type=POSITIVE, help="Most calls, with repeated ones and earlier runs."),
        click.option("--max-tokens", type=POSITIVE, help="Most tokens, read and written."),
        click.option(
            "--concurrency", type=POSITIVE, default=8, show_default=True, help="Requests under way at a time."
        ),
        click.option("--attempts", type=POSITIVE, default=6, show_default=True, help="For each request."),
        click.option(
            "--timeout", type=click.FloatRange(1), default=600.0, show_default=True, help="Seconds for an attempt."
        ),
    )(command)


def address_options(port: int, token: str) -> Callable[[Command], Command]:
    """Return a decorator that adds `--host`, `--port` and `--token-env`, with these defaults of the last two."""
    return add_options(
        click.option(
            "--host", default="127.0.0.1", show_default=True, help="Address to listen on; another needs a token."
        ),
        click.option(
            "--port", type=click.IntRange(0, 65535), default=port, show_default=True, help="Port; 0 takes a free one."
        ),
        click.option(
            "--token-env", default=token, show_default=True, metavar="NAME", help="Environment variable with the token."
        ),
    )
