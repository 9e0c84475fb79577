"""The account names the right rule: each lost exchange has a row, and `alone` is what a rule does by itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curate
from curate.dataset.curated_set import CuratedSet
from curate.pipeline import recipe
from curate.pipeline.recipe import Recipe
from curate.pipeline.repair_turns import RATE_LIMIT, SWITCHES

Row = dict[str, Any]
Record = dict[str, Any]
WINDOW = 300
LONG = "word " * 400


def turns(*texts: str | tuple[str, Mapping[str, object]]) -> list[Record]:
    """Return alternating turns; a pair has the turn's other keys too."""
    return [
        {"from": ("human", "gpt")[n % 2], "value": text} if isinstance(text, str)
        else {"from": ("human", "gpt")[n % 2], "value": text[0], **text[1]}
        for n, text in enumerate(texts)
    ]  # fmt: skip


EXCHANGES: dict[str, list[Record]] = {
    "short": turns("Hi", "Yo"),
    "good": turns("Name a good tea, please.", "Assam is one, and so is Darjeeling."),
    "empty answer": turns("What do you say to nothing at all?", ""),
    "empty prompt": turns(" ", "You said nothing."),
    "rate limit": turns("Are you still there, or not?", RATE_LIMIT[0]),
    "long": turns("Say the word, again and again.", LONG),
    "long and empty": turns(LONG + LONG, ""),
    "bad": turns("Name a good nut, please.", ("Mud is one, of course.", {"label": False})),
    "picture": turns(("What is on this picture?", {"image": "a.jpg"}), "A blue cup, on a table."),
    "tool": [*turns("What time is it there?"), {"from": "tool", "value": "noon"}],
    "two prompts": [*turns("First of all this."), *turns("Then that too, please.", "Fine, both of them.")],
    "alias": [{"from": "human", "value": "Who are you then?"}, {"from": "bard", "value": "A bard, it seems to me."}],
}
BEFORE = {"": [], "answer first": [{"from": "gpt", "value": "Hello, ask me."}]}
AFTER = {"": [], "prompt last": [{"from": "human", "value": "And one more thing"}]}


def record(name: str, exchanges: Sequence[str], before: str = "", after: str = "", **keys: object) -> Record:
    messages = [*BEFORE[before], *(turn for exchange in exchanges for turn in EXCHANGES[exchange]), *AFTER[after]]
    return {"id": name, "conversations": messages, **keys}


class Runs:
    """Cleans records with recipes of this test."""

    def __init__(self, folder: Path, tokenizer: str) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def __call__(self, records: Sequence[object], **settings: Any) -> CuratedSet:
        dump = self.folder / "dump.json"
        dump.write_text(json.dumps(records), "utf-8")
        target = self.folder / "set"
        curate.clean(dump, target, tokenizer=self.tokenizer, workers=1, force=True, **settings)
        return curate.open_set(target)


@pytest.fixture
def clean(tmp_path: Path, tiny_tokenizer: str) -> Runs:
    return Runs(tmp_path, tiny_tokenizer)


GOOD = record("good", ["good"])


def rows(curated: CuratedSet, *names: str) -> list[tuple[Any, ...]]:
    return curated.rejected().select(*names).collect().rows()


def test_a_record_that_loses_its_exchanges_to_several_rules_has_a_row_for_each(clean: Runs) -> None:
    curated = clean([GOOD, record("x", ["empty answer", "long", "rate limit"])], max_tokens=WINDOW)
    assert rows(curated, "source_id", "scope", "rule", "message_range") == [
        ("x", "record", "too_long", None),
        ("x", "exchange", "empty_answer", [0, 2]),
        ("x", "exchange", "too_long", [2, 4]),
        ("x", "exchange", "rate_limit", [4, 6]),
    ]
    assert [record is not None for (record,) in rows(curated, "record")] == [True, False, False, False]
    counts = curated.manifest.counts
    assert (counts.read, counts.kept, counts.rejected, counts.rejected_exchanges) == (2, 1, 1, 0)
    [history] = curate.explain("x", curated.path).records
    assert [item.rule for item in history.rejections] == ["too_long", "empty_answer", "too_long", "rate_limit"]


CASES: list[tuple[list[str], list[tuple[str, str]]]] = [
    (["empty answer"], [("record", "empty_answer")]),
    (["long"], [("record", "too_long")]),
    (["empty answer", "empty answer"], [("record", "empty_answer")] + [("exchange", "empty_answer")] * 2),
    (["empty answer", "rate limit"], [
        ("record", "rate_limit"), ("exchange", "empty_answer"), ("exchange", "rate_limit")]),
    (["long and empty", "long"], [("record", "empty_answer"), ("exchange", "empty_answer"), ("exchange", "too_long")]),
    (["tool", "picture", "bad"], [
        ("record", "multimodal"), ("exchange", "no_answer"), ("exchange", "multimodal"), ("exchange", "bad_label")]),
    (["rate limit", "short"], [("record", "min_characters"), ("exchange", "rate_limit")]),
    (["rate limit", "good", "long"], [("exchange", "rate_limit"), ("exchange", "too_long")]),
]  # fmt: skip


@pytest.mark.parametrize(("exchanges", "expected"), CASES, ids=[" + ".join(case[0]) for case in CASES])
def test_each_lost_exchange_has_a_row(clean: Runs, exchanges: list[str], expected: list[tuple[str, str]]) -> None:
    other = record("other", ["two prompts"])
    curated = clean([other, record("x", exchanges)], max_tokens=WINDOW)
    assert rows(curated, "scope", "rule") == expected
    assert [raw is not None for (raw,) in rows(curated, "record")] == [n == 0 for n in range(len(expected))]


def test_a_duplicate_keeps_the_rows_of_its_lost_exchanges(clean: Runs) -> None:
    copies = [record(name, ["good", "rate limit", "empty answer"]) for name in "ab"]
    curated = clean([copies[0], "not a record", copies[1], record("c", ["two prompts", "rate limit"])])
    assert rows(curated, "source_index", "scope", "rule") == [
        (0, "exchange", "rate_limit"), (0, "exchange", "empty_answer"), (1, "record", "not_a_record"),
        (2, "record", "exact_duplicates"), (2, "exchange", "rate_limit"), (2, "exchange", "empty_answer"),
        (3, "exchange", "rate_limit"),
    ]  # fmt: skip
    assert [n for n, (raw,) in enumerate(rows(curated, "record")) if raw is not None] == [0, 2, 3, 6]
    counts = curated.manifest.counts
    assert counts.exchanges == {"rate_limit": 2, "empty_answer": 1} and counts.rejected_exchanges == 3
    assert "rate_limit" not in counts.rules


# ---- alone

FILTERS: dict[str, object] = {
    "min_messages": {"minimum": 3},
    "min_characters": {"minimum": 50},
    "plugins": True,
    "exact_duplicates": True,
    "near_duplicates": {"threshold": 0.5},
    "prompt_cap": {"most": 1},
}
REPAIRS: list[dict[str, object]] = [
    {},
    {"single_round": True},
    {"join_turns": False, "rate_limit": "record", "empty_answer": "cut"},
    {"roles": False, "multimodal": "record", "empty_answer": "record"},
    {"leading_answer": False, "trailing_prompt": False, "bad_label": "keep"},
]


def make_recipe(tokenizer: str, repair: Mapping[str, object], window: int, filters: Mapping[str, object]) -> Recipe:
    tokens = {"tokenizer": tokenizer, "max_tokens": window}
    return recipe.from_dict({"repair": {**repair}, "tokens": tokens, "filters": {**filters}})


def run_rules(clean: Runs, records: Sequence[object], used: Recipe) -> tuple[int, Mapping[str, Any]]:
    """Return how many records are rejected, and the counts by rule; a record of no other kind is always kept."""
    counts = clean([*records, SAFE], recipe=used).manifest.counts
    return counts.rejected, counts.rules


SAFE = {
    "id": "safe",
    "system": "Be kept.",
    "conversations": turns("Is this kept by all rules?", "It is, by each of them."),
}


def check_alone(clean: Runs, records: Sequence[object], repair: Mapping[str, object]) -> set[str]:
    """Compare `alone` with runs of each rule by itself, and return the rules that reject a record alone."""
    off = dict(SWITCHES.values())
    used = {rule: name for rule, (name, _) in SWITCHES.items()}
    _, rules = run_rules(clean, records, make_recipe(clean.tokenizer, repair, WINDOW, FILTERS))
    alone = Counter({name: count.alone for name, count in rules.items()})
    bare, always = run_rules(clean, records, make_recipe(clean.tokenizer, {**repair, **off}, 1_000_000, {}))
    expected = Counter({name: count.first for name, count in always.items()})
    for name, value in FILTERS.items():
        rejected, _ = run_rules(
            clean, records, make_recipe(clean.tokenizer, {**repair, **off}, 1_000_000, {name: value})
        )
        expected[name] = rejected - bare
    rejected, _ = run_rules(clean, records, make_recipe(clean.tokenizer, {**repair, **off}, WINDOW, {}))
    expected["too_long"] = rejected - bare
    defaults = recipe.RepairSettings()
    for rule, name in used.items():
        value = repair.get(name, getattr(defaults, name))
        if value != off[name]:
            only = make_recipe(clean.tokenizer, {**repair, **off, name: value}, 1_000_000, {})
            expected[rule] = run_rules(clean, records, only)[0] - bare
    assert alone == expected
    return set(+alone)


KINDS = list(EXCHANGES)


@pytest.mark.parametrize(
    "repair", [REPAIRS[0], *(pytest.param(repair, marks=pytest.mark.slow) for repair in REPAIRS[1:])]
)
def test_alone_is_what_each_rule_rejects_by_itself(clean: Runs, repair: Mapping[str, object]) -> None:
    records: list[object] = [record(f"{a}+{b}", [a, b]) for a, b in product(KINDS, KINDS)]
    records += [record(kind, [kind], before, after) for kind, before, after in product(KINDS, BEFORE, AFTER)]
    records += [record("p", ["good"], plugins=["x"]), record("q", ["rate limit"], plugins=["x"]), {}, None, "text"]
    records += [record("toxic", ["good"], toxic=True), record("tall", ["long", "long"], plugins=["x"])]
    rules = check_alone(clean, records, repair)
    assert {"exact_duplicates", "min_messages", "min_characters", "plugins", "too_long", "empty_answer"} <= rules


RECORDS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(KINDS), max_size=3), st.sampled_from(list(BEFORE)), st.sampled_from(list(AFTER)),
        st.sampled_from([{}, {}, {"plugins": ["x"]}, {"toxic": True}, {"image": "x.jpg"}]),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(RECORDS, st.sampled_from(REPAIRS))
def test_alone_of_any_records(clean: Runs, records: list[Any], repair: Mapping[str, object]) -> None:
    check_alone(clean, [record(str(n), *row[:3], **row[3]) for n, row in enumerate(records)], repair)
