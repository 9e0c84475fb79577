"""Options of commands that render conversations as a run does: template, tokenizer, and what is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import click

from curate.cli.options import Command, add_options
from curate.rendering.choices import EmptyThink, HiddenTools, Reasoning

_OPTIONS = (
    click.option("--reasoning", type=click.Choice(get_args(Reasoning)), help="Reasoning of answers.  [default: train]"),
    click.option(
        "--empty-think",
        type=click.Choice(get_args(EmptyThink)),
        help="Empty thoughts before answers without reasoning.  [default: all]",
    ),
    click.option(
        "--hidden-tools",
        type=click.Choice(get_args(HiddenTools)),
        help="Rows with calls whose definitions the template does not show.  [default: leave_out]",
    ),
)
CHOICES = ("reasoning", "empty_think", "hidden_tools")


def choice_options(command: Command) -> Command:
    """Add the options of `Choices` to a command."""
    return add_options(*_OPTIONS)(command)


def given(settings: dict[str, Any], *names: str) -> Mapping[str, Any]:
    """Return the settings of these names that were given, and take all of them out."""
    values = {name: settings.pop(name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
