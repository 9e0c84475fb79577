"""Write the table of docs/model-families.md: what curate makes of conversations under each family's chat template.

    python scripts/template_table.py            measure, and bring the page up to date

Each row that is counted was checked: its ids before each answer are those of transformers' `apply_chat_template` at
that answer's own prompt, and its mask is the one that these prompts and the stop token give.
`tests/rendering/test_released_templates.py` compares the page with what it measures.
"""

from __future__ import annotations

import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curate.errors import CurateError
    from tests.support.model_families import Family, Outcome

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/model-families.md"
START, END = "<!-- measured: scripts/template_table.py -->\n", "<!-- end of the table -->"
KINDS = {  # the table's columns, and the conversations of `tests.support.model_families` that they show
    "plain": "plain",
    "system, 2 turns": "system",
    "tools": "tools",
    "tools, 2 questions": "tools turns",
    "reasoning": "reasoning",
    "reasoning, 2 turns": "reasoning turns",
}

Outcomes = Mapping[str, "Outcome"]  # by kind of conversation


def line(family: Family, outcomes: Outcomes) -> str:
    """Return a family's line: for each conversation the rows that it gave, and the rule of what is left out."""
    return f"| {family.title} | {' | '.join(_cell(outcomes[kind]) for kind in KINDS.values())} |\n"


def _cell(outcome: Outcome) -> str:
    rule = f"`{outcome.rule}`" if outcome.rule else ""
    return ", ".join(filter(None, (str(outcome.rows) if outcome.rows or not rule else "", rule)))


def refused_line(family: Family, error: CurateError) -> str:
    """Return the line of a family whose template cannot be used at all."""
    return textwrap.fill(f"- {family.title} cannot be trained with: {error}.", 120, subsequent_indent="  ") + "\n"


def measure() -> Iterator[str]:
    """Yield the lines of the table and of the reasons under it; raises AssertionError where ids or mask differ."""
    from curate.errors import RecipeError
    from curate.rendering.chat_template.renderer import JinjaRenderer
    from tests.support import model_families

    yield f"| chat template | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 1)}\n"
    reasons: dict[str, list[str]] = {}
    refused = []
    with tempfile.TemporaryDirectory() as folder:
        families = model_families.Families(Path(folder))
        for name, family in model_families.FAMILIES.items():
            try:
                renderer = families.renderer(name)
            except RecipeError as error:
                refused.append(refused_line(family, error))
                continue
            assert isinstance(renderer, JinjaRenderer)  # each family is a chat template
            outcomes = {
                kind: model_families.prepare(
                    renderer, model_families.CONVERSATIONS[kind], model_families.checker(renderer)
                )
                for kind in KINDS.values()
            }
            yield line(family, outcomes)
            for outcome in outcomes.values():
                if outcome.rule:
                    titles = reasons.setdefault(f"`{outcome.rule}`, {_any_message(outcome.reason)}", [])
                    titles += [family.title] if family.title not in titles else []
    yield "\nWhat is left out, and why:\n\n"
    for reason, titles in reasons.items():
        yield textwrap.fill(f"- {reason}: {'; '.join(titles)}.", 120, subsequent_indent="  ") + "\n"
    yield from refused


def _any_message(reason: str) -> str:
    return re.sub(r"message \d+", "a message", reason)


def main() -> int:
    """Write the page's table."""
    sys.path.insert(0, str(ROOT))
    page = ROOT / PAGE
    before, _, rest = page.read_text("utf-8").partition(START)
    page.write_text(before + START + "".join(measure()) + END + rest.partition(END)[2], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
