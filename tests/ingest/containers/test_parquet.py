"""A damaged Parquet file keeps its other row groups and the numbers of their rows; a bomb is stopped."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curate.errors import InputError
from curate.ingest.containers import parquet_layout, thrift
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.ingest.streams import ExpansionError
from tests.support.raw_dumps import read, row, values

pa: Any = pytest.importorskip("pyarrow")
pq: Any = pytest.importorskip("pyarrow.parquet")

GROUP, GROUPS = 20, 10
ALL_ROWS = [
    row(number, random.Random(number).randbytes(400).hex()) | {"tags": [str(number)] * (number % 3), "score": number}
    for number in range(GROUP * GROUPS)
]


def pack(path: Path, compression: Literal["zstd", "uncompressed"]) -> bytes:
    pl.DataFrame(ALL_ROWS).write_parquet(path, compression=compression, row_group_size=GROUP)
    return path.read_bytes()


def read_by_number(path: Path, **settings_: Any) -> tuple[dict[int, Any], Reader]:
    """Return the readable records by their number, and the reader."""
    records, reader = read(path, **settings_)
    assert len({record.index for record in records}) == len(records)
    return {record.index: record.value for record in records if record.problem is None}, reader


# ── damage ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("compression", ["zstd", "uncompressed"])
def test_a_damaged_row_group_costs_its_own_rows_and_is_named(tmp_path: Path, compression: Any) -> None:
    path = tmp_path / "a.parquet"
    data = bytearray(pack(path, compression))
    group = parquet_layout.read_layout(path).groups[3]
    data[group.columns[0].start : group.columns[0].start + 12] = b"\xff" * 12  # the header of a page
    path.write_bytes(data)
    kept, reader = read_by_number(path)
    assert kept == {number: value for number, value in enumerate(ALL_ROWS) if not 60 <= number < 80}
    (damage,) = reader.warnings
    assert damage.text.startswith("a.parquet: about 20 records from number 60 on cannot be read: row group 3 ")
    (lost,) = [record for record in read(path)[0] if record.problem is not None]
    assert (lost.index, lost.problem and lost.problem.rule) == (60, "unreadable")


def test_a_panic_of_polars_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.parquet"
    data = bytearray(pack(path, "uncompressed"))
    at = parquet_layout.read_layout(path).groups[3].columns[3].start + 36
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    with contextlib.suppress(pl.exceptions.PanicException):
        pl.read_parquet(path)
    assert "panicked" in capfd.readouterr().err
    kept, reader = read_by_number(path)
    assert len(kept) < len(ALL_ROWS)
    assert reader.warnings
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


@pytest.mark.parametrize("value", [b"!!!!", b"AAAA"], ids=["no base64", "no schema"])
def test_a_damaged_arrow_schema_loses_no_row(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ALL_ROWS), path, row_group_size=GROUP)
    data = bytearray(path.read_bytes())
    at = data.index(b"ARROW:schema") + 40
    data[at : at + 4] = value
    path.write_bytes(data)
    kept, reader = read_by_number(path)
    assert kept == dict(enumerate(ALL_ROWS))
    (damage,) = reader.warnings
    assert damage.text.startswith("a.parquet: the Arrow schema in its footer is damaged: ")


@pytest.mark.parametrize("change", [-100, -1, 1, 100])
@pytest.mark.parametrize("place", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("compression", ["zstd", "uncompressed"])
def test_rows_after_missing_or_added_bytes_are_read_where_they_are(
    tmp_path: Path, compression: Any, place: float, change: int
) -> None:
    path = tmp_path / "a.parquet"
    data = pack(path, compression)
    at = int(len(data) * place)
    path.write_bytes(data[:at] + (b"\x55" * change + data[at:] if change > 0 else data[at - change :]))
    kept, reader = read_by_number(path)
    assert len(kept) >= GROUP * (GROUPS - 2)
    assert all(ALL_ROWS[number] == value for number, value in kept.items())
    assert len(reader.warnings) == 1


@settings(max_examples=40, deadline=None)
@given(
    compression=st.sampled_from(["zstd", "uncompressed"]),
    place=st.floats(0, 0.999),
    length=st.integers(1, 64),
    seed=st.integers(0, 1 << 16),
    kind=st.sampled_from(["overwrite", "delete", "insert"]),
)
def test_any_damage_before_the_footer_costs_at_most_two_row_groups_and_moves_no_row(
    tmp_path_factory: pytest.TempPathFactory, compression: Any, place: float, length: int, seed: int, kind: str
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.parquet"
    data = pack(path, compression)
    stop = parquet_layout.read_layout(path).groups[-1].stop
    at = 4 + int((stop - 4 - length) * place)
    noise = random.Random(seed).randbytes(length)
    rest = {"overwrite": noise + data[at + length :], "delete": data[at + length :], "insert": noise + data[at:]}[kind]
    path.write_bytes(data[:at] + rest)
    kept, reader = read_by_number(path)
    assert len(kept) >= GROUP * (GROUPS - 2)
    changed = {number // GROUP for number, value in kept.items() if ALL_ROWS[number] != value}
    # Parquet has no checksums here, so values may change; a row never takes the place of another.
    assert len(changed) <= 2
    assert len(kept) == len(ALL_ROWS) or reader.warnings


def test_a_checksum_of_a_page_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.Table.from_pylist(ALL_ROWS)
    pq.write_table(
        table,
        path,
        row_group_size=GROUP,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    assert values(read(path)[0]) == ALL_ROWS
    data = path.read_bytes()
    at = data.index(ALL_ROWS[70]["conversations"][0]["value"].encode())
    path.write_bytes(data[:at] + b"?" + data[at + 1 :])
    kept, reader = read_by_number(path)
    assert set(range(len(ALL_ROWS))) - set(kept) == set(range(60, 80))
    assert "does not match its checksum" in reader.warnings[0].text


@pytest.mark.parametrize("cut", [1, 8, 60])
def test_a_file_without_its_footer_gets_one_clear_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(pack(path, "zstd")[:-cut])
    with pytest.raises(InputError, match=r"'a.parquet' is a Parquet file that cannot be read: the footer .* is "):
        read(path)


def test_a_file_without_a_readable_row_group_gets_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    data = bytearray(pack(path, "zstd"))
    for group in parquet_layout.read_layout(path).groups:
        data[group.start : group.stop] = bytes(group.stop - group.start)
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read: row group 0 cannot be read"):
        read(path)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
@example(data=b"\x05\x11\x00\x00")  # a field with the number -9
@example(data=b"\x05\x00\x00\x00")  # and with 0
def test_any_bytes_are_a_struct_or_a_value_error(data: bytes) -> None:
    try:
        fields = thrift.Reader(data).struct()
    except ValueError:
        return
    assert thrift.Reader(thrift.encode(fields)).struct() == fields


@pytest.mark.parametrize("rows", [1, 7, 200])
def test_row_groups_decoded_together_or_alone_give_the_same_records(tmp_path: Path, rows: int) -> None:
    pl.DataFrame(ALL_ROWS).write_parquet(tmp_path / "a.parquet", row_group_size=rows)
    records, reader = read(tmp_path / "a.parquet")
    assert [record.index for record in records] == list(range(len(ALL_ROWS)))
    assert values(records) == ALL_ROWS
    assert reader.warnings == []
    layout = parquet_layout.read_layout(tmp_path / "a.parquet")
    with (tmp_path / "a.parquet").open("rb") as file:
        parts = [pl.read_parquet(parquet_layout.extract(file, layout, group, 0)) for group in layout.groups]
    assert pl.concat(parts).to_dicts() == ALL_ROWS


# ── bombs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def repeated(text: str, count: int) -> Any:
    """Return a table in which one text of a dictionary is repeated."""
    codes = pa.repeat(pa.scalar(0, pa.int32()), count)
    return pa.table({"id": pa.DictionaryArray.from_arrays(codes, pa.array([text]))})


BOMBS = {
    "many rows": lambda: repeated("x", 20_000_000),
    "long texts": lambda: repeated("x" * 1_000_000, 2000),
    "one row": lambda: pa.table({"id": pa.array([[None] * 6_000_000], pa.list_(pa.string()))}),
    "one page": lambda: pa.table({"id": pa.array(["\0" * (100 << 20)])}),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("store_schema", [True, False], ids=["categories", "texts"])
def test_a_bomb_is_stopped_before_it_expands(tmp_path: Path, make: Any, store_schema: bool) -> None:
    path = tmp_path / "bomb.parquet"
    pq.write_table(make(), path, row_group_size=1 << 30, compression="zstd", store_schema=store_schema)
    code = "import sys; from curate.ingest.reader import Reader; from curate.ingest.sources import open_inputs\n"
    code += "try:\n  for chunk in Reader(open_inputs(sys.argv[1:])): pass\n"
    code += "finally: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert b"past the limit of" in ran.stderr and b"raise max_expansion in the recipe" in ran.stderr
    assert int(ran.stdout) < 300 << 10  # kB


def test_the_limits_hold_for_parquet(tmp_path: Path) -> None:
    pq.write_table(repeated("x" * 1000, 5000), tmp_path / "a.parquet", store_schema=False)
    assert len(read(tmp_path / "a.parquet")[0]) == 5000
    with pytest.raises(ExpansionError, match=r"expands past the limit of 3,000,000 bytes .* max_expanded_bytes"):
        read(tmp_path / "a.parquet", max_expanded_bytes=3_000_000)


def test_a_row_over_the_limit_of_a_record_costs_itself(tmp_path: Path) -> None:
    rows = [row(number, "x" * (5000 if number == 7 else 10)) for number in range(20)]
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    kept, reader = read_by_number(tmp_path / "a.parquet", max_record_bytes=2000)
    assert kept == {number: value for number, value in enumerate(rows) if number != 7}
    assert "row 7 has about" in reader.warnings[0].text and "max_record_bytes" in reader.warnings[0].text


def test_a_schema_nested_too_deeply_gets_one_clear_line(tmp_path: Path) -> None:
    value: Any = "x"
    for _ in range(150):
        value = {"a": value}
    pq.write_table(pa.Table.from_pylist([{"a": value}]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="nested over 100 levels"):
        sum(chunk.count for chunk in Reader(open_inputs([tmp_path / "a.parquet"])))
