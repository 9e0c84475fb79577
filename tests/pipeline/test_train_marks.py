"""Copies that differ in what they train: each answer that one of them trains is trained afterwards, and once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import curate
from curate.dataset import columns
from curate.filters import duplicates
from curate.pipeline import corpus, recipe
from curate.pipeline.steps import Part

Row = dict[str, Any]
Record = dict[str, Any]
TEXTS = [
    "Name the tallest bird, please.",
    "The ostrich, near three metres.",
    "And the smallest one?",
    "A bee hummingbird.",
]
TEXTS += ["And the fastest of them?", "A peregrine falcon, when it dives."]


def chat(name: str, weights: Sequence[int], texts: Sequence[str] = TEXTS, **keys: object) -> Record:
    """Return a chat with an answer for each weight."""
    messages: list[Record] = []
    for n, weight in enumerate(weights):
        messages.append({"role": "user", "content": texts[2 * n]})
        messages.append({"role": "assistant", "content": texts[2 * n + 1], "weight": weight, **keys})
    return {"id": name, "messages": messages}


class Runs:
    """Cleans records into sets of this test."""

    def __init__(self, folder: Path, tokenizer: str) -> None:
        self.folder, self.tokenizer, self.count = folder, tokenizer, 0

    def __call__(self, records: Sequence[Record], **settings: Any) -> tuple[list[Row], list[Row]]:
        self.count += 1
        dump = self.folder / f"{self.count}.json"
        dump.write_text(json.dumps(records), "utf-8")
        target = self.folder / f"set{self.count}"
        curate.clean(dump, target, tokenizer=self.tokenizer, workers=1, **settings)
        curated = curate.open_set(target)
        return curated.conversations().collect().to_dicts(), curated.rejected().collect().to_dicts()


@pytest.fixture
def clean(tmp_path: Path, tiny_tokenizer: str) -> Runs:
    return Runs(tmp_path, tiny_tokenizer)


def trained(rows: Sequence[Row]) -> list[list[str]]:
    """Return the answers that each row trains."""
    return [[m["content"] for m in row["messages"] if m["role"] == "assistant" and m["train"]] for row in rows]


def test_of_two_copies_the_trained_one_is_kept(clean: Runs) -> None:
    for order in (1, -1):
        kept, rejected = clean([chat("masked", [0]), chat("trained", [1])][::order])
        assert [row["id"] for row in kept] == ["trained"] and trained(kept) == [TEXTS[1:2]]
        assert [(row["source_id"], row["twin"]) for row in rejected] == [("masked", "trained")]
        assert kept[0]["edits"] == []


CASES = {
    "a longer chat masks the first answer": [[1], [0, 1]],
    "one row per answer": [[1], [0, 1], [0, 0, 1]],
    "one row per answer, the longest first": [[0, 0, 1], [0, 1], [1]],
    "two that overlap": [[1, 1, 0], [0, 1, 1]],
    "many copies": [[0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1]],
    "the last answer is masked": [[1, 1], [0, 0, 0]],
    "none is trained": [[0], [0, 0]],
}


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
@pytest.mark.parametrize("window", [2048, 220])
def test_one_conversation_trains_what_any_copy_trains(clean: Runs, rows: list[list[int]], window: int) -> None:
    longest = max(map(len, rows))
    union = [max(row[n] for row in rows if n < len(row)) for n in range(longest)]
    kept, rejected = clean([chat(f"chat {n}", row) for n, row in enumerate(rows)], max_tokens=window)
    expected, _ = clean([chat("expected", union)], max_tokens=window)
    names = ("piece", "messages", "tokens", "prompt_tokens", "answer_tokens", "turns", "characters")
    assert [[row[name] for name in names] for row in kept] == [[row[name] for name in names] for row in expected]
    assert (len(expected) > 1) == (window < 2048 and longest > 1)
    assert len(rejected) == len(rows) - 1 and {row["twin"] for row in rejected} == {kept[0]["source_id"]}


def test_the_edit_names_the_copies_and_the_original_is_kept(clean: Runs) -> None:
    kept, _ = clean(
        [chat("turn0", [1]), chat("turn1", [0, 1]), chat("turn2", [0, 0, 1]), chat("other", [1], ["a?" * 9, "b"])]
    )
    [edit], none = kept[0]["edits"], kept[1]["edits"]
    assert none == [] and kept[0]["edit_names"] == ["train_joined"]
    assert edit == {
        "rule": "train_joined", "message": None, "count": 2, "before": "not trained",
        "after": "trained, as in turn0, turn1",
    }  # fmt: skip
    originals = pl.read_parquet(clean.folder / "set1" / "originals.parquet")
    assert originals["source_index"].to_list() == [2]
    assert curate.open_set(clean.folder / "set1").manifest.counts.edits == {"train_joined": 2}


def test_an_answer_under_another_system_message_is_another_answer(clean: Runs) -> None:
    masked = chat("masked", [0, 1])
    masked["messages"].insert(0, {"role": "system", "content": "Be brief."})
    kept, rejected = clean([chat("plain", [1]), masked])
    assert rejected == [] and trained(kept) == [TEXTS[1:2], TEXTS[3:4]]


@pytest.mark.parametrize("window", [2048, 220])
def test_system_messages_do_not_move_the_marks(clean: Runs, window: int) -> None:
    def instructed(name: str, weights: Sequence[int]) -> Record:
        record = chat(name, weights)
        record["messages"].insert(0, {"role": "system", "content": "Be kind."})
        if len(weights) > 1:
            record["messages"].insert(3, {"role": "system", "content": "Be brief."})
        return record

    copies = [instructed("masked", [0, 1, 0]), instructed("other", [1, 0, 1]), instructed("none", [0, 0])]
    kept, _ = clean(copies, max_tokens=window)
    expected, _ = clean([instructed("expected", [1, 1, 1])], max_tokens=window)
    assert [row["messages"] for row in kept] == [row["messages"] for row in expected]
    assert [row["answer_tokens"] for row in kept] == [row["answer_tokens"] for row in expected]


def test_a_gained_answer_keeps_that_it_was_cut_off(clean: Runs) -> None:
    kept, _ = clean([chat("cut", [1], stop=False), chat("long", [0, 1])])
    assert [(m["train"], m["stop"]) for m in kept[0]["messages"] if m["role"] == "assistant"] == [
        (True, False),
        (True, True),
    ]


def test_a_kept_branch_that_trains_an_answer_leaves_it_to_no_other(clean: Runs) -> None:
    other = [*TEXTS[:2], "And the heaviest one?", "The ostrich again, as it happens."]
    kept, _ = clean([chat("short", [1]), chat("masked", [0, 1, 1]), chat("branch", [1, 1], other)])
    assert trained(kept) == [TEXTS[3::2], other[1::2]]


def test_exchanges_that_do_not_fit_do_not_move_the_marks(clean: Runs) -> None:
    texts = [*TEXTS[:2], "word " * 200, "Fine.", *TEXTS[4:]]
    kept, rejected = clean(
        [chat("short", [1]), chat("long", [0, 1, 0], texts), chat("middle", [0, 0, 1], texts)], max_tokens=220
    )
    assert trained(kept) == [[TEXTS[1]], [TEXTS[5]]]
    assert Counter(row["rule"] for row in rejected) == {"exact_duplicates": 2, "too_long": 2}


def test_reasoning_that_no_copy_trains_is_not_trained(clean: Runs) -> None:
    def lines(name: str, *marks: tuple[bool, bool]) -> Record:
        messages = chat(name, [1] * len(marks))["messages"]
        for message in messages:
            message.pop("weight", None)
            message.update(name=None, tool_calls=None, train=True, stop=True, tool_call_id=None, extra=None)
            message.update(reasoning=None, train_reasoning=True)
        for message, (train, train_reasoning) in zip(messages[1::2], marks, strict=True):
            message.update(reasoning="Let me think.", train=train, train_reasoning=train_reasoning)
        return {"id": name, "source_id": name, "piece": None, "messages": messages}

    def marks(kept: list[Row]) -> list[tuple[bool, bool]]:
        return [(m["train"], m["train_reasoning"]) for m in kept[0]["messages"] if m["role"] == "assistant"]

    yes, answer, no = (True, True), (True, False), (False, True)
    assert marks(clean([lines("a", answer), lines("b", no, yes)])[0]) == [answer, yes]
    assert marks(clean([lines("a", yes), lines("b", no, yes)])[0]) == [yes, yes]
    assert marks(clean([lines("a", yes), lines("b", answer, yes)])[0]) == [yes, yes]
    assert marks(clean([lines("a", answer), lines("b", answer, answer)])[0]) == [answer, answer]


MESSAGES = st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.booleans()), min_size=1, max_size=4)
DEFAULT = recipe.load("vicuna")


def part(chats: Sequence[Sequence[tuple[str, bool, bool]]]) -> Part:
    """Return the summary that a worker sends of these chats: the text, train and stop of each message."""
    hashes = duplicates.chain_hashes([("assistant", m[0], None, None, None) for m in chat] for chat in chats)
    marks = [[{"train": m[1], "stop": m[2], "train_reasoning": True} for m in chat] for chat in chats]
    places = {"row": range(len(chats)), "source_index": range(len(chats)), "branch": [0] * len(chats)}
    frame = pl.DataFrame(places).hstack(hashes)
    frame = frame.with_columns(
        source_file=pl.lit("f"),
        source_id=pl.lit(None),
        pieces=pl.lit(1),
        marks=pl.Series(marks, dtype=pl.List(columns.MARKS)),
        alone=pl.lit(True),
    )
    summary = frame.select(pl.col(name).cast(dtype) for name, dtype in columns.PART_SUMMARY.items())
    return Part(0, len(chats), Counter(), Counter(), summary, {})


@given(st.lists(MESSAGES, min_size=1, max_size=12))
def test_what_is_trained_does_not_change_and_is_gained_once(chats: list[list[tuple[str, bool, bool]]]) -> None:
    decisions = corpus.decide([part(chats)], DEFAULT)
    kept = set(decisions.rows.filter(pl.col("rule").is_null())["row"])
    gains = {(row["row"], row["position"]): row["stop"] for row in decisions.gains.to_dicts()}
    assert {row for row, _ in gains} <= kept

    def places(rows: Sequence[int]) -> Counter[tuple[str, ...]]:
        """Return how many of the rows train each answer, which its texts up to there identify."""
        texts = [[m[0] for m in chats[row]] for row in rows]
        marks = [[m[1] for m in chats[row]] for row in rows]
        return Counter(
            tuple(t[: n + 1]) for t, m in zip(texts, marks, strict=True) for n, train in enumerate(m) if train
        )

    before, after = places(range(len(chats))), places(sorted(kept))
    gained = Counter(tuple(m[0] for m in chats[row][: position + 1]) for row, position in gains)
    assert set(before) == set(after) | set(gained)
    assert not set(after) & set(gained) and set(gained.values()) <= {1}
    for (row, position), stop in gains.items():
        assert not chats[row][position][1] and (chats[row][position][2] or not stop)
