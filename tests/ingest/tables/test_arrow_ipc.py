"""Arrow files and streams: every row as JSON; a damaged record batch costs its own rows; no bytes end the process."""

from __future__ import annotations

import contextlib
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import InputError
from curate.ingest.tables.arrow_ipc import read_table
from tests.support.raw_dumps import row

pa: Any = pytest.importorskip("pyarrow")
ipc: Any = pytest.importorskip("pyarrow.ipc")

BATCH, BATCHES = 20, 10
ALL_ROWS = [
    row(number, random.Random(number).randbytes(200).hex()) | {"tags": [str(number)] * (number % 3), "score": None}
    for number in range(BATCH * BATCHES)
]


def arrow(rows: list[Any], *, file: bool = False, batch: int = BATCH, compression: str | None = None) -> bytes:
    return pack(pa.Table.from_pylist(rows), file=file, batch=batch, compression=compression)


def pack(table: Any, *, file: bool = False, batch: int = BATCH, compression: str | None = None) -> bytes:
    buffer = io.BytesIO()
    options = ipc.IpcWriteOptions(compression=compression, emit_dictionary_deltas=not file)
    with (ipc.new_file if file else ipc.new_stream)(buffer, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=batch)
    return buffer.getvalue()


def read(data: bytes, split: str = "", block: int = 1 << 16, max_bytes: int = 1 << 30) -> tuple[list[Any], list[str]]:
    """Return the rows, None for one that is lost, and why rows are lost."""
    blocks = iter([data[at : at + block] for at in range(0, len(data), block)])
    table = read_table(blocks, "a.arrow", split, max_bytes=max_bytes, max_record_bytes=1 << 20)
    rows: list[Any] = []
    reasons = []
    for part in table.rows:
        assert part.first == len(rows)
        rows += [None] * part.count if part.lost else map(json.loads, part.data.splitlines())
        reasons += [part.lost] * bool(part.lost)
    return rows, reasons


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
@pytest.mark.parametrize("block", [1, 1000, 1 << 20])
def test_every_row_is_read_whatever_the_blocks(file: bool, compression: str | None, block: int) -> None:
    data = arrow(ALL_ROWS, file=file, compression=compression)
    assert read(data, block=block) == (ALL_ROWS, [])


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_what_polars_writes_is_read(tmp_path: Path, compression: Any) -> None:
    frame = pl.DataFrame(ALL_ROWS)
    frame.write_ipc(tmp_path / "a.arrow", compression=compression)
    frame.write_ipc_stream(tmp_path / "b.arrow", compression=compression)
    assert read((tmp_path / "a.arrow").read_bytes()) == (ALL_ROWS, [])
    assert read((tmp_path / "b.arrow").read_bytes()) == (ALL_ROWS, [])


TYPES = {
    "text, large": (pa.array(["x", None], pa.large_string()), ["x", None]),
    "text, view": (pa.array(["x", "y" * 20], pa.string_view()), ["x", "y" * 20]),
    "categories": (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    "null": (pa.nulls(2), [None, None]),
    "decimals": (pa.array([1, 2], pa.decimal128(10, 2)), ["1.00", "2.00"]),
    "dates": (pa.array([0, 1], pa.date32()), ["1970-01-01", "1970-01-02"]),
    "times": (pa.array([0, 1], pa.timestamp("ms")), ["1970-01-01T00:00:00", "1970-01-01T00:00:00.001000"]),
    "lists of a fixed size": (pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)), [[1, 2], [3, 4]]),
    "maps": (pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())), [{"k": 1}, {}]),
    "NaN": (pa.array([float("nan"), 1.5]), [None, 1.5]),
    "large numbers": (pa.array([2**64 - 1, 0], pa.uint64()), [2**64 - 1, 0]),
}


@pytest.mark.parametrize(("column", "values"), TYPES.values(), ids=TYPES.keys())
def test_values_of_every_type_become_json(column: Any, values: list[Any]) -> None:
    assert read(pack(pa.table({"a": column}), batch=1)) == ([{"a": value} for value in values], [])


def test_categories_that_change_between_batches_are_read() -> None:
    parts = [pa.table({"a": pa.array(texts).dictionary_encode()}) for texts in (["x", "y"], ["z", "x"], ["y", "w"])]
    assert read(pack(pa.concat_tables(parts)))[0] == [{"a": text} for text in "xyzxyw"]


def test_the_split_is_a_column_unless_the_rows_have_one() -> None:
    assert read(arrow([{"a": 1}]), split="test")[0] == [{"a": 1, "split": "test"}]
    assert read(arrow([{"split": None}]), split="test")[0] == [{"split": None}]


def batch_places(data: bytes) -> list[int]:
    """Return where the record batches begin."""
    places = []
    with ipc.open_stream(data) as reader:
        source = pa.BufferReader(data)
        ipc.read_message(source)
        for _ in range(BATCHES):
            places.append(source.tell())
            ipc.read_message(source)
        reader.read_all()
    return places


DAMAGES: dict[str, Callable[[bytes, list[int]], bytes]] = {
    "the mark of a batch": lambda data, at: data[: at[3]] + b"\0" * 8 + data[at[3] + 8 :],
    "the metadata of a batch": lambda data, at: data[: at[3] + 8] + b"\xee" * 40 + data[at[3] + 48 :],
    "bytes inserted": lambda data, at: data[: at[4]] + b"abc" + data[at[4] :],
    "bytes missing": lambda data, at: data[: at[3] + 8] + data[at[3] + 500 :],
    "a batch that is a zero page": lambda data, at: data[: at[3]] + bytes(at[4] - at[3]) + data[at[4] :],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_batch_costs_its_own_rows(damage: Callable[[bytes, list[int]], bytes]) -> None:
    data = arrow(ALL_ROWS)
    rows, reasons = read(damage(data, batch_places(data)))
    kept = [each for each in rows if each is not None]
    assert len(reasons) == 1 and "record batch" in reasons[0]
    assert len(kept) >= len(ALL_ROWS) - 2 * BATCH
    assert kept[:60] == ALL_ROWS[:60] and kept[-100:] == ALL_ROWS[-100:]


def test_offsets_that_are_damaged_cost_the_rows_of_their_batch() -> None:
    data = bytearray(arrow(ALL_ROWS))
    at = batch_places(bytes(data))[3]
    ids = bytes(data).index(b"r60r61r62", at)
    data[ids - 60 : ids - 40] = b"\xff" * 20  # within the offsets of the texts
    rows, reasons = read(bytes(data))
    assert rows == ALL_ROWS[:60] + [None] * 20 + ALL_ROWS[80:]
    assert reasons[0].startswith("record batch 3 cannot be read (")


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
def test_a_cut_file_keeps_the_batches_before_the_cut(file: bool) -> None:
    data = arrow(ALL_ROWS, file=file)
    rows, reasons = read(data[: len(data) // 2])
    whole = rows.index(None)
    assert whole and rows[:whole] == ALL_ROWS[:whole] and "the file is cut off" in reasons[0]


def test_a_stream_without_an_end_mark_is_whole() -> None:
    assert read(arrow(ALL_ROWS)[:-8]) == (ALL_ROWS, [])


BAD_FILES = {
    "nothing": (b"ARROW1\0\0", "it has no schema"),
    "no rows": (pack(pa.table({"a": pa.array([], pa.string())})), "is an Arrow file without rows"),
    "a cut in the only batch": (
        arrow(ALL_ROWS[:3])[:-100],
        "record batch 0 cannot be read (the file is cut off in it)",
    ),
    "a type that cannot be read": (
        pack(pa.table({"a": pa.RunEndEncodedArray.from_arrays([1, 2], ["x", "y"])})),
        "is an Arrow file that cannot be read: not yet implemented",
    ),
}


@pytest.mark.parametrize(("data", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_cannot_be_read_says_why(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=r"input 'a\.arrow' is an Arrow file") as caught:
        read(data)
    assert message in str(caught.value)


def test_a_batch_that_expands_past_the_limit_is_not_decoded() -> None:
    data = arrow(ALL_ROWS[:1], compression="zstd")[:-8]
    bomb = pack(pa.table({"id": ["x" * 5_000_000]}), compression="zstd")
    with pytest.raises(InputError, match=r"expands to 5,000,0\d\d bytes, past the limit of 1,000,000; if"):
        read(bomb, max_bytes=1_000_000)
    assert read(data)[0] == ALL_ROWS[:1]


def test_a_number_of_rows_that_is_damaged_costs_no_memory() -> None:
    data = arrow(ALL_ROWS)
    start, end = batch_places(data)[3:5]
    causes = ""
    for place in range(start, end - 8, 8):
        if data[place : place + 8] == BATCH.to_bytes(8, "little"):  # of the batch, or of a column
            rows, reasons = read(data[:place] + (1 << 39).to_bytes(8, "little") + data[place + 8 :])
            assert rows[:60] == ALL_ROWS[:60] and rows[-120:] == ALL_ROWS[-120:] and len(rows) <= 200
            causes += " ".join(reasons)
    assert "it has 549,755,813,888 rows, past the limit of" in causes


def test_nulls_that_take_no_bytes_are_held_to_the_limit() -> None:
    data = pack(pa.table({"a": pa.nulls(100_000)}), batch=100_000)
    assert read(data)[0] == [{"a": None}] * 100_000
    with pytest.raises(InputError, match="it has 100,000 rows, past the limit of 1,000"):
        read(data, max_bytes=1000)


@given(st.integers(0, 1 << 30), st.binary(min_size=1, max_size=12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_bytes_end_the_reading_or_lose_rows_before_them(place: int, noise: bytes, file: bool) -> None:
    data = arrow(ALL_ROWS[:60], file=file)
    place %= len(data)
    with contextlib.suppress(InputError):
        rows, _ = read(data[:place] + noise + data[place + len(noise) :])
        assert len([each for each in rows if each is not None]) <= 60


SCRIPT = """
import random, sys
from curate.errors import InputError
from curate.ingest.tables.arrow_ipc import read_table
data = open(sys.argv[1], 'rb').read()
for seed in range(int(sys.argv[2])):
    chance = random.Random(seed)
    bad = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        bad[chance.randrange(len(bad))] = chance.choice([0, 255, chance.randrange(256)])
    try:
        table = read_table(iter([bytes(bad)]), 'a', '', max_bytes=1 << 28, max_record_bytes=9999)
        for rows in table.rows:
            pass
    except InputError:
        pass
print('alive')
"""


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_random_damage_never_ends_the_process(tmp_path: Path, compression: str | None) -> None:
    (tmp_path / "a.arrow").write_bytes(arrow(ALL_ROWS[:40], compression=compression))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.arrow"), "1500"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("alive\n"), done.stderr[-2000:]
