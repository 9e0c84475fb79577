"""All rules at once: neither the order of records, nor the borders of parts, nor the workers decide what is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curate
from curate.filters import registry, verdicts
from curate.ingest import decode
from curate.pipeline import run
from curate.pipeline.parts.execution import Execution
from curate.pipeline.recipe import Recipe, from_dict
from tests.pipeline.test_refilter import LONG, WORDS, NoPage, chat, tables

RIVER = (
    "It comes from the hills in the north, runs past three old mills and a school, and turns east where the railway "
    "crosses it. In spring the meadows beside it are under water for a week or two, so nobody builds there. "
)
LOOP = "The same sentence is here again, word for word. " * 12
MORE: list[dict[str, Any]] = [
    chat("no", "How do I open it?", "I'm sorry, but I can't assist with that request.", "And now?", WORDS),
    chat("ai", "What do you like?", f"As an AI language model, I have no taste. {WORDS}"),
    chat("mail", "Whom do I ask?", f"Write to anna.berg@lumen-works.io. {WORDS}"),
    chat("loop", "Say something.", LOOP),
    chat("cut", "Write a function.", f"{WORDS}\n```python\ndef f(x):\n    return (x +"),
    chat("leftover", "Say it.", f"It is so.<|im_end|>\n<|im_start|>user\nAnd {WORDS}"),
    chat("garbled", "Say it.", f"It is cafÃ© and naÃ¯ve. {WORDS}"),
    chat("german", "Nenne bitte einen großen Fluss.", "Der Rhein ist ein sehr großer Fluss in Deutschland und Europa."),
    chat("tulips", "A gardener plants nine rows of seven tulips and gives away ten; how many are left?", "53 tulips."),
    *(chat(f"near{n}", f"Tell me of river {n % 2}.", f"{RIVER}Boats numbered {n} are not allowed.") for n in range(6)),
    *(chat(f"same{n}", "Which is the largest ocean?", "The largest ocean is the Pacific.") for n in range(3)),
    *(chat(f"prompt{n}", "Tell me a tale.", f"Tale {n}. {WORDS[n:]} {'abcdef'[n] * 9} is it.") for n in range(6)),
    chat("long", *LONG),
    chat("begin", *LONG[:4]),
    chat("two", *LONG[:2], "continue", f"{WORDS}Then it ended."),
]
SETTINGS: dict[str, Any] = {
    "contamination": {"benchmarks": ["example"]},
    "languages": {"keep": ["en"]},
    "models": {"unknown": True},
    "privacy": {"action": "redact"},
    "refusals": {"action": "mask"},
    "identity": {"action": "repair", "classes": ["claim", "disclaimer"]},
    "cap": {"cluster": 3, "language": 20},
    "min_messages": {"minimum": 2},
}


@pytest.fixture(scope="module")
def every_rule(tiny_tokenizer: str) -> Recipe:
    """A recipe with all rules on, with settings with which they act."""
    names = registry.rules("filter", "corpus", "repair")
    filters = {name: True for name, rule in names.items() if rule.of is None and not rule.is_users} | SETTINGS
    scored = {column for rule in verdicts.scores(registry.rules("signal")).values() for column in rule.columns}
    for name in [name for name, rule in names.items() if scored & {*verdicts.columns_read(rule, rule.settings)}]:
        del filters[name]  # a model measures what it reads, on a set
    return from_dict({"name": "all", "filters": filters, "tokens": {"tokenizer": tiny_tokenizer, "max_tokens": 400}})


def clean(folder: Path, records: Sequence[dict[str, Any]], recipe: Recipe, files: int, workers: int = 1) -> Path:
    """Clean records from this many files, each of which is a part."""
    dump = folder / "dump"
    dump.mkdir(parents=True)
    for number in range(files):
        lines = [json.dumps(record) for record in records[number::files]]
        (dump / f"{number:02}.jsonl").write_text("\n".join(lines), "utf-8")
    run.clean([dump], folder / "set", recipe, page=NoPage(), execution=Execution(workers=workers))
    return folder / "set"


def contents(path: Path) -> list[str]:
    """Return the messages of all kept pieces, sorted."""
    rows = curate.open_set(path).conversations().select(pl.col("messages"), "tokens", "piece").collect()
    return sorted(map(repr, rows.rows()))


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(random=st.randoms(use_true_random=False), files=st.sampled_from([1, 5]))
def test_the_order_of_records_does_not_decide(
    tmp_path_factory: pytest.TempPathFactory, every_rule: Recipe, random: Any, files: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    shuffled = random.sample(MORE, len(MORE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "BATCH_BYTES", 1)
        first, second = (
            clean(folder / name, records, every_rule, count)
            for name, records, count in (("a", MORE, 1), ("b", shuffled, files))
        )
    assert contents(first) == contents(second)
    rules = [curate.open_set(path).manifest.counts for path in (first, second)]
    assert rules[0].rules == rules[1].rules and len(rules[0].rules) > 6
    assert rules[0].edits == rules[1].edits and {"refusals", "identity", "privacy"} <= rules[0].edits.keys()


@pytest.mark.slow
def test_the_number_of_workers_does_not_decide(
    tmp_path: Path, every_rule: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "BATCH_BYTES", 1)
    one, three = (clean(tmp_path / str(workers), MORE, every_rule, 6, workers) for workers in (1, 3))
    left, right = (tables(curate.open_set(path)) for path in (one, three))
    assert all(left[name].equals(right[name], null_equal=True) for name in left)
    counts = [curate.open_set(path).manifest.counts for path in (one, three)]
    assert counts[0] == counts[1]
