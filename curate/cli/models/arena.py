"""`curate arena`: rate models from blind votes on their answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from curate.arena.ratings import Ratings
    from curate.arena.votes import VoteCounts


@click.command()
@click.option(
    "--votes", "files", multiple=True, metavar="FILE", help="File of votes; can be repeated.  [default: votes.jsonl]"
)
@click.option("--ratings", "show_ratings", is_flag=True, help="Print the ratings that the votes give.")
@click.option("--style-control", is_flag=True, help="Take out the effect of length, headers, lists and bold text.")
@click.option("--json", "as_json", is_flag=True, help="Print the ratings as JSON.")
def arena(files: tuple[str, ...], show_ratings: bool, style_control: bool, as_json: bool) -> None:
    """Compare models blindly, and rate them.

    Ratings are Bradley-Terry's, with 95 % intervals; 400 points are ten wins to one.

    \b
    Example:
      curate arena --ratings --style-control
    """
    _print_ratings([Path(file) for file in files or ("votes.jsonl",)], style_control, as_json)


def _print_ratings(paths: list[Path], style_control: bool, as_json: bool) -> None:
    from curate.arena import ratings, style, votes
    from curate.display.text import show, to_json

    battles, counts = votes.read_battles(paths, style_control=style_control)
    rated = ratings.rate(battles, features=style.FEATURES)
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
