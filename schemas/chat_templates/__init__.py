"""Built-in templates that are Jinja programs: they write definitions of tools and calls, which data cannot say.

They have names of their own beside those of `prompts.TEMPLATES`, and are for training and serving: `clean` counts with
the others, as Jinja is an extra, and slower.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from curate.schemas.prompts import LLAMA3, TEMPLATES, check_needs


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template in a file of this folder. `stop` ends answers; `clean` counts with the template `like`."""

    name: str
    summary: str
    needs: tuple[str, ...]
    stop: str
    like: str

    @cached_property
    def text(self) -> str:
        """The Jinja text."""
        return (Path(__file__).parent / f"{self.name}.jinja").read_text("utf-8")

    def check(self, controls: Collection[str]) -> None:
        """Raise RecipeError unless a tokenizer with these control tokens has all that the template needs."""
        check_needs(self.name, self.needs, controls)


LLAMA3_1 = ChatTemplate(
    "llama3.1",
    'LLaMA-3.1 chat with tools: definitions … {"name": …, "parameters": …}<|eot_id|>, results of role ipython',
    LLAMA3.needs,
    stop="<|eot_id|>",
    like=LLAMA3.name,
)

CHAT_TEMPLATES = {template.name: template for template in (LLAMA3_1,)}
NAMES = (*TEMPLATES, *CHAT_TEMPLATES)  # of all built-in templates
