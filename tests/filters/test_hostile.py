"""Every rule on every hostile text: none fails, and none takes longer than texts of that size may take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import polars as pl
import pytest

from curate.filters import measure, registry, verdicts
from curate.filters.duplicates import chain_hashes
from curate.filters.minhash.shingles import shingle
from curate.filters.registry import Rule
from curate.filters.repairs import apply_repairs
from curate.pipeline.frames import Draft, Origin, conversations_table, hashed_fields, messages_table
from curate.schemas.conversation import Conversation, Message
from tests.filters.hostile_texts import HOSTILE

MODELS = {"refusal_model", "privacy_model", "misaligned"}  # these need one
OF_GROUPS = {"cap", "prompt_cap"}  # these compare hashes and sizes, and read no text
CHANGES = {"mojibake": "repair", "hidden_characters": "repair", "identity": "repair", "truncated": "repair"}
CHANGES |= {"privacy": "redact", "secrets": "redact"}
FAST, LONG = 3_000, 60_000  # bytes of a text
Calls = Mapping[str, Callable[[], object]]


def chats(texts: Sequence[str]) -> list[Conversation]:
    """Return conversations with each text as prompt and as answer."""
    return [Conversation(None, [Message("user", text), Message("assistant", text)]) for text in texts]


def calls(texts: Sequence[str]) -> Calls:
    """Return what runs each of curate's own rules on the texts, by the rule's name."""
    texts = [text.encode("utf-8", "replace").decode() for text in texts]  # as `clean` repairs them first
    drafts = [Draft(Origin(0, "dump.json", index), b"", chat) for index, chat in enumerate(chats(texts))]
    frame = conversations_table(drafts, messages_table(drafts))
    found: dict[str, Callable[[], object]] = {
        "exact_duplicates": lambda: chain_hashes([hashed_fields(chat) for chat in chats(texts)]),
        "near_duplicates": lambda: shingle(texts),
    }
    for name, rule in _own_rules().items():
        if rule.kind == "signal":
            found[name] = lambda name=name: measure(frame, {name: {}})  # type: ignore[misc]
        elif rule.kind == "filter":
            found[name] = lambda name=name: _judge(frame, name)  # type: ignore[misc]
        change = rule if rule.kind == "repair" else registry.part_of(name)
        if change is not None:
            key = name if rule.kind == "repair" else f"{name}, repair"
            found[key] = lambda change=change: _repair(change, texts)  # type: ignore[misc]
    return found


@cache
def _own_rules() -> Mapping[str, Rule]:
    return {name: rule for name, rule in registry.rules().items() if not rule.is_users and name not in MODELS}


def _judge(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Apply a filter that drops what it finds, with the signals that it reads."""
    known = registry.get(name)
    settings = {**known.settings, **({"action": "drop"} if "action" in known.settings else {})}
    return verdicts.apply(measure(frame, verdicts.needed_signals({name: settings}, {})), {name: settings})


def _repair(rule: Rule, texts: Sequence[str]) -> None:
    settings = dict(rule.settings)
    if "action" in settings:
        settings["action"] = CHANGES.get(rule.of or "", "exchange")
    apply_repairs(chats(texts), [(rule, settings)])


@pytest.fixture(scope="module")
def short() -> Calls:
    return calls([make(FAST) for make in HOSTILE.values()])


def test_every_rule_is_tried_on_at_least_30_texts(short: Calls) -> None:
    assert len(HOSTILE) >= 30
    assert {name.removesuffix(", repair") for name in short} == set(_own_rules()) - OF_GROUPS


def test_no_rule_fails_on_hostile_texts(short: Calls) -> None:
    for call in short.values():
        call()


@pytest.mark.slow
@pytest.mark.parametrize("shape", HOSTILE)
def test_no_rule_takes_longer_than_its_text_may(shape: str) -> None:
    """At this size a step that is quadratic takes minutes, and all rules together a few tenths of a second."""
    for call in calls([HOSTILE[shape](LONG)]).values():
        call()
