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
