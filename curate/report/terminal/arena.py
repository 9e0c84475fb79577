"""Ratings of models in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from curate.arena.ratings import Rating, Ratings
from curate.arena.votes import VoteCounts
from curate.display import terminal
from curate.display.figures import number, percent, plural

SHOWN = 5  # lines that could not be used


def render_ratings(ratings: Ratings, counts: VoteCounts) -> RenderableType:
    """Render ratings with their intervals, the effect of style, what was left out, and what the votes cannot tell."""
    headings = ("rating", percent(ratings.level, digits=0) + " interval", "place", "battles", "won")
    parts: list[RenderableType] = [
        terminal.NumberTable("model", headings, [_row(rating) for rating in group], max_name=40)
        for group in _groups(ratings.models)
    ]
    if ratings.style:
        rows = [
            terminal.Row(Text(item.feature), (f"{item.points:+.0f}", f"{item.low:+.0f} to {item.high:+.0f}"))
            for item in ratings.style
        ]
        parts.append(terminal.NumberTable("more of it", ("points", "interval"), rows))
    parts.append(_counts(counts))
    parts += [terminal.safe_text(f"note: {note}") for note in ratings.notes]
    return Group(*[shown for part in parts for shown in (part, Text())][:-1])


def _groups(models: Sequence[Rating]) -> list[list[Rating]]:
    """Return the ratings of each group of models that battles connect."""
    return [[rating for rating in models if rating.group == group] for group in sorted({r.group for r in models})]


def _row(rating: Rating) -> terminal.Row:
    interval = f"{_bound(rating.low)} to {_bound(rating.high)}"
    place = f"{rating.rank_low}" if rating.rank_low == rating.rank_high else f"{rating.rank_low}–{rating.rank_high}"
    won = percent(rating.wins, rating.battles)
    return terminal.Row(
        terminal.safe_text(rating.model, "bold"),
        (f"{rating.rating:.0f}", interval, place, number(rating.battles), won),
    )


def _bound(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "∞" if value > 0 else "−∞"


def _counts(counts: VoteCounts) -> RenderableType:
    facts = terminal.label_grid()
    ties = (
        f", {number(counts.ties)} {plural(counts.ties, 'tie')} or both bad (half a win for each)" if counts.ties else ""
    )
    terminal.add_row(facts, "votes", f"{number(counts.rated)}{ties}")
    if counts.skipped:
        terminal.add_row(facts, "skipped", number(counts.skipped))
    if counts.unusable:
        shown = "\n".join(counts.unusable[:SHOWN])
        more = f"\nand {number(len(counts.unusable) - SHOWN)} more" if len(counts.unusable) > SHOWN else ""
        terminal.add_row(facts, "left out", terminal.safe_text(f"{number(len(counts.unusable))}: {shown}{more}"))
    return facts
