"""The judge's figures in the terminal: each with its interval, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from curate.display import terminal
from curate.display.figures import number, percent
from curate.judging.figures import Figure
from curate.judging.results import Counts, JudgeReport, PairResult, SingleResult

NONE = "–"  # in place of a figure that has no interval


def render_judgements(report: JudgeReport) -> RenderableType:
    """Render the figures of a run, what gave none, and what they depend on."""
    parts: list[RenderableType] = []
    if report.single:
        parts.append(_table("model", ("rating", "95 % interval", "prompts"), report.single, _single_rows))
    if report.pairs:
        headings = ("win rate", "95 % interval", "prompts", "won", "lost", "tied")
        parts.append(_table(f"against {report.pairs[0].baseline}", headings, report.pairs, _pair_rows))
    parts.append(_facts(report))
    return Group(*[shown for part in parts for shown in (part, Text())][:-1])


def _table(
    title: str,
    headings: Sequence[str],
    results: Sequence[SingleResult] | Sequence[PairResult],
    rows: Callable[..., list[terminal.Row]],
) -> RenderableType:
    shown = [row for result in results for row in rows(result)]
    return terminal.NumberTable(terminal.safe_line(title), headings, shown, max_name=40)


def _single_rows(result: SingleResult) -> list[terminal.Row]:
    named = [(result.model, result.rating), *((f"  turn {at}", each) for at, each in enumerate(result.by_turn, 1))]
    return [terminal.Row(terminal.safe_text(name), _rating(figure)) for name, figure in named]


def _rating(figure: Figure | None) -> tuple[str, ...]:
    if figure is None:
        return (NONE, NONE, NONE)
    return (f"{figure.mean:.2f}", f"{figure.low:.2f} to {figure.high:.2f}", number(figure.prompts))


def _pair_rows(result: PairResult) -> list[terminal.Row]:
    counts = (number(result.wins), number(result.losses), number(result.ties))
    rows = [terminal.Row(terminal.safe_text(result.model), (*_rate(result.win_rate), *counts))]
    for name, figure in [
        ("  of the same length", result.length_controlled),
        *((f"  turn {at}", each) for at, each in enumerate(result.by_turn, 1)),
    ]:
        rows.append(terminal.Row(Text(name), (*_rate(figure), "", "", "")))
    return rows


def _rate(figure: Figure | None) -> tuple[str, ...]:
    if figure is None:
        return (NONE, NONE, NONE)
    return (percent(figure.mean), f"{percent(figure.low)} to {percent(figure.high)}", number(figure.prompts))


def _facts(report: JudgeReport) -> RenderableType:
    facts = terminal.label_grid()
    names = ", ".join(name for name in report.answered_as if name != report.judge)
    judge = f"{report.judge}{f' (answers as {names})' * bool(names)} at {report.server}"
    terminal.add_row(facts, "judge", terminal.safe_text(judge))
    terminal.add_row(facts, "prompts", f"{report.prompts_hash}, temperature {report.temperature:g}")
    repeats = f"{report.repeats} × both orders" if report.mode == "pair" else f"{report.repeats}"
    terminal.add_row(facts, "repeats", repeats)
    if report.references:
        terminal.add_row(facts, "references", f"{number(report.references)} of {number(report.prompts)} prompts")
    for result in report.pairs:
        terminal.add_row(facts, "flips", terminal.safe_text(_flips(result)))
    results: list[SingleResult | PairResult] = [*report.single, *report.pairs]
    for each in results:
        terminal.add_row(facts, "judged", terminal.safe_text(f"{each.model}: {_counts(each.counts)}"))
    terminal.add_row(facts, "used", f"{number(report.calls)} calls, {number(report.tokens)} tokens")
    for note in report.notes:
        terminal.add_row(facts, "note", terminal.safe_text(note))
    return facts


def _flips(result: PairResult) -> str:
    decided = result.wins + result.losses + result.ties
    text = (
        f"{result.model}: {number(result.flips)} of {number(decided)} pairs changed with the order, and count as ties"
    )
    if result.verdicts:
        text += f"; the first answer was preferred in {percent(result.first_seat, result.verdicts)}"
    return text + (f"; {number(result.undecided)} pairs undecided" if result.undecided else "")


def _counts(counts: Counts) -> str:
    usable = counts.judgements - counts.malformed - counts.failed
    lost = [(counts.malformed, "without one clear verdict"), (counts.failed, "without a reply")]
    return ", ".join(
        [f"{number(usable)} of {number(counts.judgements)}", *(f"{number(n)} {why}" for n, why in lost if n)]
    )
