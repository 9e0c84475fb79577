"""The page of `curate stats`.

Every charted number is in a table too, so that the page is complete without scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap
from typing import Any

from curate.analysis.stats import BenchmarkItem, Count, Histogram, Share, Stats
from curate.display import html_page
from curate.display.figures import mb, number, percent, plural, ratio
from curate.display.html import (
    Cell,
    chart,
    collapsible,
    collapsible_groups,
    definition_list,
    escape,
    footer,
    navigation,
    section,
    table,
)
from curate.report.html import conversation
from curate.report.html.samples import Samples

BARS = 12  # of a chart; its table lists the first `ROWS`
ROWS = 200
SHARE = {"share": percent}


def render(stats: Stats, samples: Samples, name: str = "") -> str:
    """Return the page; `name` is its title, by default the path."""
    title = name or stats.header.path
    parts = [
        ("flow", "Records read, rejected and " + _kept_label(stats), _flow(stats)),
        ("lengths", "Lengths", f'<div class="grid">{"".join(map(_histogram, stats.histograms))}</div>'),
        ("names", "Languages, models, roles, repairs", f'<div class="grid">{_names(stats)}</div>'),
        ("copies", "Duplicates, windows, training", _facts(stats)),
    ]
    if stats.contamination:
        parts.append(("contamination", "Items of benchmarks", _contamination(stats.contamination)))
    room = html_page.bytes_left("".join(body for *_, body in parts))
    parts.append(("samples", "Conversations", _samples(samples, stats.header.kind == "set", room)))
    body = _head(stats, title, parts) + "".join(starmap(section, parts)) + footer(stats.header.version)
    return html_page.document(title, body, _data(stats))


def _data(stats: Stats) -> dict[str, Any]:
    """Return the data that page.js charts."""
    flow = stats.flow
    return {
        "flow": {
            "read": flow.read,
            "kept": flow.kept,
            "label": _kept_label(stats),
            "rejected": flow.rejected,
            "rules": [[step.rule, step.first] for step in flow.steps if step.first],
        },
        "histograms": {
            item.name: {
                "unit": item.unit,
                "bins": [[_bin_label(item, index), bin.count] for index, bin in enumerate(item.bins)],
            }
            for item in stats.histograms
        },
        "bars": {
            **{key: [[share.name, share.pieces] for share in shares[:BARS]] for key, shares in _shares(stats).items()},
            **{key: [[count.name, count.count] for count in counts[:BARS]] for key, counts in _counts(stats).items()},
        },
    }


def _kept_label(stats: Stats) -> str:
    return "kept" if stats.header.kind == "set" else "readable"


def _bin_label(item: Histogram, index: int) -> str:
    bin = item.bins[index]
    if index == len(item.bins) - 1 and bin.high > bin.low:
        return f"≥ {number(bin.low)}"
    return number(bin.low) if bin.low == bin.high else f"{number(bin.low)}–{number(bin.high)}"


def _shares(stats: Stats) -> dict[str, Sequence[Share]]:
    return {"languages": stats.languages, "models": stats.models, "splits": stats.splits}


def _counts(stats: Stats) -> dict[str, Sequence[Count]]:
    return {"roles": stats.roles, "turn_keys": stats.turn_keys, "edits": stats.edits}


# ---- the parts


def _head(stats: Stats, title: str, parts: Sequence[tuple[str, str, str]]) -> str:
    header = stats.header
    inputs = ", ".join(f"{escape(item.name)} ({mb(item.bytes)} MB)" for item in header.inputs[:8])
    inputs += f", {len(header.inputs) - 8} more" if len(header.inputs) > 8 else ""
    window = f", window {number(header.window)}" if header.window else ""
    tiles = [
        (
            number(header.kept),
            f"{_kept_label(stats)} of {number(header.read)} records",
            percent(header.kept, header.read),
        ),
        (number(stats.flow.pieces), "pieces" if header.kind == "set" else "conversations", ""),
        (number(header.tokens), "tokens", ""),
        (number(header.answer_tokens), "tokens trained on", percent(header.answer_tokens, header.tokens)),
    ]
    shown = "".join(
        f"<div><b>{value}</b><span>{name}{f', {share}' if share else ''}</span></div>" for value, name, share in tiles
    )
    source = definition_list(
        (
            ("from", inputs),
            *(("made by", escape(text)) for text in header.sets),
            *(("measured", escape(text)) for text in header.scores),
            (
                "recipe",
                f"{escape(header.recipe)}, curate {escape(header.version)}" if header.recipe else "none (not cleaned)",
            ),
            ("tokenizer", f"{escape(header.tokenizer)}, template {escape(header.template)}{window}"),
        )
    )
    return f'<header><h1>{escape(title)}</h1><div class="tiles">{shown}</div>{source}{navigation(parts)}</header><main>'


def _flow(stats: Stats) -> str:
    flow = stats.flow
    label = (
        f"Of {number(flow.read)} records read, {number(flow.kept)} are {_kept_label(stats)}; the table has each rule."
    )
    rows: list[Sequence[Cell]] = [
        (step.rule, step.first, ratio(step.first, flow.read), "" if step.alone is None else step.alone)
        for step in flow.steps
    ]
    removed = flow.rejected_exchanges
    note = (
        f'<p class="note">{number(removed)} {plural(removed, "exchange")} removed from kept records</p>'
        if removed
        else ""
    )
    rules = table("records by the rule that rejected them", ("rule", "records", "share", "alone"), rows, SHARE)
    height = len([step for step in flow.steps if step.first]) + 2
    return chart("flow", label, max(height, 6)) + rules + note


def _histogram(item: Histogram) -> str:
    if not item.count:
        return ""
    spread = " · ".join(f"{name} {number(value)}" for name, value in item.percentiles.items())
    rows: list[Sequence[Cell]] = [
        (_bin_label(item, index), bin.count, bin.count / item.count) for index, bin in enumerate(item.bins)
    ]
    label = f"{item.title}: mean {number(item.mean)}, {spread}"
    return (
        f"<figure><figcaption>{escape(item.title)}</figcaption>{chart(f'histogram:{item.name}', label)}"
        f'<p class="note">mean {number(item.mean)} · {number(item.minimum)} to {number(item.maximum)}'
        f"<br>{escape(spread)}</p>"
        f"{collapsible('as a table', table(item.title, (item.title, item.unit, 'share'), rows, SHARE))}</figure>"
    )


def _names(stats: Stats) -> str:
    titles = {
        "languages": "languages",
        "models": "models",
        "splits": "train and eval",
        "roles": "roles",
        "turn_keys": "other keys of messages",
        "edits": "repairs",
    }
    blocks = ""
    for key, shares in _shares(stats).items():
        total = sum(share.pieces for share in shares)
        rows: list[Sequence[Cell]] = [
            (share.name, share.pieces, share.pieces / total, share.tokens) for share in shares[:ROWS]
        ]
        unit = "pieces" if stats.header.kind == "set" else "conversations"
        blocks += _bars(
            key, titles[key], len(shares), table(titles[key], ("name", unit, "share", "tokens"), rows, SHARE)
        )
    for key, counts in _counts(stats).items():
        unit = "times" if key == "edits" else "messages"
        rows = [(count.name, count.count) for count in counts[:ROWS]]
        blocks += _bars(key, titles[key], len(counts), table(titles[key], ("name", unit), rows))
    return blocks


def _bars(key: str, title: str, count: int, rows: str) -> str:
    if not count:
        return ""
    drawn = chart(f"bars:{key}", f"{title}, most frequent first; the table has the numbers", min(count, BARS))
    return f"<figure><figcaption>{title}</figcaption>{drawn}{collapsible('as a table', rows)}</figure>"


def _facts(stats: Stats) -> str:
    copies, training = stats.duplicates, stats.training
    largest = (
        f"{number(copies.largest)}, such as {escape(copies.example)}" if copies.example else number(copies.largest)
    )
    most = (
        f"{escape(copies.most_copied)}, {number(copies.copies)} {plural(copies.copies, 'time')}"
        if copies.most_copied
        else ""
    )
    duplicates = definition_list(
        (
            (
                "in clusters of two or more",
                f"{number(copies.members)} conversations, in {number(copies.shared)} clusters",
            ),
            ("largest cluster", largest),
            (
                "rejected as duplicates" if stats.header.kind == "set" else "duplicates",
                number(copies.rejected),
            ),
            ("most copied", most),
        )
    )
    pieces, conversations = stats.flow.pieces, stats.histograms[0].count
    rows: list[Sequence[Cell]] = [
        (number(fit.window), ratio(fit.pieces, pieces), ratio(fit.conversations, conversations))
        for fit in stats.windows
    ]
    windows = table(
        "what fits a window",
        ("tokens", "pieces", "conversations"),
        rows,
        dict.fromkeys(("pieces", "conversations"), percent),
    )
    plan = definition_list(
        (
            ("one epoch", f"{number(training.tokens)} tokens in {number(training.pieces)} pieces"),
            ("trained on", f"{number(training.answer_tokens)} tokens, {percent(training.trained_share)}"),
            (f"{training.epochs} epochs", f"{number(training.total_tokens)} tokens"),
            ("steps", f"{number(training.steps)} of {number(training.global_batch)} pieces"),
        )
    )
    blocks = (f"<h3>Duplicates</h3>{duplicates}", windows, f"<h3>Training</h3>{plan}")
    return f'<div class="grid">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def _contamination(items: Sequence[BenchmarkItem]) -> str:
    rows: list[Sequence[Cell]] = [
        (item.name, item.kept, item.rejected, item.coverage, item.passage, item.text) for item in items[:ROWS]
    ]
    heading = ("item", "kept", "rejected", "covered", "a conversation's passage", "the benchmark's text")
    return table("conversations by the item of a benchmark that they hold", heading, rows, {"covered": percent})


def _samples(samples: Samples, cleaned: bool, room: int) -> str:
    """Return sample conversations, as many as fit in `room` bytes."""
    kept, rejected = ("Kept", "Rejected by") if cleaned else ("Readable", "Unreadable:")
    groups = [(kept, [conversation.render_conversation(view, spans) for view, spans in samples.kept])]
    groups.append(
        (
            "Repaired, before and after",
            [conversation.render_changes(view, changes) for view, changes in samples.repaired],
        )
    )
    groups += [
        (f"{rejected} {escape(rule)}", [conversation.render_conversation(view) for view in views])
        for rule, views in samples.rejected
    ]
    shown = collapsible_groups(groups, room)
    note = "A few of each kind; <code>curate show</code> shows all." if cleaned else "A sample of the first records."
    return f'<p class="note">{note}</p>{shown}' if shown else ""
