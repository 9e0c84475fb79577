"""Conversations that share a prompt, an id or a chat are held out together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import curate
from curate.pipeline.clusters import cluster_names, split_chats

Row = tuple[int, str | None, str]  # prompt, id, file


def frame(rows: Sequence[Row]) -> pl.DataFrame:
    """Return the columns that clusters are found by."""
    names = ["prompt", "source_id", "source_file"]
    table = pl.DataFrame(rows, schema=dict(zip(names, [pl.UInt64, pl.String, pl.String], strict=True)), orient="row")
    table = table.with_columns(source_index=pl.int_range(pl.len()), branch=pl.lit(0))
    return table.with_columns(chat=split_chats(table))


def groups(rows: Sequence[Row]) -> list[int]:
    """Return a number for each row, equal for the rows of one cluster, in the order of appearance."""
    names = cluster_names(frame(rows)).to_list()
    order = list(dict.fromkeys(names))
    return [order.index(name) for name in names]


def test_a_prompt_an_id_or_a_chat_joins_two_conversations() -> None:
    assert groups([(1, "a", "f"), (1, "b", "f"), (2, "c", "f"), (3, "c", "g"), (4, "d_0", "f"), (5, "d_2", "f")]) == [
        0, 0, 1, 1, 2, 2
    ]  # fmt: skip
    assert groups([(1, None, "f"), (2, None, "f")]) == [0, 1]


def test_a_whole_chat_is_held_out_with_its_pieces() -> None:
    assert groups([(1, "a", "f"), (2, "a_1", "g"), (3, "b", "f"), (4, "7", "f"), (5, "7_1", "g")]) == [0, 0, 1, 2, 3]


def test_the_branches_of_a_record_are_one_cluster() -> None:
    table = frame([(n, None, "f") for n in range(4)])
    branches = table.with_columns(source_index=pl.Series([0, 1, 1, 2]), branch=pl.Series([0, 0, 1, 0]))
    names = cluster_names(branches).to_list()
    assert names[1] == names[2] and len(set(names)) == 3


def test_a_chain_of_shared_keys_is_one_cluster() -> None:
    rows = [(n // 2, f"id-{(n + 1) // 2}", "f") for n in range(200)]
    assert set(groups(rows)) == {0}
    assert set(groups(rows[::-1])) == {0}


def test_a_number_is_an_id_within_its_file_only() -> None:
    assert groups([(1, "7", "f"), (2, "7", "f"), (3, "7", "g")]) == [0, 0, 1]


def test_an_id_that_most_conversations_have_joins_none() -> None:
    assert len(set(groups([(n, "alpaca", "f") for n in range(101)]))) == 101
    assert len(set(groups([(n, "alpaca", "f") for n in range(100)]))) == 1


@pytest.mark.parametrize(
    ("ids", "chats"),
    [
        (["x_0", "x_1", "y_0", "z"], ["x", "x", "y", None]),
        (["x_0", "x_6", "x_10", "x_6"], ["x", "x", "x", "x"]),
        (["x_00", "x_01", "x_-1", "_1", "x_"], [None] * 5),
        ([f"train_{n}" for n in range(300)], [None] * 300),
        ([f"{name}_{n}" for name in ("math", "art", "law") for n in range(30)], [None] * 90),
        ([f"train_{n}" for n in range(300)] + ["x_0", "x_1"], [None] * 300 + ["x", "x"]),
        (["a_b_0", "a_b_1"], ["a_b", "a_b"]),
        ([], []),
    ],
)  # fmt: skip
def test_pieces_are_told_from_counted_ids(ids: list[str], chats: list[str | None]) -> None:
    assert frame([(n, name, "f") for n, name in enumerate(ids)])["chat"].to_list() == chats


def test_a_chat_as_it_grew_has_no_pieces() -> None:
    grown = [(1, f"x_{n}", "f") for n in range(3)]
    assert frame(grown)["chat"].to_list() == [None] * 3
    assert frame(grown[:2])["chat"].to_list() == ["x", "x"]


KEYS = st.tuples(
    st.integers(0, 8), st.sampled_from([None, *"abcdefgh", "1", "2", "p", "p_0", "p_1", "q", "q_4"]), st.just("f")
)


@given(st.lists(KEYS, max_size=30), st.randoms())
def test_clusters_are_the_connected_components_in_any_order(rows: list[Row], random: object) -> None:
    table = frame(rows)
    keys = [
        {("prompt", prompt), ("id", name), ("chat", chat or name)} - {("id", None), ("chat", None)}
        for (prompt, name, _), chat in zip(rows, table["chat"], strict=True)
    ]
    components: list[set[tuple[str, object]]] = []
    for own in keys:
        joined = [component for component in components if component & own]
        components = [component for component in components if not component & own] + [own.union(*joined)]
    names = cluster_names(table).to_list()
    expected = [next(i for i, component in enumerate(components) if component & own) for own in keys]
    assert len(set(zip(names, expected, strict=True))) == len(set(names)) == len(set(expected))
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert cluster_names(frame([rows[place] for place in shuffled])).to_list() == [names[place] for place in shuffled]


def record(name: str, *texts: str, system: str = "") -> dict[str, object]:
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"id": name, "conversations": [{"from": "system", "value": system}] * bool(system) + turns}


def test_a_set_in_which_all_share_a_prompt_holds_none_out_and_says_so(tmp_path: Path, tiny_tokenizer: str) -> None:
    records = [record(f"chat{n}", "Continue, please.", f"Here is part {n} of it.") for n in range(210)]
    (tmp_path / "dump.json").write_text(json.dumps(records), "utf-8")
    result = curate.clean(tmp_path / "dump.json", tmp_path / "set", tokenizer=tiny_tokenizer, workers=1)
    [warning] = result.warnings
    assert "no conversation is held out: the 210 share so few first prompts" in warning and not result.damaged
    assert result.manifest.counts.eval == 0
    small = curate.clean(tmp_path / "dump.json", tmp_path / "small", tokenizer=tiny_tokenizer, workers=1, limit=20)
    assert small.warnings == []


def test_no_answer_is_trained_on_whose_prompt_is_held_out(tmp_path: Path, tiny_tokenizer: str) -> None:
    records = []
    for n in range(300):
        prompt = f"What is {n} times {n + 7}?"
        records += [
            record(f"a{n}", prompt, f"It is {n * (n + 7)}."),
            record(f"b{n}", f" {prompt.upper()}\n", f"That would be {n * (n + 7)}, as you can check."),
            record(f"c{n}", prompt, "Let me see.", "Well?", f"{n * (n + 7)}.", system="You are a calculator."),
            record(f"chat{n}_0", f"First part of chat number {n}, please.", f"Here is part one of {n}."),
            record(f"chat{n}_2", f"Go on with the chat of {n}, please.", f"Here is part two of {n}."),
            record(f"same{n}", f"One thing about {n}, please.", f"It is a number: {n}."),
            record(f"same{n}", f"Another thing about {n}, please.", f"It follows {n - 1}."),
        ]
    (tmp_path / "dump.json").write_text(json.dumps(records), "utf-8")
    curate.clean(tmp_path / "dump.json", tmp_path / "set", tokenizer=tiny_tokenizer, eval_fraction=0.05, workers=1)
    rows = curate.open_set(tmp_path / "set").conversations().collect()
    place = pl.col("source_index")
    family = pl.when(place % 7 < 3).then(0).when(place % 7 < 5).then(1).otherwise(2).alias("family")
    sides = rows.group_by(place // 7, family).agg(pl.col("split").n_unique())
    assert rows.height == 2100 and sides.height == 900 and sides["split"].max() == 1
    assert 50 <= (rows["split"] == "eval").sum() <= 160


def test_a_small_set_says_that_it_holds_none_out_if_that_was_asked_for(tmp_path: Path) -> None:
    dump = tmp_path / "dump.jsonl"
    dump.write_text(
        json.dumps(
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello to you, too."}]}
        ),
        "utf-8",
    )
    assert not curate.clean(dump, tmp_path / "set").warnings
    (warning,) = curate.clean(dump, tmp_path / "set", eval_fraction=0.2, force=True).warnings
    assert warning.startswith("no conversation is held out: a set of fewer than 200 holds none out")
