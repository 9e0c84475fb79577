"""How numbers look: a run's summary, a set's statistics and a record's story, as rich renderables and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from curate.explain import Edit, Explanation, Rejection, Story
from curate.stats import Count, Flow, Header, Histogram, Share, Stats, edits, flow
from curate.terminal import HIDDEN, one_line, safe

MB = 1e6
SHARES_SHOWN = 12  # languages, models and repairs on the page; JSON has them all
ESCAPED = {code: f"\\u{code:04x}" for code in (0x7F, *HIDDEN)}


def to_json(value: object) -> str:
    """Return a dataclass or plain values as JSON that is safe to print: what a terminal would obey is escaped."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(plain, indent=1, ensure_ascii=False).translate(ESCAPED)


class Bar:
    """A bar of `share` (0 to 1) of the width that is left to it; ASCII where the output can do no more."""

    def __init__(self, share: float, style: str = "cyan") -> None:
        self.share = min(max(share, 0.0), 1.0)
        self.style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        eighths = round(self.share * options.max_width * 8)
        if self.share and not eighths:
            eighths = 1
        full, rest = divmod(eighths, 8)
        if options.ascii_only:
            text = "#" * (full + (rest >= 4 or (not full and rest > 0)))
        else:
            text = "█" * full + " ▏▎▍▌▋▊▉"[rest].strip()
        yield Segment(text, console.get_style(self.style))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(6, options.max_width), options.max_width)


class Beside:
    """Blocks side by side where the console is wide enough for `least` cells each, else one under another."""

    def __init__(self, blocks: Sequence[RenderableType], least: int = 56) -> None:
        self.blocks = blocks
        self.least = least

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = max(1, min(len(self.blocks), options.max_width // self.least))
        grid = Table.grid(expand=True, padding=(0, 3, 0, 0))
        for _ in range(columns):
            grid.add_column(ratio=1)
        for start in range(0, len(self.blocks), columns):
            if start:
                grid.add_row()
            grid.add_row(*self.blocks[start : start + columns])
        yield grid


def summary(manifest: Mapping[str, Any], *outputs: str) -> RenderableType:
    """Render the end of a run: from records read to conversations kept, then pieces, repairs and time."""
    counts = manifest["counts"]
    facts = _facts()
    _add(facts, "written", _text(", ".join(outputs), "bold"))
    _add(facts, "pieces", _number(counts["pieces"]))
    _add(facts, "tokens", f"{_number(counts['tokens'])} ({_counted_in(manifest)})")
    if counts.get("eval"):
        _add(facts, "held out", f"{_number(counts['eval'])} of {_number(counts['kept'])} conversations, for eval")
    exchanges = counts["rejected_exchanges"]
    if exchanges:
        by_rule = _counted(sorted(counts.get("exchanges", {}).items(), key=lambda item: (-item[1], item[0])))
        text = f"{_number(exchanges)} {_plural(exchanges, 'exchange')} lost from kept records"
        _add(facts, "lost", f"{text}: {by_rule}" if by_rule else text)
    repairs = _counted([(item.name, item.count) for item in edits(manifest)])
    if repairs:
        _add(facts, "repairs", repairs)
    run = manifest.get("run")
    if run:
        workers = f"{run['workers']} {_plural(run['workers'], 'worker')}"
        _add(facts, "time", f"{run['seconds']:,.1f} s, {run['mb_per_s']:,.1f} MB/s, {workers}")
    return Group(_flow_table(flow(manifest), bars=False), Text(), facts)


def _counted(items: Sequence[tuple[str, int]]) -> str:
    return " · ".join(f"{_line(name)} {_number(count)}" for name, count in items)


def stats_page(stats: Stats) -> RenderableType:
    """Render a set's statistics."""
    shares = [
        _shares_block("languages", stats.languages),
        _shares_block("models", stats.models),
        _shares_block("train and eval", stats.splits),
        _counts_block("repairs", stats.edits),
    ]
    return Group(
        _header(stats.header),
        Text(),
        _flow_table(stats.flow, bars=True),
        Text(),
        Beside([_histogram_block(item) for item in stats.histograms]),
        Text(),
        Beside([block for block in shares if block is not None]),
    )


def explanation_page(found: Explanation) -> RenderableType:
    """Render the way of each record that an id names."""
    parts: list[RenderableType] = []
    if found.matches > 1:
        more = f", the first {len(found.records)} here" if found.matches > len(found.records) else ""
        parts += [Text(f"{found.matches} records are named {_line(found.query)}{more}"), Text()]
    for story in found.records:
        parts += [_story(story), Text()]
    return Group(*parts[:-1])


def name_list(names: Mapping[str, str], heading: tuple[str, str]) -> RenderableType:
    """Render names with one line each."""
    table = _table()
    table.add_column(heading[0], no_wrap=True, style="bold")
    table.add_column(heading[1])
    for name, text in names.items():
        table.add_row(_text(name), _text(text))
    return table


def format_list(formats: Sequence[Any]) -> RenderableType:
    """Render the formats (`formats.Format`): whether each is read and written, and what it holds."""
    table = _table()
    table.add_column("format", no_wrap=True, style="bold")
    table.add_column("read")
    table.add_column("written")
    table.add_column("what it holds", ratio=1)
    for one in formats:
        table.add_row(_text(one.name), *("yes" if can else "" for can in (one.reads, one.writes)), _text(one.summary))
    return table


def filter_list(rules: Sequence[Any], on: Mapping[str, object]) -> RenderableType:
    """Render registered filters (`registry.Rule`): whether the default recipe has them on, settings, purpose."""
    table = _table()
    table.add_column("filter", no_wrap=True, style="bold")
    table.add_column("default")
    table.add_column("settings", max_width=34)
    table.add_column("what it does", ratio=1)
    for rule in rules:
        table.add_row(_text(rule.name), "on" if rule.name in on else "off", _settings(rule), _text(rule.summary))
    return table


def filter_page(rule: Any, on: bool) -> RenderableType:
    """Render one filter's documentation in full."""
    facts = _facts()
    _add(facts, "filter", _text(rule.name, "bold"))
    _add(facts, "default", "on" if on else "off")
    _add(facts, "settings", _settings(rule))
    return Group(facts, Text(), _text(rule.doc))


def _settings(rule: Any) -> Text:
    return _text(", ".join(f"{name} = {_toml(value)}" for name, value in rule.settings.items()))


def _toml(value: object) -> str:
    """Write a setting as a recipe does; JSON's values are TOML's here."""
    return json.dumps(value, ensure_ascii=False)


def _header(header: Header) -> RenderableType:
    facts = _facts()
    _add(facts, "set", _text(header.path, "bold"))
    shown = [f"{_line(item.name)} ({item.bytes / MB:,.1f} MB)" for item in header.inputs[:3]]
    more = [f"{len(header.inputs) - 3} more"] if len(header.inputs) > 3 else []
    _add(facts, "from", ", ".join(shown + more))
    _add(facts, "recipe", f"{_line(header.recipe)}, curate {_line(header.version)}")
    _add(
        facts,
        "kept",
        f"{_number(header.kept)} of {_number(header.read)} records ({_percent(header.kept, header.read)})",
    )
    how = f"{_line(header.tokenizer)}, template {_line(header.template)}, window {_number(header.window)}"
    _add(facts, "tokens", f"{_number(header.tokens)} ({how})")
    return facts


def _flow_table(flow: Flow, bars: bool) -> Table:
    table = _table(expand=bars)
    table.add_column("from read to kept", no_wrap=True, max_width=40)
    for heading in ("records", "share", "alone"):
        table.add_column(heading, justify="right", no_wrap=True)
    if bars:
        table.add_column(ratio=1)
    rows: list[tuple[str, int, int | None, str]] = [("read", flow.read, None, "bold")]
    rows += [(f"- {step.rule}", step.first, step.alone, "red") for step in flow.steps]
    rows += [("kept", flow.kept, None, "bold green")]
    for name, count, alone, style in rows:
        cells: list[RenderableType] = [_text(name, "" if style == "red" else style), Text(_number(count), style)]
        cells += [_percent(count, flow.read), "" if alone is None else _number(alone)]
        table.add_row(*cells, *([Bar(_ratio(count, flow.read), style)] if bars else []))
    return table


def _histogram_block(item: Histogram) -> RenderableType:
    table = _table(expand=True)
    table.add_column(item.title, justify="right", no_wrap=True)
    table.add_column("pieces", justify="right", no_wrap=True)
    table.add_column(ratio=1)
    most = max((bin.count for bin in item.bins), default=0)
    for place, bin in enumerate(item.bins):
        last = place == len(item.bins) - 1 and bin.high > bin.low
        span = _number(bin.low) if bin.low == bin.high else f"{_number(bin.low)}-{_number(bin.high)}"
        table.add_row(f"≥ {_number(bin.low)}" if last else span, _number(bin.count), Bar(_ratio(bin.count, most)))
    spread = " · ".join(f"{name} {_number(value)}" for name, value in item.percentiles.items())
    ends = f"mean {item.mean:,.1f} · {_number(item.minimum)} to {_number(item.maximum)}"
    return Group(table, Text(f"{ends}\n{spread}" if item.count else "no pieces", "dim"))


def _shares_block(title: str, shares: Sequence[Share]) -> RenderableType | None:
    total = sum(share.pieces for share in shares)
    rows = [(share.name, share.pieces) for share in shares]
    return _bars_block(title, "pieces", rows, total) if rows else None


def _counts_block(title: str, counts: Sequence[Count]) -> RenderableType | None:
    rows = [(count.name, count.count) for count in counts]
    return _bars_block(title, "times", rows, None) if rows else None


def _bars_block(title: str, unit: str, rows: Sequence[tuple[str, int]], total: int | None) -> RenderableType:
    """Render names with counts and bars; `total` gives each its share."""
    table = _table(expand=True)
    table.add_column(title, no_wrap=True, max_width=28)
    table.add_column(unit, justify="right", no_wrap=True)
    table.add_column("share" if total else "", justify="right", no_wrap=True)
    table.add_column(ratio=1)
    most = max(count for _, count in rows)
    for name, count in rows[:SHARES_SHOWN]:
        table.add_row(_text(name), _number(count), _percent(count, total) if total else "", Bar(_ratio(count, most)))
    more = len(rows) - SHARES_SHOWN
    return Group(table, Text(f"and {_number(more)} more (--json has them all)", "dim")) if more > 0 else table


def _story(story: Story) -> RenderableType:
    facts = _facts()
    _add(facts, "record", _text(f"{story.source_file}:{story.source_index}", "bold"))
    _add(facts, "id", _text(story.source_id) if story.source_id is not None else "none of its own")
    _add(facts, "came out", Text("kept", "bold green") if story.kept else Text("rejected", "bold red"))
    for rejection in story.rejections:
        _add(facts, "lost" if rejection.scope == "exchange" else "why", _rejection(rejection))
    for edit in story.edits:
        _add(facts, "repair", _edit(edit))
    for piece in story.pieces:
        sizes = f"{piece.split}, {piece.turns} messages, {_number(piece.tokens)} tokens"
        sizes += f" ({_number(piece.answer_tokens)} in answers)"
        _add(facts, "piece", Text.assemble(_text(piece.id, "bold"), f"  {sizes}"))
    if story.twins:
        _add(facts, "twins", _text("rejected as duplicates of it: " + ", ".join(story.twins)))
    if story.record is not None:
        _add(facts, "as it came", _text(one_line(story.record, 400), "dim"))
    return facts


def _rejection(rejection: Rejection) -> Text:
    text = Text.assemble((_line(rejection.rule), "bold"), f": {_line(rejection.reason)}")
    if rejection.messages:
        first, last = rejection.messages
        text.append(f" (message {first})" if first == last else f" (messages {first} to {last})")
    if rejection.twin:
        text.append(f"\ntwin kept: {_line(rejection.twin)}")
    if rejection.evidence:
        text.append(f"\n{_line(rejection.evidence)}", "dim")
    return text


def _edit(edit: Edit) -> Text:
    where = "the record" if edit.message is None else f"message {edit.message}"
    times = f", {edit.count} times" if edit.count != 1 else ""
    text = Text.assemble((_line(edit.rule), "bold"), f" in {where}{times}")
    text.append(f"\n- {_line(edit.before)}", "red")
    text.append(f"\n+ {_line(edit.after)}", "green")
    return text


def _table(expand: bool = False) -> Table:
    return Table(box=None, expand=expand, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _facts() -> Table:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    return facts


def _add(facts: Table, name: str, value: RenderableType) -> None:
    facts.add_row(name, Text(value) if isinstance(value, str) else value)


def _text(text: str, style: str = "") -> Text:
    """Return text of a record, a file or a user as it may be printed."""
    return Text(safe(text), style)


def _line(text: str) -> str:
    return one_line(text, 400)


def _counted_in(manifest: Mapping[str, Any]) -> str:
    tokenizer = manifest["tokenizer"]["name"]
    return f"{_line(tokenizer)}, template {_line(manifest['template'])}, window {_number(manifest['window'])}"


def _number(count: int) -> str:
    return f"{count:,}"


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percent(part: int, whole: int) -> str:
    return f"{100 * _ratio(part, whole):.1f} %"
