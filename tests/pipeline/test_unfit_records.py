"""Records that the dump itself calls bad, or that need pictures, from end to end: clean, convert and stats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.conversion.convert import convert
from curate.errors import InputError

Record = dict[str, Any]


def chat(name: str, *texts: str, **keys: object) -> Record:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"id": name, "messages": turns, **keys}


RECORDS = [
    chat("good", "Name a good tea, please.", "Assam is one."),
    chat("bad", "Name a good nut, please.", "Mud is one.", label=False),
    chat("picture", "What is on the table here?", "A blue cup.", images=["cup.jpg"]),
    {"id": "pair", "prompt": "Name a good pear, please.", "chosen": "Conference.", "rejected": "No."},
    chat("mixed", "Name a good plum, please.", "Victoria.", "<image>What is it?", "A cup.", image="cup.jpg"),
]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    file = tmp_path / "dump.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), "utf-8")
    return file


def test_they_are_rejected_by_name(dump: Path, tmp_path: Path) -> None:
    result = curate.clean(dump, tmp_path / "set", workers=1)
    rejected = pl.read_parquet(tmp_path / "set" / "rejected.parquet")
    rules = rejected.select("source_id", "scope", "rule").rows()
    assert rules == [
        ("bad", "record", "bad_label"),
        ("picture", "record", "multimodal"),
        ("mixed", "exchange", "multimodal"),
    ]
    counts = result.manifest.counts
    assert (counts.read, counts.kept, counts.rejected) == (5, 3, 2)
    kept = pl.read_parquet(tmp_path / "set" / "conversations.parquet")
    assert kept["source_id"].to_list() == ["good", "pair", "mixed"]
    assert [message["content"] for message in kept["rejected_answer"][1]] == ["No."]


def test_a_recipe_keeps_them(dump: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "all.toml"
    recipe.write_text('base = "vicuna"\n[repair]\nmultimodal = "keep"\nbad_label = "keep"\n', "utf-8")
    result = curate.clean(dump, tmp_path / "set", recipe=recipe, workers=1)
    assert result.manifest.counts.kept == 5
    convert(tmp_path / "set", tmp_path / "out.jsonl", to="jsonl")  # a set has been judged
    assert len((tmp_path / "out.jsonl").read_text("utf-8").splitlines()) == 5


def test_conversions_and_figures_of_a_dump_leave_them_out(dump: Path, tmp_path: Path) -> None:
    result = convert(dump, tmp_path / "out.jsonl", to="openai")
    assert result.written == 2
    steps = {step.rule: step.first for step in curate.stats(dump).flow.steps}
    assert steps == {"multimodal": 2, "bad_label": 1}


def test_a_format_that_is_only_read_is_not_written(dump: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="read, not written"):
        convert(dump, tmp_path / "out.jsonl", to="preference")


def pair(*turns: str, **keys: object) -> dict[str, object]:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(turns)]
    return {"messages": messages, "chosen": turns[-1], "rejected": "A bad answer, really.", **keys}


@pytest.mark.parametrize(
    ("record", "rejected"),
    [
        (pair("Which tea is good?", "Assam is good."), True),
        (pair("Which tea is good?", "Assam is good.", "And which nut?", "Pecans are."), True),
        (
            pair(
                "Which tea is good?",
                "Assam is good.",
                "And which nut?",
                "Too many requests in 1 hour. Try again later.",
            ),
            False,
        ),
    ],
    ids=["one", "two", "lost"],
)
def test_a_rejected_answer_stays_only_beside_the_answer_that_was_preferred(
    tmp_path: Path, record: dict[str, object], rejected: bool
) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps(record), "utf-8")
    curate.clean(tmp_path / "d.jsonl", tmp_path / "set", workers=1)
    kept = pl.read_parquet(tmp_path / "set" / "conversations.parquet")
    assert (kept["rejected_answer"][0] is not None) == rejected
    assert ("rejected_answer" in kept["edit_names"][0]) != rejected


def test_only_the_piece_with_the_last_answer_has_the_rejected_one(tmp_path: Path) -> None:
    turns = [text for number in range(6) for text in (f"Question {number}? " * 9, f"Answer {number}. " * 9)]
    (tmp_path / "d.jsonl").write_text(json.dumps(pair(*turns)), "utf-8")
    curate.clean(tmp_path / "d.jsonl", tmp_path / "set", workers=1, max_tokens=200)
    kept = pl.read_parquet(tmp_path / "set" / "conversations.parquet").sort("piece")
    assert kept.height > 1
    assert kept["rejected_answer"].is_not_null().to_list() == [False] * (kept.height - 1) + [True]


def test_the_reason_of_a_reject_may_quote_a_lone_surrogate(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Which tea?"}, {"from": "gpt", "value": "Assam."}]
    records = [{"conversations": turns}, {"id": "\ud800", "conversations": [{"from": "\ud800", "value": ["\ud800"]}]}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, records)))
    recipe = tmp_path / "r.toml"
    recipe.write_text('base = "vicuna"\n[filters]\nmin_characters = false')
    result = curate.clean(tmp_path / "d.jsonl", tmp_path / "set", recipe=recipe, workers=1)
    assert (result.manifest.counts.kept, result.manifest.counts.rejected) == (1, 1)
    for row in ({"output": [{"content": ["\ud800"]}]}, {"\ud800": 1}, {"conversations": [{"\ud800": 1}]}):
        (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, [records[0], row])))
        assert curate.clean(tmp_path / "d.jsonl", tmp_path / "set", recipe=recipe, workers=1).manifest.counts.read == 2
