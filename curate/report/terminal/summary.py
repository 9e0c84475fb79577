"""The summary that `curate clean` prints after a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from curate.analysis.stats import edits, flow
from curate.dataset.manifest import REPORT, Manifest
from curate.display import terminal
from curate.display.figures import number, plural
from curate.report.terminal.stats import render_flow


def render_summary(manifest: Manifest, folder: Path | str, file: Path | None = None) -> RenderableType:
    """Render the summary of a run: records read, rejected and kept, pieces, repairs and time, then what is next.

    `file` is the converted file, if there is one.
    """
    counts = manifest.counts
    facts = terminal.label_grid()
    outputs = [folder] if file is None else [folder, file]
    terminal.add_row(facts, "written", terminal.safe_text(", ".join(map(str, outputs)), "bold"))
    terminal.add_row(facts, "pieces", number(counts.pieces))
    terminal.add_row(facts, "tokens", f"{number(counts.tokens)} ({_counted_in(manifest)})")
    if counts.eval:
        terminal.add_row(
            facts,
            "held out",
            f"{number(counts.eval)} of {number(counts.kept)} conversations",
        )
    exchanges = counts.rejected_exchanges
    if exchanges:
        by_rule = _list_counts(sorted(counts.exchanges.items(), key=lambda item: (-item[1], item[0])))
        text = f"{number(exchanges)} {plural(exchanges, 'exchange')} removed from kept records"
        terminal.add_row(facts, "removed", f"{text}: {by_rule}" if by_rule else text)
    repairs = _list_counts([(item.name, item.count) for item in edits(manifest)])
    if repairs:
        terminal.add_row(facts, "repairs", repairs)
    run = manifest.run
    if run:
        workers = f"{run.workers} {plural(run.workers, 'worker')}"
        terminal.add_row(facts, "time", f"{number(run.seconds)} s, {number(run.mb_per_s)} MB/s, {workers}")
    name = shlex.quote(str(folder))
    terminal.add_row(facts, "page", terminal.safe_text(f"{folder}/{REPORT}"))
    terminal.add_row(facts, "next", terminal.safe_text(f"curate stats {name}\ncurate finetune {name} --model NAME"))
    return Group(render_flow(flow(manifest), bars=False), Text(), facts)


def _list_counts(items: Sequence[tuple[str, int]]) -> str:
    return " · ".join(f"{terminal.safe_line(name)} {number(count)}" for name, count in items)


def _counted_in(manifest: Manifest) -> str:
    template, window = terminal.safe_line(manifest.template), number(manifest.window)
    return f"{terminal.safe_line(manifest.tokenizer.name)}, template {template}, window {window}"
