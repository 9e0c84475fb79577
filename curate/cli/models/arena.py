"""`curate arena`: collect blind votes on models' answers, and rate the models."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curate.cli.options import address_options
from curate.model.choices import DTYPES

if TYPE_CHECKING:
    from curate.arena.ratings import Ratings
    from curate.arena.votes import VoteCounts

TOKEN, KEY = "CURATE_ARENA_TOKEN", "OPENAI_API_KEY"


@click.command()
@click.argument("sources", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--prompts", type=click.Path(), metavar="FILE", help="Prompts to vote on: text lines, JSON lines or chats."
)
@click.option(
    "--votes", "files", multiple=True, metavar="FILE", help="File of votes; can be repeated.  [default: votes.jsonl]"
)
@click.option("--ratings", "show_ratings", is_flag=True, help="Print the ratings that the votes give.")
@click.option("--style-control", is_flag=True, help="Take out the effect of length, headers, lists and bold text.")
@click.option("--run", "attached", metavar="NAME=RUN", help="With --ratings: show them on this run's page too.")
@click.option("--json", "as_json", is_flag=True, help="Print the ratings as JSON.")
@click.option("--system", default="", metavar="TEXT", help="System prompt for all models.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True, help="Of the answers.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Most in an answer.")
@address_options(8010, TOKEN)
@click.option(
    "--key-env",
    metavar="NAME",
    help=f"Environment variable with the servers' key.  [default: {KEY}, for api.openai.com alone]",
)
@click.option("--dtype", type=click.Choice(["auto", *DTYPES]), default="auto", help="Number type to compute in.")
@click.option("--device", default="auto", help="Device of local models: auto, cpu or cuda.")
def arena(
    sources: tuple[str, ...],
    prompts: str | None,
    files: tuple[str, ...],
    show_ratings: bool,
    style_control: bool,
    attached: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare models blindly, and rate them.

    Serves a page that shows two answers and no names, and keeps the votes. MODEL is a model as in curate chat, a
    server with OpenAI's API (http://localhost:8000/v1#NAME), or a file of answers; NAME=MODEL gives it a name.

    With --ratings, prints Bradley-Terry ratings with 95 % intervals; 400 points are ten wins to one.

    \b
    Example:
      curate arena tuned=runs/first base=./Llama-2-7b-hf
    """
    paths = [Path(file) for file in files or ("votes.jsonl",)]
    if sources and show_ratings:
        raise click.UsageError("give models to vote on, or --ratings for the votes there are, not both")
    if attached is not None and not show_ratings:
        raise click.UsageError("--run belongs to --ratings")
    if sources:
        if len(paths) > 1:
            raise click.UsageError("votes go into one file; give --votes once")
        _serve(sources, paths[0], None if prompts is None else Path(prompts), **options)
    elif show_ratings:
        _print_ratings(paths, style_control, as_json, attached)
    else:
        raise click.UsageError("name two models to vote on, or give --ratings for the votes there are")


def _serve(
    sources: tuple[str, ...],
    votes: Path,
    prompts: Path | None,
    *,
    system: str,
    temperature: float,
    max_new_tokens: int,
    host: str,
    port: int,
    token_env: str,
    key_env: str | None,
    **loading: Any,
) -> None:
    from curate.errors import InputError, MissingExtra

    try:
        from curate.arena.contestants import AskSettings
        from curate.arena.run import serve_arena
        from curate.report.html.conversation import render_markdown
        from curate.serving.access import Address

        token, key = os.environ.get(token_env) or None, os.environ.get(key_env or KEY) or None
        if key_env and key is None:
            raise InputError(f"the environment variable {key_env} is not set; put the servers' key into it")
        serve_arena(
            sources,
            votes,
            Address(host, port, token, token_env),
            render_markdown,
            lambda text: click.echo(text, err=True),
            prompts=prompts,
            settings=AskSettings(temperature, max_new_tokens, system),
            key=key,
            key_for_all=key_env is not None,
            **loading,
        )
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name == "curate":
            raise
        needed = "serve" if name in ("starlette", "uvicorn", "h11", "httpx") else "train"
        raise MissingExtra("curate arena", needed) from error


def _print_ratings(paths: list[Path], style_control: bool, as_json: bool, attached: str | None) -> None:
    from curate.arena import ratings, style, votes
    from curate.display.text import show, to_json

    battles, counts = votes.read_battles(paths, style_control=style_control)
    rated = ratings.rate(battles, features=style.FEATURES)
    if attached is not None:
        from curate.api.attach import attach_ratings, read_run

        click.echo(f"written to {attach_ratings(read_run(attached), rated, style_control=style_control)}", err=True)
    if as_json:
        click.echo(to_json(_plain(rated, counts)))
        return
    from curate.report.terminal.arena import render_ratings

    show(render_ratings(rated, counts))


def _plain(rated: Ratings, counts: VoteCounts) -> dict[str, Any]:
    """Return ratings as JSON values; a bound that does not exist is null."""
    import dataclasses

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    models = [{key: finite(value) for key, value in dataclasses.asdict(each).items()} for each in rated.models]
    return {**dataclasses.asdict(rated), "models": models, "votes": dataclasses.asdict(counts)}
