"""Filters that reject conversations, signals that measure them, and repairs: one small function each."""

from __future__ import annotations

from curate.filters.examples import Examples, chat
from curate.filters.registry import Rule, check, corpus_rule, get, load, reject, repair, rule, rules, signal
from curate.filters.repairs import repair_texts
from curate.filters.verdicts import apply, measure

__all__ = [
    "Examples",
    "Rule",
    "apply",
    "chat",
    "check",
    "corpus_rule",
    "get",
    "load",
    "measure",
    "reject",
    "repair",
    "repair_texts",
    "rule",
    "rules",
    "signal",
]
