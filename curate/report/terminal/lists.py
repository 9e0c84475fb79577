"""Lists of filters, recipes, presets and formats in the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def render_filters(rules: Sequence[Any], on: Mapping[str, object]) -> RenderableType:
    """Render registered filters (`registry.Rule`): whether the default recipe uses them, settings, purpose."""
    table = terminal.plain_table()
    table.add_column("filter", no_wrap=True, style="bold")
    table.add_column("default")
    table.add_column("settings", max_width=34)
    table.add_column("description", ratio=1)
    for rule in rules:
        table.add_row(
            terminal.safe_text(rule.name),
            "on" if rule.name in on else "off",
            _settings(rule),
            terminal.safe_text(rule.summary),
        )
    return table


def render_filter(rule: Any, on: bool) -> RenderableType:
    """Render a filter with its full documentation."""
    facts = terminal.label_grid()
    terminal.add_row(facts, "filter", terminal.safe_text(rule.name, "bold"))
    terminal.add_row(facts, "default", "on" if on else "off")
    terminal.add_row(facts, "settings", _settings(rule))
    return Group(facts, Text(), terminal.safe_text(rule.doc))


def _settings(rule: Any) -> Text:
    return terminal.safe_text(", ".join(f"{name} = {_toml(value)}" for name, value in rule.settings.items()))


def _toml(value: object) -> str:
    """Write a setting as a recipe does; JSON's values are TOML's here."""
    return json.dumps(value, ensure_ascii=False)
