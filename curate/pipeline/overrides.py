"""The settings of `clean` that override a recipe, declared once for the function and the command.

The command line imports this module to list its options, so it imports the standard library only.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypedDict


class Override(NamedTuple):
    """A recipe setting and its option on the command line."""

    key: str  # section and name, such as tokens.max_tokens
    help: str
    flag: str = ""  # by default the setting's name
    metavar: str | None = None
    minimum: int | None = None
    below: int | None = None

    @property
    def turns_off(self) -> bool:
        """Whether the option turns its setting off."""
        return self.flag.startswith("--no-")

    def option(self, name: str) -> str:
        """Return the option of the setting with this name."""
        return self.flag or f"--{name.replace('_', '-')}"


class Overrides(TypedDict, total=False):
    """Values for recipe settings; a value that is missing, None or empty changes nothing."""

    language: Annotated[
        Sequence[str],
        Override("filters.languages.keep", "Keep only these languages: en or en,ko; can be repeated.", metavar="CODE"),
    ]
    max_tokens: Annotated[int | None, Override("tokens.max_tokens", "Most tokens in a piece, as rendered.", minimum=1)]
    template: Annotated[str | None, Override("tokens.template", "Prompt template for counting tokens.")]
    tokenizer: Annotated[str | None, Override("tokens.tokenizer", "Tokenizer: a name, folder, file or Hub name.")]
    eval_fraction: Annotated[
        float | None, Override("eval.fraction", "Share of conversations to hold out.", "--eval", minimum=0, below=1)
    ]
    limit: Annotated[int | None, Override("input.limit", "Stop after this many records.", minimum=1)]
    format: Annotated[
        str | None, Override("input.format", "The only format to read (curate formats).  [default: each record's own]")
    ]
    custom_instructions: Annotated[
        bool | None,
        Override("input.custom_instructions", "Use ChatGPT's custom instructions as system message."),
    ]
    branches: Annotated[
        bool | None, Override("input.branches", "Read every branch of a chat with edits and regenerated answers.")
    ]
    encoding: Annotated[
        str | None,
        Override("input.encoding", "Encoding of text that is not UTF-8, such as gb18030 or cp1252.", metavar="NAME"),
    ]
    columns: Annotated[
        Sequence[str],
        Override(
            "input.columns",
            "Which column or key is what: prompt=question,answer=reply, messages=chat; also system, id, model.",
            metavar="KEY=COLUMN",
        ),
    ]
    filters: Annotated[
        Sequence[str | Path],
        Override("filters.files", "Python file with your own filters, which is run; can be repeated.", metavar="FILE"),
    ]
    originals: Annotated[
        bool | None,
        Override("output.originals", "Do not store the original bytes of changed records.", "--no-originals"),
    ]
    redact_rejects: Annotated[
        bool | None,
        Override("output.redact_rejects", "Replace personal data and secrets in the bytes of rejected records too."),
    ]


def read_declarations() -> dict[str, tuple[object, Override]]:
    """Return the type and declaration of each setting by name, in order."""
    hints = typing.get_type_hints(Overrides, include_extras=True)
    return {name: typing.get_args(hint)[:2] for name, hint in hints.items()}


def command_line(overrides: Mapping[str, object]) -> list[str]:
    """Return the command line's arguments for these settings, without those that change nothing."""
    options: list[str] = []
    for name, (_, override) in read_declarations().items():
        value = overrides.get(name)
        values = value if isinstance(value, list | tuple) else [] if value is None else [value]
        for item in values:
            if not isinstance(item, bool):
                options += [override.option(name), str(item)]
            elif item is not override.turns_off:
                options.append(override.option(name))
    return options
