"""Lists of filters, recipes, presets and formats in the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from curate.display import terminal


def name_list(names: Mapping[str, str], heading: tuple[str, str]) -> RenderableType:
    """Render names with one line each."""
    table = terminal.plain()
    table.add_column(heading[0], no_wrap=True, style="bold")
    table.add_column(heading[1])
    for name, text in names.items():
        table.add_row(terminal.text(name), terminal.text(text))
    return table


def format_list(formats: Sequence[Any]) -> RenderableType:
    """Render the formats (`formats.Format`): whether each is read and written, and what it holds."""
    table = terminal.plain()
    table.add_column("format", no_wrap=True, style="bold")
    table.add_column("read")
    table.add_column("written")
    table.add_column("what it holds", ratio=1)
    for one in formats:
        table.add_row(
            terminal.text(one.name),
            *("yes" if can else "" for can in (one.reads, one.writes)),
            terminal.text(one.summary),
        )
    return table


def filter_list(rules: Sequence[Any], on: Mapping[str, object]) -> RenderableType:
    """Render registered filters (`registry.Rule`): whether the default recipe has them on, settings, purpose."""
    table = terminal.plain()
    table.add_column("filter", no_wrap=True, style="bold")
    table.add_column("default")
    table.add_column("settings", max_width=34)
    table.add_column("what it does", ratio=1)
    for rule in rules:
        table.add_row(
            terminal.text(rule.name), "on" if rule.name in on else "off", _settings(rule), terminal.text(rule.summary)
        )
    return table


def filter_page(rule: Any, on: bool) -> RenderableType:
    """Render one filter's documentation in full."""
    facts = terminal.facts()
    terminal.add(facts, "filter", terminal.text(rule.name, "bold"))
    terminal.add(facts, "default", "on" if on else "off")
    terminal.add(facts, "settings", _settings(rule))
    return Group(facts, Text(), terminal.text(rule.doc))


def _settings(rule: Any) -> Text:
    return terminal.text(", ".join(f"{name} = {_toml(value)}" for name, value in rule.settings.items()))


def _toml(value: object) -> str:
    """Write a setting as a recipe does; JSON's values are TOML's here."""
    return json.dumps(value, ensure_ascii=False)
