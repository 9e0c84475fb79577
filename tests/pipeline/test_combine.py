"""`combine` and `clean --against`: sets that know of earlier ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.errors import SetError
from curate.pipeline import run
from curate.pipeline.parts.execution import Execution
from curate.pipeline.sets.combine import combine
from curate.pipeline.sets.make import Output
from tests.pipeline.test_refilter import BASE, POOL, NoPage, chat, clean, make_recipe, write_dump

EVAL = {"fraction": 0.3, "minimum": 2}
QUESTIONS = [
    chat(f"q{n}", f"What is river number {n} called?", f"It is called river {n}, as all are.") for n in range(20)
]
RECIPE = make_recipe(BASE, eval=EVAL)


def join(first: curate.CuratedSet, second: curate.CuratedSet, folder: Path) -> curate.CuratedSet:
    combine(first, second, Output(folder, None, NoPage()), 1)
    return curate.open_set(folder)


def splits(curated: curate.CuratedSet) -> dict[str, str]:
    return dict(curated.conversations().select("id", "split").collect().iter_rows())


def continued(record: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """Return a record with one more exchange."""
    more = [{"from": "human", "value": "And where is it?"}, {"from": "gpt", "value": "It is in Africa, and long."}]
    return {**record, "id": name or record["id"], "conversations": [*record["conversations"], *more]}


def test_two_sets_become_one(tmp_path: Path) -> None:
    first = clean(write_dump(tmp_path / "a" / "dump", [*QUESTIONS, *POOL]), tmp_path / "first", RECIPE)
    held_out = next(name for name, split in splits(first).items() if split == "eval" and name.startswith("q"))
    trained = next(name for name, split in splits(first).items() if split == "train" and name.startswith("q"))
    records = {record["id"]: record for record in QUESTIONS}
    more = [
        records[trained],  # a copy
        continued(records[held_out], "longer"),  # of which the first set holds out the beginning
        chat(held_out, "Something else entirely?", "Yes, entirely so."),  # the same id
        *(chat(f"new{n}", f"What is lake number {n} called?", f"It is called lake {n}, as all are.") for n in range(9)),
        chat("short", "Hi", "Ho!"),
    ]
    second = clean(write_dump(tmp_path / "b" / "dump", more), tmp_path / "second", RECIPE)
    both = join(first, second, tmp_path / "both")
    counts = both.manifest.counts
    assert counts.read == first.manifest.counts.read + second.manifest.counts.read == counts.kept + counts.rejected
    before, after = splits(first), splits(both)
    assert all(after[name] == split for name, split in before.items() if name in after)
    assert set(before) <= set(after)
    rows = both.conversations().collect()
    assert rows["id"].n_unique() == rows.height
    assert set(rows.filter(pl.col("source_id").is_in(["longer", held_out]))["split"]) == {"eval"}
    assert rows.group_by("cluster").agg(pl.col("split").n_unique())["split"].max() == 1
    lost = (
        both.rejected()
        .filter(pl.col("rule") == "exact_duplicates")
        .select("source_id", "twin", "source_file")
        .collect()
    )
    assert {(trained, trained), (held_out, "longer")} <= set(lost.select("source_id", "twin").iter_rows())
    assert {"a.jsonl", "second/a.jsonl"} <= set(rows["source_file"])
    assert [use.use for use in both.manifest.sets] == ["combine", "combine"]
    assert both.rejected().filter(source_id="short").collect().height == 2


def test_a_set_and_itself_are_the_set(tmp_path: Path) -> None:
    first = clean(write_dump(tmp_path / "a" / "dump", POOL), tmp_path / "first", RECIPE)
    both = join(first, first, tmp_path / "both")
    columns = ["id", "messages", "tokens", "split", "cluster", "edits", "source_file"]
    tables = (curated.conversations().select(columns).collect() for curated in (first, both))
    for left, right in zip(*tables, strict=True):
        assert left.equals(right), left.name


@pytest.mark.parametrize(("tokens", "text"), [
    ({"max_tokens": 80}, "max_tokens is 90 and 80; .* --max-tokens 90"),
    ({"max_tokens": 90, "template": "llama3"}, "template is vicuna and llama3; .* --template vicuna"),
])  # fmt: skip
def test_sets_that_count_differently_are_refused(tmp_path: Path, tokens: dict[str, Any], text: str) -> None:
    dump = write_dump(tmp_path / "dump", QUESTIONS[:4])
    first, second = (
        clean(dump, tmp_path / "first", RECIPE),
        clean(dump, tmp_path / "other", make_recipe(BASE, tokens=tokens)),
    )
    with pytest.raises(SetError, match=text):
        join(first, second, tmp_path / "both")


def test_only_what_is_new_is_kept_against_an_earlier_set(tmp_path: Path) -> None:
    first = clean(write_dump(tmp_path / "a" / "dump", [*QUESTIONS, *POOL]), tmp_path / "first", RECIPE)
    held_out = [name for name, split in splits(first).items() if split == "eval" and name.startswith("q")]
    records = {record["id"]: record for record in QUESTIONS}
    new = [chat(f"new{n}", f"What is lake number {n} called?", f"It is called lake {n}, as all are.") for n in range(9)]
    other = chat("other", f"What is river number {held_out[0][1:]} called?", "It has no name at all.")
    begun = chat("begun", *(turn["value"] for turn in POOL[5]["conversations"][:4]))  # type: ignore[index]
    more = [*QUESTIONS, *POOL, *(continued(records[name]) for name in held_out), other, begun, *new]
    dump = write_dump(tmp_path / "b" / "dump", more)
    run.clean([dump], tmp_path / "second", RECIPE, page=NoPage(), execution=Execution(workers=1), against=first)
    second = curate.open_set(tmp_path / "second")
    kept = second.conversations().collect()
    assert set(kept["source_id"]) == {*held_out, "other", *(record["id"] for record in new)}
    assert set(kept.filter(pl.col("source_id").is_in([*held_out, "other"]))["split"]) == {"eval"}
    edits = kept.explode("edits").unnest("edits").filter(pl.col("rule") == "continues").select("source_id", "after")
    assert dict(edits.iter_rows()) == {name: name for name in held_out}
    rejected = dict(
        second.rejected()
        .filter(pl.col("rule") == "known")
        .select("source_id", "twin")
        .drop_nulls()
        .collect()
        .iter_rows()
    )
    assert rejected["begun"] == "long" and rejected["q1"] == "q1" and rejected["long-too"] == "long-too"
    assert [(use.use, use.path) for use in second.manifest.sets] == [("against", str(first.path))]
