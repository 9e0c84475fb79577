"""Filters that reject conversations, and signals that measure them: one small function each."""

from __future__ import annotations

from curate.filters.registry import Rule, check, corpus_rule, get, load, reject, rule, rules, signal
from curate.filters.verdicts import apply, measure

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
