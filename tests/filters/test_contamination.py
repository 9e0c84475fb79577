"""The filter `contamination`, on dumps and on the benchmarks' own questions."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

import curate
from curate.cli import cli
from curate.errors import RecipeError
from curate.filters import measure
from curate.filters.fingerprints.building import Item, build
from curate.filters.fingerprints.catalogue import FOLDER, names
from curate.filters.fingerprints.fingerprint import count_grams, read, write
from curate.pipeline import recipe
from tests.support import ROOT

BENCHMARKS = ROOT.parent / "shared/data/benchmarks"
FERRY = (
    "A ferry carries forty bicycles on each of its six crossings, but only half as many on Sundays. "
    "How many bicycles does it carry in a week?"
)
GAS = "Which gas do plants take in?\nA) oxygen\nB) nitrogen\nC) carbon dioxide\nD) helium\nAnswer:"


def clean(folder: Path, records: Sequence[object], **settings: object) -> pl.DataFrame:
    """Clean records with the filter, of the benchmark `example`; return all rows of kept and rejected."""
    (folder / "dump.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    chosen = recipe.from_dict({"filters": {"contamination": {"benchmarks": ["example"], **settings}}})
    curate.clean(folder / "dump.jsonl", folder / "set", recipe=chosen, force=True)
    tables = [pl.read_parquet(folder / "set" / name) for name in ("conversations.parquet", "rejected.parquet")]
    return pl.concat(tables, how="diagonal").sort("source_index")


def chat(prompt: str, answer: str = "I do not know.", **keys: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer, **keys}]}


RECORDS = [
    chat(f"Please solve this: {FERRY.upper()} Thanks!"),
    chat("Make up a problem.", f"Here is one. {FERRY}"),
    chat("Make up a problem.", "Done.", reasoning_content=f"Perhaps this one: {FERRY}"),
    chat(GAS),
    chat("Which gas do plants take in?"),
    chat("Which gas do plants take in, and which do animals take in?"),
    chat("A ferry carries forty bicycles on each of its crossings. How many in a week?"),
]


def test_prompts_and_answers_are_compared_and_the_reject_says_with_what(tmp_path: Path) -> None:
    rows = clean(tmp_path, RECORDS)
    assert rows["rule"].to_list() == ["contamination"] * 5 + [None] * 2
    first = rows.row(0, named=True)
    assert first["reason"] == "100 % of a benchmark's item, 27 words in a row: example:2 (1.00)"
    assert first["evidence"].startswith("A FERRY CARRIES") and " | benchmark: A ferry carries" in first["evidence"]
    assert rows["contamination_prompts"].to_list() == [1, None, None, 1, 1, None, None]
    assert rows["contamination_answers"].to_list() == [None, 1, 1, None, None, None, None]
    assert rows["contamination_items"].to_list()[3:5] == ["example:3 (1.00)"] * 2


def test_statistics_name_the_items_with_both_texts(tmp_path: Path) -> None:
    clean(tmp_path, [*RECORDS, chat("Hello there, friend.")])
    items = curate.stats(tmp_path / "set").contamination
    assert [(item.name, item.kept, item.rejected, item.coverage) for item in items] == [
        ("example:2", 0, 3, 1.0),
        ("example:3", 0, 2, 1.0),
    ]
    assert items[0].text == FERRY and str(items[0].passage).startswith("A FERRY")
    page = (tmp_path / "set/report.html").read_text("utf-8")
    assert "Items of benchmarks" in page and page.count(FERRY) >= 1
    shown = CliRunner().invoke(cli, ["stats", str(tmp_path / "set")]).stdout
    assert "benchmark items" in shown and "example:2" in shown
    clean(tmp_path, RECORDS, action="flag")
    assert curate.stats(tmp_path / "set").contamination[0].kept == 3


def test_a_flag_drops_nothing_and_roles_choose_a_side(tmp_path: Path) -> None:
    flagged = clean(tmp_path, RECORDS, action="flag")
    assert flagged["rule"].drop_nulls().is_empty()
    assert flagged["contamination_items"].count() == 5
    assert clean(tmp_path, RECORDS, roles=["assistant"])["rule"].is_not_null().arg_true().to_list() == [1, 2]


def test_a_rejected_answer_and_a_call_count_as_answers(tmp_path: Path) -> None:
    function = {"name": "run", "arguments": json.dumps({"code": FERRY.replace(" ", "\n")})}
    call = chat("Run it.", "", tool_calls=[{"type": "function", "id": "1", "function": function}])
    pair = {
        "prompt": "Make up a problem.",
        "chosen": [{"role": "user", "content": "Make up a problem."}, {"role": "assistant", "content": "No."}],
        "rejected": [{"role": "user", "content": "Make up a problem."}, {"role": "assistant", "content": FERRY}],
    }
    rows = clean(tmp_path, [pair, call], action="flag")
    assert rows["contamination_answers"].to_list() == [1, 1]


def test_a_recipe_names_a_fingerprint_of_ones_own_beside_it(tmp_path: Path) -> None:
    write(build("own", [Item("1", [FERRY])]).fingerprint, tmp_path / "own.fingerprint")
    (tmp_path / "mine.toml").write_text('[filters]\ncontamination = { benchmarks = ["own.fingerprint"] }\n')
    (tmp_path / "dump.jsonl").write_text(json.dumps(RECORDS[0]) + "\n" + json.dumps(RECORDS[6]))
    result = curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=tmp_path / "mine.toml")
    assert result.manifest.counts.rules["contamination"].first == 1
    rejected = pl.read_parquet(tmp_path / "set/rejected.parquet")
    assert rejected["evidence"][0].startswith("A FERRY CARRIES") and rejected["contamination_text"][0] is None
    (tmp_path / "own.fingerprint").write_bytes(b"\0" * 100)
    with pytest.raises(RecipeError, match=r"own.fingerprint' is not a fingerprint; make one of it with curate"):
        curate.clean(tmp_path / "dump.jsonl", tmp_path / "set", recipe=tmp_path / "mine.toml", force=True)


def test_the_fingerprints_that_curate_has_are_whole_small_and_without_text() -> None:
    sizes = {name: read(FOLDER / f"{name}.fingerprint") for name in names()}
    items = {name: each.items for name, each in sizes.items() if not each.texts}
    assert items == {"gsm8k": 1319, "humaneval": 163, "mmlu": 13890, "mt_bench": 80}
    assert sizes["example"].items == 3
    assert all(count_grams(each.words).sum() == len(each.hashes) for each in sizes.values())
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000


def questions() -> list[str]:
    texts = []
    for name in ("gsm8k_test", "mmlu_test"):
        with gzip.open(BENCHMARKS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += list(dict.fromkeys(json.loads(line)["question"] for line in lines))
    return texts


@pytest.mark.slow
@pytest.mark.skipif(not BENCHMARKS.exists(), reason="needs the benchmarks' questions in ../shared")
def test_planted_items_are_found_and_their_siblings_are_not() -> None:
    every = [text for text in questions() if len(text.split()) >= 8]
    chosen = random.Random(0).sample(every, 1000)
    texts = [f"Please answer this, step by step:\n\n{text.upper()}\n\nExplain your answer." for text in chosen]
    messages = [[{"role": "user", "content": text, "reasoning": None, "tool_calls": None}] for text in texts]
    frame = pl.DataFrame({"messages": messages, "rejected_answer": [[]] * len(texts)}, schema_overrides=TURNS)
    found = measure(frame, {"benchmark_overlap": {}})
    assert found.filter(pl.col("contamination_prompts") > 0.5).height >= 995
    covered = [name for names in found["contamination_items"].drop_nulls() for name in names.split(", ")]
    assert sum(float(name[-5:-1]) > 0.5 for name in covered) < 1020


TURN = pl.Struct({name: pl.String() for name in ("role", "content", "reasoning", "tool_calls")})
TURNS = {"messages": pl.List(TURN), "rejected_answer": pl.List(TURN)}
