"""Families of guard models: how each is asked, and how its verdict is read. One TOML file for each."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from curate.errors import ModelError, did_you_mean
from curate.settings import decode_json

OWN = "own"  # the prompt is the model's own chat template
QUESTION = "question"  # the prompt is a question in the model's own prompt format


@dataclass(frozen=True)
class Family:
    """One family of guards.

    `models` is a pattern of their names. A verdict is `lead` (or the entry of `leads` for the prompt's end), then
    `safe`, `unsafe` or one of `others`; after `unsafe` come `between` and a category. Those are `names`, or codes that
    the pattern `codes` finds in the prompt with their names. `prompt` and `answer` are the questions of a family that
    has no prompt of its own.
    """

    models: str
    template: str
    safe: str
    unsafe: str
    others: tuple[str, ...] = ()
    lead: str = ""
    leads: dict[str, str] = field(default_factory=dict)
    between: str = ""
    names: tuple[str, ...] = ()
    codes: str = ""
    prompt: str = ""
    answer: str = ""
    access: str = ""

    def lead_after(self, prompt: str) -> str:
        """Return what the model writes before its verdict."""
        return next((lead for end, lead in self.leads.items() if prompt.rstrip(" ").endswith(end)), self.lead)

    def categories(self, prompt: str) -> dict[str, str]:
        """Return the categories that a prompt names: what the model writes for each, and its name."""
        if self.codes:
            return dict(re.findall(self.codes, prompt, re.MULTILINE))
        return {name: name for name in self.names if name in prompt}


@cache
def families() -> dict[str, Family]:
    """Return the families by name."""
    files = sorted(resources.files(__package__).iterdir(), key=lambda file: file.name)
    texts = {file.name.removesuffix(".toml"): file.read_text("utf-8") for file in files if file.name.endswith(".toml")}
    return {name: decode_json(Family, tomllib.loads(text)) for name, text in texts.items()}


def choose_family(model: str, names: Sequence[str], wanted: str | None) -> tuple[str, Family]:
    """Return a guard's family with its name: the one that is `wanted`, or by one of the model's names.

    Raises ModelError, with what to type, for an unknown one.
    """
    known = families()
    if wanted is not None:
        if wanted not in known:
            raise ModelError(f"unknown guard {wanted!r}{did_you_mean(wanted, known)}; give one of {', '.join(known)}")
        return wanted, known[wanted]
    for name, family in known.items():
        if family.models and any(re.search(family.models, each, re.IGNORECASE) for each in names):
            return name, family
    raise ModelError(
        f"{model!r} is no guard by its name; say how it is asked: --guard {'|'.join(known)} "
        "(yes-no suits any chat model)"
    )
