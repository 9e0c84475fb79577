"""Reasons to reject a conversation, and signals measured on it: one small function each."""

from __future__ import annotations

import importlib

from .registry import Rule, check, corpus_rule, get, load, reject, rule, rules, signal
from .run import apply, measure

__all__ = [
    "Rule",
    "apply",
    "check",
    "corpus_rule",
    "get",
    "load",
    "measure",
    "reject",
    "rule",
    "rules",
    "signal",
]

BUILT_IN = ("structure", "mentions", "repetition", "language", "duplicates")


def load_built_in() -> None:
    """Import every built-in module, so that its rules are registered."""
    for module in BUILT_IN:
        importlib.import_module(f"{__name__}.{module}")
