"""The terminal report of `curate stats`, for a set or a dump."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from curate.analysis.stats import (
    BenchmarkItem,
    Count,
    Duplicates,
    Flow,
    Header,
    Histogram,
    Share,
    Stats,
    Training,
    WindowFit,
)
from curate.display import terminal
from curate.display.figures import mb, number, percent, plural, ratio
from curate.display.terminal import Bar, NumberTable, Row, SideBySide, safe_line

SHARES_SHOWN = 12  # languages, models and repairs; JSON has them all


def render_stats(stats: Stats) -> RenderableType:
    """Render statistics."""
    unit = "pieces" if stats.header.kind == "set" else "conversations"
    shares = [
        _shares_block("languages", stats.languages, unit),
        _shares_block("models", stats.models, unit),
        _counts_block("roles", stats.roles, "messages"),
        _counts_block("other keys", stats.turn_keys, "messages"),
        _shares_block("train and eval", stats.splits, unit),
        _counts_block("repairs", stats.edits, "times"),
    ]
    blocks: list[RenderableType] = [
        _header(stats.header),
        render_flow(stats.flow, bars=True, kept_label="kept" if stats.header.kind == "set" else "readable"),
        SideBySide([_histogram_block(item) for item in stats.histograms]),
        SideBySide([block for block in shares if block is not None]),
        SideBySide([_duplicates(stats.duplicates), _windows(stats), _training(stats.training)]),
        *([_contamination(stats.contamination)] if stats.contamination else []),
    ]
    return Group(*[part for block in blocks for part in (block, Text())][:-1])


def _header(header: Header) -> RenderableType:
    facts = terminal.label_grid()
    terminal.add_row(facts, header.kind, terminal.safe_text(header.path, "bold"))
    inputs = [f"{safe_line(item.name)} ({mb(item.bytes)} MB)" for item in header.inputs[:3]]
    inputs += [f"{len(header.inputs) - 3} more"] if len(header.inputs) > 3 else []
    terminal.add_row(facts, "from", ", ".join(inputs))
    for text in header.sets:
        terminal.add_row(facts, "made by", terminal.safe_text(text))
    for text in header.scores:
        terminal.add_row(facts, "measured", terminal.safe_text(text))
    recipe = (
        f"{safe_line(header.recipe)}, curate {safe_line(header.version)}" if header.recipe else "none (not cleaned)"
    )
    terminal.add_row(facts, "recipe", recipe)
    verb = "kept" if header.kind == "set" else "readable"
    share = percent(header.kept, header.read)
    terminal.add_row(facts, verb, f"{number(header.kept)} of {number(header.read)} records ({share})")
    method = f"{safe_line(header.tokenizer)}, template {safe_line(header.template)}"
    method += f", window {number(header.window)}" if header.window else ""
    terminal.add_row(facts, "tokens", f"{number(header.tokens)} ({method})")
    trained = f"{number(header.answer_tokens)} tokens ({percent(header.answer_tokens, header.tokens)}), all in answers"
    terminal.add_row(facts, "trained on", trained)
    return facts


def render_flow(flow: Flow, bars: bool, kept_label: str = "kept") -> NumberTable:
    """Render the numbers of records read, rejected by each rule, and kept; `kept_label` labels the last row."""
    lines: list[tuple[str, int, int | None, str]] = [("read", flow.read, None, "bold")]
    lines += [(f"- {step.rule}", step.first, step.alone, "red") for step in flow.steps]
    lines += [(kept_label, flow.kept, None, "bold green")]
    rows = []
    for name, count, alone, style in lines:
        cells = Text(number(count), style), percent(count, flow.read), "" if alone is None else number(alone)
        shown = terminal.safe_text(name, "" if style == "red" else style)
        rows.append(Row(shown, cells, Bar(ratio(count, flow.read), style)))
    headings = ("records", "share", "alone")
    return NumberTable("step", headings, rows, last="" if bars else None, max_name=40)


def _histogram_block(item: Histogram) -> RenderableType:
    rows = []
    most = max((bin.count for bin in item.bins), default=0)
    for index, bin in enumerate(item.bins):
        is_open_ended = index == len(item.bins) - 1 and bin.high > bin.low
        label = number(bin.low) if bin.low == bin.high else f"{number(bin.low)}-{number(bin.high)}"
        figures = f"≥ {number(bin.low)}" if is_open_ended else label, number(bin.count)
        rows.append(Row(Text(), figures, Bar(ratio(bin.count, most))))
    table = NumberTable(None, (item.title, item.unit), rows, last="")
    spread = " · ".join(f"{name} {number(value)}" for name, value in item.percentiles.items())
    ends = f"mean {number(item.mean)} · {number(item.minimum)} to {number(item.maximum)}"
    return Group(table, Text(f"{ends}\n{spread}" if item.count else f"no {item.unit}", "dim"))


def _shares_block(title: str, shares: Sequence[Share], unit: str) -> RenderableType | None:
    total = sum(share.pieces for share in shares)
    return _bars_block(title, unit, [(share.name, share.pieces) for share in shares], total) if shares else None


def _counts_block(title: str, counts: Sequence[Count], unit: str) -> RenderableType | None:
    return _bars_block(title, unit, [(count.name, count.count) for count in counts], None) if counts else None


def _bars_block(title: str, unit: str, rows: Sequence[tuple[str, int]], total: int | None) -> RenderableType:
    """Render names with counts and bars, and with shares if `total` is given."""
    most = max(count for _, count in rows)
    shown = [
        Row(terminal.safe_text(name), (number(count), percent(count, total) if total else ""), Bar(ratio(count, most)))
        for name, count in rows[:SHARES_SHOWN]
    ]
    table = NumberTable(title, (unit, "share" if total else ""), shown, last="")
    more = len(rows) - SHARES_SHOWN
    return Group(table, Text(f"and {number(more)} more (--json has them all)", "dim")) if more > 0 else table


def _contamination(items: Sequence[BenchmarkItem]) -> RenderableType:
    """Render the items of benchmarks that conversations hold, with what they share."""
    rows = [
        Row(
            terminal.safe_text(item.name),
            (number(item.kept), number(item.rejected), percent(item.coverage, 1)),
            terminal.safe_text(safe_line(item.passage or "")),
        )
        for item in items[:SHARES_SHOWN]
    ]
    table = NumberTable("benchmark items", ("kept", "rejected", "covered"), rows, last="passage")
    more = len(items) - SHARES_SHOWN
    return Group(table, Text(f"and {number(more)} more (--json has them all)", "dim")) if more > 0 else table


def _duplicates(duplicates: Duplicates) -> RenderableType:
    facts = _facts_under("duplicates")
    terminal.add_row(facts, "copies", f"{number(duplicates.rejected)} equal another conversation or its beginning")
    if duplicates.most_copied is not None:
        times = f"{number(duplicates.copies)} {plural(duplicates.copies, 'copy', 'copies')}"
        terminal.add_row(facts, "most copied", f"{safe_line(duplicates.most_copied)}, {times}")
    shared = f"{number(duplicates.shared)} {plural(duplicates.shared, 'cluster')} of two or more"
    terminal.add_row(facts, "clusters", f"{number(duplicates.members)} conversations in {shared}")
    if duplicates.example is not None:
        terminal.add_row(
            facts, "largest", f"{number(duplicates.largest)} conversations, such as {safe_line(duplicates.example)}"
        )
    return facts


def _windows(stats: Stats) -> RenderableType:
    facts = _facts_under("window")
    total = stats.histograms[0].count
    for fit in stats.windows:
        terminal.add_row(facts, number(fit.window), f"{_fitting(fit, total)}{_pieces(fit, stats)}")
    return facts


def _fitting(fit: WindowFit, total: int) -> str:
    return f"{percent(fit.conversations, total)} of conversations fit"


def _pieces(fit: WindowFit, stats: Stats) -> str:
    is_set = stats.header.kind == "set"
    return f", {percent(fit.pieces, stats.flow.pieces)} of pieces" if is_set else ""


def _training(training: Training) -> RenderableType:
    facts = _facts_under("default fine-tune")
    terminal.add_row(facts, "one epoch", f"{number(training.tokens)} tokens in {number(training.pieces)} pieces")
    share = percent(training.trained_share)
    terminal.add_row(facts, "trained on", f"{number(training.answer_tokens)} of them ({share})")
    epochs = f"{training.epochs} {plural(training.epochs, 'epoch')}, {number(training.total_tokens)} tokens"
    terminal.add_row(facts, "total", epochs)
    steps = f"{number(training.steps)} of {number(training.global_batch)} pieces"
    terminal.add_row(facts, "steps", steps)
    return facts


def _facts_under(title: str) -> Table:
    table = terminal.plain_table()
    table.add_column(title, style="dim", no_wrap=True)
    table.add_column()
    return table
