"""Rows that are one message each become trees, wherever they lie; a row without its tree keeps its id."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import curate
from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.ingest.tables import tree_rows

Row = dict[str, Any]


def message(name: str, parent: str | None, tree: str | None = None, **keys: object) -> Row:
    role = "prompter" if parent is None else "assistant"
    row = {"message_id": name, "parent_id": parent, "text": f"The text of {name}.", "role": role, "rank": None, **keys}
    return row | ({"message_tree_id": tree} if tree else {})


def trees(count: int, *, named: bool = True) -> list[Row]:
    found = []
    for number in range(count):
        name = f"t{number}"
        tree = name if named else None
        found += [message(name, None, tree)]
        found += [message(f"{name}{answer}", name, tree, rank=rank) for rank, answer in enumerate("ab")]
    return found


def write(path: Path, rows: list[Any]) -> Path:
    match path.suffix:
        case ".parquet":
            pl.DataFrame(rows).write_parquet(path)
        case ".arrow":
            pl.DataFrame(rows).write_ipc(path)
        case ".csv":
            pl.DataFrame(rows).write_csv(path)
        case ".json":
            path.write_text(json.dumps(rows, indent=1), "utf-8")
        case _:
            path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def read(path: Path) -> list[Any]:
    """Return the ids of the messages of each tree, or a record that is none, or why it cannot be read."""
    records = []
    for chunk in Reader(open_inputs([path])):
        for record in decode_records(chunk):
            value: Any = record.problem.reason if record.problem else record.value
            is_tree = isinstance(value, dict) and "tree_rows" in value
            records.append([row["message_id"] for row in value["tree_rows"]] if is_tree else value)
    return records


WHOLE = [[name, f"{name}a", f"{name}b"] for name in ("t0", "t1", "t2")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow", "a.csv"])
@pytest.mark.parametrize("named", [True, False])
def test_rows_become_trees(tmp_path: Path, name: str, named: bool) -> None:
    assert read(write(tmp_path / name, trees(3, named=named))) == WHOLE


def test_rows_of_a_tree_may_be_anywhere_and_in_any_order(tmp_path: Path) -> None:
    rows = trees(3)
    random.Random(1).shuffle(rows)
    assert sorted(map(sorted, read(write(tmp_path / "a.jsonl", rows)))) == WHOLE


def test_a_row_that_is_not_linked_to_its_tree_is_a_record_of_its_own(tmp_path: Path) -> None:
    lost = [message("x", "gone", "t0"), message("y", "x", "t0"), message("t0a", "t0", "t0"), message("z", "gone")]
    loop = [message("u", "v", "t0"), message("v", "u", "t0")]
    assert read(write(tmp_path / "a.jsonl", [*trees(1), *lost, *loop])) == [WHOLE[0], *lost[:3], *loop, lost[3]]


def test_what_is_between_the_rows_stays(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    read_again = read(write(tmp_path / "a.jsonl", [*trees(1), "{broken", chat, *trees(2)[3:]]))
    assert [read_again[0], read_again[2], read_again[3]] == [WHOLE[0], chat, WHOLE[1]]
    assert isinstance(read_again[1], str)


def test_a_damaged_row_is_warned_of_once(tmp_path: Path) -> None:
    reader = Reader(open_inputs([write(tmp_path / "a.jsonl", [*trees(1), '{"a": "b", broken}', *trees(2)[3:]])]))
    assert len([record for chunk in reader for record in decode_records(chunk)]) == 3
    assert len(reader.warnings) == 1


@given(st.integers(0, 2000), st.randoms(use_true_random=False))
def test_no_row_is_lost_however_few_are_held(held_bytes: int, source: random.Random) -> None:
    rows = trees(4)
    source.shuffle(rows)
    grouper = tree_rows.TreeGrouper(held_bytes)
    records: list[Any] = []
    for row in rows:
        line = json.dumps(row).encode()
        records += grouper.add(tree_rows.Row(line, row["message_id"], row["parent_id"] or "", row["message_tree_id"]))
    values = [json.loads(record) for record in [*records, *grouper.finish()]]
    found = [row for value in values for row in value.get("tree_rows", [value])]
    assert sorted(row["message_id"] for row in found) == sorted(row["message_id"] for row in rows)
    for value in values:
        ids = {row["message_id"] for row in value.get("tree_rows", ())}
        assert all(row["parent_id"] in {None, *ids} for row in value.get("tree_rows", ()))


def test_the_account_of_rows_balances(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*trees(3), message("x", "gone", "t9")])
    curate.clean(path, tmp_path / "set", workers=1)
    counts = json.loads((tmp_path / "set" / "manifest.json").read_text("utf-8"))["counts"]
    assert (counts["read"], counts["kept"] + counts["rejected"]) == (4, 4)
    rejected = pl.read_parquet(tmp_path / "set" / "rejected.parquet").filter(pl.col("rule") == "tree_row")
    assert rejected.height == 1 and "'x'" in rejected["reason"][0]
