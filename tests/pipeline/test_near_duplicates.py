"""Near duplicates from a dump to the set: what is kept, what is said about the rest, and what is held out together."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import polars as pl
import pytest

import curate
from curate.analysis.explanation import explain
from curate.errors import RecipeError
from curate.ingest import decode
from curate.pipeline import recipe
from curate.pipeline.run import CleanResult
from tests.support.clean_results import kept, rejected

RIVER = "the nile flows north through eleven countries of africa to the sea where it has a wide and fertile delta"


def chat(name: str, *texts: str, system: str = "") -> dict[str, object]:
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"id": name, "messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


class Clean(Protocol):
    def __call__(self, records: Sequence[object], *, exact: bool = True, **settings: object) -> CleanResult: ...


@pytest.fixture
def clean(tmp_path: Path, tiny_tokenizer: str) -> Clean:
    """Return a function that cleans records with `near_duplicates`, and no other filter but exact duplicates."""

    def run(records: Sequence[object], *, exact: bool = True, **settings: object) -> CleanResult:
        (tmp_path / "dump.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
        filters = {"exact_duplicates": exact, "near_duplicates": settings or True}
        tokens = {"tokenizer": tiny_tokenizer, "max_tokens": 100_000}
        used = recipe.from_dict({"filters": filters, "tokens": tokens})
        return curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=used, force=True)

    return run


def test_the_longer_of_two_is_kept_and_the_other_says_why(clean: Clean) -> None:
    longer = chat("b", "Tell me of a river.", f"{RIVER.capitalize()}, all told.")
    result = clean([chat("a", "Tell me of a river.", RIVER), longer, chat("c", "And the Rhine?", "It is shorter.")])
    assert kept(result) == {"b", "c"}
    row = rejected(result)["a"]
    assert row["rule"] == "near_duplicates" and row["twin"] == "b"
    assert row["reason"] == "nearly the same as b (dump.jsonl:1), Jaccard 0.91"
    assert row["evidence"].startswith("both: “Tell me of a river. the nile flows north through")
    assert row["evidence"].endswith("; only here: nothing; only in the twin: all told")
    [explained] = explain("a", result.output).records
    assert explained.rejections[0].twin == "b" and explained.rejections[0].evidence == row["evidence"]
    assert explain("b", result.output).records[0].twins == ("a",)


def test_of_equal_length_the_one_that_trains_more_is_kept(clean: Clean) -> None:
    texts = "Tell me of a river.", RIVER, "Is it long?", "It is, about 6,650 kilometres from its farthest source."
    untrained = chat("a", *texts[:3], f"{texts[3]} Really.")
    untrained["messages"][3]["weight"] = 0  # type: ignore[index]
    assert kept(clean([untrained, chat("b", *texts)])) == {"b"}


def test_systems_and_tools_do_not_count_and_prompts_can_count_alone(clean: Clean) -> None:
    rules = "You are a helpful guide to rivers, lakes and seas, and you answer in one short sentence. " * 5
    rhine = "The Rhine rises in the Alps and flows north through six countries to the sea at Rotterdam."
    records = [chat("a", "Which river?", RIVER, system=rules), chat("b", "Which river?", rhine, system=rules)]
    assert kept(clean(records)) == {"a", "b"}
    question = "Could you please tell me which river of this continent is the longest one of all"
    records = [chat("a", f"{question}?", RIVER), chat("b", f"{question} today?", rhine)]
    assert kept(clean(records)) == {"a", "b"}
    assert kept(clean(records, of="prompts")) == {"b"}


def test_a_copy_of_what_is_dropped_names_what_is_kept(clean: Clean) -> None:
    best = chat("best", "Tell me of a river.", RIVER, "More?", f"No, that is all there is to it, {RIVER} as I said.")
    near = chat("near", "Tell me of a river.", RIVER, "More?", f"No, that is all there is to it, {RIVER}")
    start = chat("start", "Tell me of a river.", RIVER)
    result = clean([start, near, {**near, "id": "copy"}, best])
    assert kept(result) == {"best"}
    rows = rejected(result)
    assert {row["twin"] for row in rows.values()} == {"best"}
    assert rows["copy"]["reason"] == "the same as dump.jsonl:1, which is dropped for best (dump.jsonl:3)"
    assert rows["copy"]["rule"] == rows["start"]["rule"] == "exact_duplicates"
    assert result.manifest.counts.rules["near_duplicates"].alone == 2  # start is a smaller part of the others


def test_equal_conversations_leave_one_and_different_ones_all(clean: Clean) -> None:
    result = clean([chat(str(place), "Tell me of a river.", RIVER) for place in range(120)], exact=False)
    assert len(kept(result)) == 1
    assert result.manifest.counts.rules["near_duplicates"].first == 119
    [warning] = [text for text in result.warnings if "near_duplicates" in text]
    assert warning.startswith("near_duplicates: 119 of 120 conversations are nearly the same as dump.jsonl:0, which is")
    assert "share “Tell me of a river. the nile flows" in warning
    numbers = [" ".join(str(place * 100 + step) for step in range(20)) for place in range(60)]
    result = clean([chat(str(place), text, text) for place, text in enumerate(numbers)])
    assert len(kept(result)) == 60 and not rejected(result)


@pytest.mark.parametrize("size", [120, pytest.param(5000, marks=pytest.mark.slow)])
def test_chats_that_share_a_schema_or_a_greeting_are_kept(clean: Clean, size: int) -> None:
    rng = random.Random(5)
    schema = "".join(f'{{"name": "tool_{n}", "parameters": {{"city": "text", "day": "date"}}}}, ' for n in range(25))
    names = [f"{first}{last}" for first in ("Em", "Jo", "Al", "Ka") for last in ("ily", "hn", "ma", "te")]

    def topic() -> str:
        return " ".join(f"{rng.choice('bdfgklmnprst')}{rng.choice('aeiou')}{rng.randrange(3000)}" for _ in range(4))

    calls = [
        chat(f"call {n}",
             f"You can call these tools: {schema} Answer with a call.\n\nWhat is on in {(place := topic())}?",
             f'{{"name": "tool_{n % 25}", "arguments": {{"city": "{place}"}}}}')
        for n in range(size)
    ]  # fmt: skip
    greetings = [
        chat(f"greeting {n}",
             f"Hey {names[n % 16]}, before you answer think step by step and be brief. What is {(a := topic())}?",
             f"Sure, happy to help with {a}! Here is what you need to know: {topic()} {topic()}. Anything else?")
        for n in range(size)
    ]  # fmt: skip
    result = clean([*calls, *greetings])
    stay = kept(result)
    assert sum(name.startswith("call") for name in stay) >= 0.99 * size
    assert sum(name.startswith("greeting") for name in stay) >= 0.99 * size
    [warning] = [text for text in result.warnings if "near_duplicates" in text]
    assert "conversations are mostly text that many share, such as “You can call these tools" in warning


def test_similar_conversations_are_held_out_together(clean: Clean) -> None:
    texts = [" ".join(f"{place}w{step}" for step in range(40)) for place in range(3)]
    records = [
        chat(f"{place}{end}", f"{end} {text}", f"{text} {end}") for place, text in enumerate(texts) for end in "xy"
    ]
    result = clean(records, action="flag")
    rows = pl.read_parquet(result.output / "conversations.parquet")
    assert rows.height == 6 and not rejected(result)
    clusters = rows.group_by(pl.col("source_id").str.slice(0, 1)).agg(pl.col("cluster").n_unique(), n=pl.len())
    assert clusters.select("cluster", "n").rows() == [(1, 2)] * 3 and rows["cluster"].n_unique() == 3


def test_the_order_of_records_does_not_decide(clean: Clean) -> None:
    rng = random.Random(2)
    records = []
    for place in range(30):
        words = [f"{place}w{rng.randrange(99)}" for _ in range(40)]
        for copy in range(rng.randrange(1, 5)):
            words[rng.randrange(40)] = f"new{copy}"
            records.append(chat(f"{place} {copy}", "Say it.", " ".join(words)))
    first = kept(clean(records, threshold=0.7))
    rng.shuffle(records)
    assert kept(clean(records, threshold=0.7)) == first
    assert 30 <= len(first) < len(records)


def test_the_borders_of_parts_do_not_decide(
    clean: Clean, tmp_path: Path, tiny_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [chat(f"{n}{end}", f"Say {n}.", f"{RIVER} {n} {end}") for n in range(4) for end in ("", "x", "x y")]
    one = clean(records)
    monkeypatch.setattr(decode, "BATCH_BYTES", 1)  # each file is a part
    for place, record in enumerate(records):
        (tmp_path / f"{place:02}.jsonl").write_text(json.dumps(record), "utf-8")
    files = sorted(tmp_path.glob("[0-9]*.jsonl"))
    tokens = {"tokenizer": tiny_tokenizer, "max_tokens": 100_000}
    used = recipe.from_dict({"filters": {"exact_duplicates": True, "near_duplicates": True}, "tokens": tokens})
    many = curate.clean(files, tmp_path / "many", recipe=used)
    assert kept(many) == kept(one)
    reasons = [{name: row["evidence"] for name, row in rejected(result).items()} for result in (one, many)]
    assert reasons[0] == reasons[1] and reasons[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.3}, "threshold = 0.3 is not allowed; give a number from 0.5 to 1"),
        ({"threshold": 2}, "threshold = 2.0 is not allowed"),
        ({"common": -1.0}, "common = -1.0 is not allowed; give a number from 0 to 1"),
        ({"of": "prompt"}, "of = 'prompt' is not allowed; did you mean 'prompts'?"),
        ({"action": "warn"}, "action = 'warn' is not allowed; known: drop, flag"),
    ],
)
def test_a_setting_that_is_not_allowed_is_refused(settings: Mapping[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe.from_dict({"filters": {"near_duplicates": settings}})
    assert message in str(error.value)
