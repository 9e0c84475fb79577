"""Change the manifest and the tables of a set: each way of looking at it is an error of one line, or works."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from curate.cli import cli
from tests.fuzz.effort import SEED, rounds, seeds
from tests.support.damaged_dumps import corrupt
from tests.support.mutations import mutations
from tests.support.small_set import KEPT, LOST, write_set

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

VALUES: list[tuple[pl.DataType, object]] = [
    *((pl.String(), "x"), (pl.Int64(), 2**62), (pl.Int8(), -1), (pl.Float64(), float("nan")), (pl.Boolean(), True)),
    *((pl.Binary(), b"\xff"), (pl.Null(), None), (pl.List(pl.String()), [None]), (pl.List(pl.Int64()), [])),
    (pl.Struct({"a": pl.Int8()}), {"a": 1}),
]


def commands(folder: Path) -> Iterator[list[str]]:
    path, out = str(folder), str(folder.parent / "out")
    yield ["stats", path]
    yield ["stats", path, "--json"]
    yield ["show", "--set", path]
    yield ["show", "--set", path, "--json", "--where", "tokens > 1"]
    yield ["show", "--set", path, "--rejected"]
    yield ["show", "--set", path, "--diff", "--search", "hi"]
    yield ["explain", "dump.json:0", "--set", path]
    yield ["stats", path, "--compare", str(folder.parent / "whole")]
    yield ["convert", path, f"{out}.jsonl", "--to", "jsonl"]
    yield ["convert", path, f"{out}.json", "--to", "vicuna", "--where", "turns > 1", "--sample", "1"]
    yield ["refilter", path, "-o", out, "--force"]
    yield ["combine", path, str(folder.parent / "whole"), "-o", out, "--force"]


def look(folder: Path, draw: random.Random) -> None:
    """Run some commands on a set; each ends with 0, or with one line."""
    for arguments in draw.sample(list(commands(folder)), 3):
        result = CliRunner().invoke(cli, arguments)
        told = (arguments, result.output[-600:], result.exception)
        assert result.exit_code in (0, 1), told
        assert result.exit_code == 0 or isinstance(result.exception, SystemExit), told
        assert "bug in curate" not in result.output, told


def changed_table(path: Path, draw: random.Random) -> pl.DataFrame:
    """Return a table with a column removed, renamed, of another type, without values, or one more."""
    frame = pl.read_parquet(path)
    name, (kind, value) = draw.choice(frame.columns), draw.choice(VALUES)
    match draw.randrange(6):
        case 0:
            return frame.drop(name)
        case 1:
            return frame.rename({name: f"{name}x"})
        case 2:
            return frame.with_columns(pl.lit(None, frame.schema[name]).alias(name))
        case 3:
            return frame.with_columns(extra=pl.Series([value] * len(frame), dtype=kind))
        case 4:
            return frame.clear()
        case _:
            return frame.with_columns(pl.Series(name, [value] * len(frame), dtype=kind))


def test_a_changed_manifest_is_one_line_or_works(tmp_path: Path) -> None:
    write_set(tmp_path / "whole")
    folder = write_set(tmp_path / "set", KEPT, LOST)
    values = json.loads((folder / "manifest.json").read_text())
    draw = random.Random(SEED)
    for changed in mutations(values, rounds(8), SEED):
        (folder / "manifest.json").write_text(json.dumps(changed))
        look(folder, draw)


@pytest.mark.parametrize("name", ["conversations.parquet", "rejected.parquet"])
def test_a_changed_table_is_one_line_or_works(tmp_path: Path, name: str) -> None:
    write_set(tmp_path / "whole")
    folder = write_set(tmp_path / "set", KEPT, LOST)
    data = (folder / name).read_bytes()
    for seed in seeds(8):
        draw = random.Random(seed)
        (folder / name).write_bytes(data)
        if seed % 3:
            changed_table(folder / name, draw).write_parquet(folder / name)
        else:
            (folder / name).write_bytes(corrupt(data, seed))
        look(folder, draw)
