"""Lists of rules, recipes, presets and formats in the terminal."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from curate.display import terminal


def render_names(names: Mapping[str, str], heading: tuple[str, str]) -> RenderableType:
    """Render names, each with a one-line description."""
    table = terminal.plain_table()
    table.add_column(heading[0], no_wrap=True, style="bold")
    table.add_column(heading[1])
    for name, text in names.items():
        table.add_row(terminal.safe_text(name), terminal.safe_text(text))
    return table


def render_formats(formats: Sequence[Any]) -> RenderableType:
    """Render the formats (`formats.Format`): whether each can be read and written, and its content."""
    table = terminal.plain_table()
    table.add_column("format", no_wrap=True, style="bold")
    table.add_column("read")
    table.add_column("written")
    table.add_column("content", ratio=1)
    for entry in formats:
        table.add_row(
            terminal.safe_text(entry.name),
            "yes" if entry.reads else "",
            "yes" if entry.writes else "",
            terminal.safe_text(entry.summary),
        )
    return table


def render_filters(rules: Sequence[Any], on: Collection[str]) -> RenderableType:
    """Render registered rules (`registry.Rule`) under the file that defines them: kind, default, purpose."""
    parts: list[RenderableType] = []
    width = max(len(rule.name) for rule in rules)
    by_source = sorted(rules, key=lambda rule: str(rule.source))
    for source, group in itertools.groupby(by_source, key=lambda rule: str(rule.source)):
        parts += terminal.safe_text(source, "dim"), _rules_table(group, on, width), Text()
    return Group(*parts, Text("curate filters NAME shows a rule's settings, and what it drops and keeps"))


def _rules_table(rules: Iterable[Any], on: Collection[str], width: int) -> RenderableType:
    table = terminal.plain_table()
    table.show_header = False
    table.add_column("name", no_wrap=True, style="bold", min_width=width)
    table.add_column("kind", no_wrap=True, min_width=len("signal"))
    table.add_column("default", no_wrap=True, min_width=len("off"))
    table.add_column("description", ratio=1)
    for rule in rules:
        default = "on" if rule.name in on else "off"
        table.add_row(terminal.safe_text(rule.name), rule.kind, default, terminal.safe_text(rule.summary))
    return table


def render_filter(rule: Any, on: bool) -> RenderableType:
    """Render a rule with its full documentation, and what it drops and keeps."""
    facts = terminal.label_grid()
    terminal.add_row(facts, rule.kind, terminal.safe_text(rule.name, "bold"))
    terminal.add_row(facts, "default", "on" if on else "off")
    terminal.add_row(facts, "settings", _settings(rule))
    terminal.add_row(facts, "source", terminal.safe_text(rule.source))
    if rule.columns:
        terminal.add_row(facts, "columns", terminal.safe_text(", ".join(rule.columns)))
    if rule.examples:
        terminal.add_row(facts, "drops", _record(rule.examples.dropped))
        terminal.add_row(facts, "keeps", _record(rule.examples.kept))
    paragraphs = (paragraph.replace("\n", " ") for paragraph in rule.doc.split("\n\n"))
    return Group(facts, Text(), terminal.safe_text("\n\n".join(paragraphs)))


def _record(record: Mapping[str, Any]) -> Text:
    """Return a record of an example: its turns, and its other keys."""
    turns = [f"{turn['role']}: {turn['content']}" for turn in record["messages"]]
    keys = [f"{key}: {_toml(value)}" for key, value in record.items() if key != "messages"]
    return terminal.safe_text("\n".join([*turns, *keys]))


def _settings(rule: Any) -> Text:
    return terminal.safe_text(", ".join(f"{name} = {_toml(value)}" for name, value in rule.settings.items()))


def _toml(value: object) -> str:
    """Write a setting as a recipe does; JSON's values are TOML's here."""
    return json.dumps(value, ensure_ascii=False)
