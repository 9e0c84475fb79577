"""Write what votes and judges say of a run's model into the run, for its page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import InputError, did_you_mean
from curate.results import files as results
from curate.results.files import Arena, Estimate, Judge
from curate.train.run import records

if TYPE_CHECKING:
    from curate.arena.ratings import Ratings
    from curate.judging.figures import Figure
    from curate.judging.results import Counts, JudgeReport


@dataclass(frozen=True)
class RunOfModel:
    """A run, and the name that its model has in votes or in a judge's report."""

    name: str
    run: Path


def read_run(text: str) -> RunOfModel:
    """Read NAME=RUN; raises InputError for another form, and for a folder that is no run."""
    name, equals, folder = text.partition("=")
    run = Path(folder)
    if not (name and equals and folder):
        raise InputError(f"--run {text!r} is not NAME=RUN: the model's name, and the folder of its run")
    if not (run / records.FACTS).is_file():
        raise InputError(f"--run: {folder!r} is not a run: it has no {records.FACTS}")
    return RunOfModel(name, run)


def attach_ratings(model: RunOfModel, rated: Ratings, *, style_control: bool) -> Path:
    """Write ratings into a run, and its page again; return the file. Raises InputError for an unknown model."""
    _check_name(model.name, [each.model for each in rated.models])
    rows = (
        Estimate(each.model, each.rating, _finite(each.low), _finite(each.high), each.battles) for each in rated.models
    )
    return _write(model, Arena(model.name, rated.battles, style_control, tuple(rows)))


def attach_judgements(model: RunOfModel, report: JudgeReport) -> Path:
    """Write a judge's figures of one model into its run, and the page again; return the file.

    Raises InputError for a model that was not judged.
    """
    single = {each.model: each for each in report.single}
    pairs = {each.model: each for each in report.pairs}
    _check_name(model.name, [*single, *pairs])
    if model.name in single:
        one = single[model.name]
        figures = [("all", one.rating), *_turns(one.by_turn)]
        return _write(model, _judge(model, report, "", figures, one.counts))
    pair = pairs[model.name]
    figures = [("all", pair.win_rate), ("of the same length", pair.length_controlled), *_turns(pair.by_turn)]
    return _write(model, _judge(model, report, pair.baseline, figures, pair.counts))


def _turns(figures: Iterable[Figure | None]) -> list[tuple[str, Figure | None]]:
    return [(f"turn {number}", figure) for number, figure in enumerate(figures, 1)]


def _judge(
    model: RunOfModel, report: JudgeReport, baseline: str, figures: Iterable[tuple[str, Figure | None]], counts: Counts
) -> Judge:
    rows = (Estimate(name, each.mean, each.low, each.high, each.prompts) for name, each in figures if each is not None)
    lost = counts.malformed + counts.failed
    return Judge(
        model.name, report.judge, report.prompts_hash, report.mode, baseline, report.repeats, tuple(rows), lost
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_name(name: str, known: list[str]) -> None:
    if name not in known:
        raise InputError(f"--run: there is no model {name!r} here{did_you_mean(name, known)}")


def _write(model: RunOfModel, result: Judge | Arena) -> Path:
    from curate.train.report import html

    path = results.write(model.run / results.FOLDER, results.file_name(result), result)
    html.write(model.run)
    return path
