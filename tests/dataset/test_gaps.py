"""Columns of a set in which every row has a value: a gap is one clear line, whatever looks at the set."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from curate.cli import cli
from curate.dataset import curated_set
from curate.dataset.curated_set import CONVERSATIONS, FILLED, FILLED_OF_REJECTS, REJECTED
from curate.errors import SetError
from tests.support.small_set import KEPT, LOST, write_set

GAPS = [(CONVERSATIONS, name) for name in FILLED] + [(REJECTED, name) for name in FILLED_OF_REJECTS]


def leave_out(folder: Path, table: str, column: str) -> None:
    """Remove the value of a column's first row."""
    first = pl.int_range(pl.len()) == 0
    frame = pl.read_parquet(folder / table)
    frame.with_columns(pl.when(~first).then(column).alias(column)).write_parquet(folder / table)


@pytest.mark.parametrize(("table", "column"), GAPS)
def test_a_row_without_a_value_is_named(tmp_path: Path, table: str, column: str) -> None:
    folder = write_set(tmp_path / "set", KEPT, LOST)
    leave_out(folder, table, column)
    with pytest.raises(SetError, match=rf"is damaged \(1 of the rows of {table} have no '{column}'\); run curate"):
        curated_set.open_set(folder)


@pytest.mark.parametrize("command", ["show --set SET", "show --set SET --diff", "refilter SET -o OUT --force"])
def test_a_conversation_without_messages_is_one_line(tmp_path: Path, command: str) -> None:
    folder = write_set(tmp_path / "set", KEPT, LOST)
    leave_out(folder, CONVERSATIONS, "messages")
    names = {"SET": str(folder), "OUT": str(tmp_path / "out")}
    result = CliRunner().invoke(cli, [names.get(word, word) for word in command.split()])
    assert "one of its conversations has no messages" in result.output and "bug" not in result.output
