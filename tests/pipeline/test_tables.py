"""Tables are written in sections by the workers, and joined: nothing is lost, whatever the sections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import curate
from curate.dataset import curated_set, transaction
from curate.errors import BalanceError
from curate.ingest.containers import parquet_layout
from curate.pipeline.tables import assemble, row_groups, rows
from tests.support import ROOT

EXAMPLE_DUMP = ROOT / "examples/sharegpt_dump.json"

FRAME = pl.DataFrame(
    {
        "number": range(1000),
        "text": [None if number % 7 == 0 else f"text {number % 50}" for number in range(1000)],
        "list": [[str(number)] * (number % 4) for number in range(1000)],
        "struct": [{"a": number, "b": [bytes([number % 256])]} for number in range(1000)],
    }
)


@pytest.mark.parametrize("sections", [[1000], [300, 300, 300, 100], [100] * 10, [0]], ids=str)
def test_a_joined_file_has_the_rows_and_row_groups_of_one_that_is_written_whole(
    tmp_path: Path, sections: list[int]
) -> None:
    paths: list[Path] = []
    start = 0
    for count in sections:
        paths.append(tmp_path / f"{start}.{len(paths)}")
        transaction.sink(paths[-1], FRAME.slice(start, count).lazy(), 100)
        start += count
    row_groups.join(paths, tmp_path / "joined")
    transaction.sink(tmp_path / "whole", FRAME.head(start).lazy(), 100)
    joined, whole = (parquet_layout.read_layout(tmp_path / name) for name in ("joined", "whole"))
    assert [(group.first, group.rows) for group in joined.groups] == [(g.first, g.rows) for g in whole.groups]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joined", "whole"]  # the sections are removed
    assert_frame_equal(pl.read_parquet(tmp_path / "joined"), FRAME.head(start))
    assert_frame_equal(
        pl.scan_parquet(tmp_path / "joined").filter(pl.col("number") == 555).collect(), FRAME.head(start)[555:556]
    )


def test_statistics_of_a_joined_file_are_those_of_its_row_groups(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for start in (0, 500):
        transaction.sink(tmp_path / f"{start}", FRAME.slice(start, 500).lazy(), 250)
    row_groups.join([tmp_path / "0", tmp_path / "500"], tmp_path / "joined")
    file = parquet.ParquetFile(tmp_path / "joined")
    limits = [file.metadata.row_group(place).column(0).statistics for place in range(4)]
    assert [(each.min, each.max) for each in limits] == [(0, 249), (250, 499), (500, 749), (750, 999)]
    assert file.read().to_pylist() == FRAME.to_dicts()


@given(st.lists(st.integers(0, 90), max_size=12), st.integers(1, 50))
def test_sections_have_each_row_once(heights: list[int], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "SECTION_ROWS", size)
        sections = list(assemble.cut("a", range(len(heights)), np.array(heights, np.int64)))
    every = [(number, row) for number, height in enumerate(heights) for row in range(height)]
    assert [row for section in sections for row in _rows(section)] == every
    assert [section.rows for section in sections[:-1]] == [size] * (len(sections) - 1)
    assert len({section.file for section in sections}) == len(sections) >= 1


def _rows(section: assemble.Section) -> Iterator[tuple[int, int]]:
    own = [(number, row) for number, height in section.parts for row in range(height)]
    yield from own[section.skip : section.skip + section.rows]


@pytest.mark.parametrize("workers", [1, 2])
def test_small_sections_make_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    whole = curate.clean(EXAMPLE_DUMP, tmp_path / "whole", workers=1)
    monkeypatch.setattr(assemble, "SECTION_ROWS", 7)
    small = curate.clean(EXAMPLE_DUMP, tmp_path / "small", workers=workers)
    for name in (curated_set.CONVERSATIONS, curated_set.REJECTED, curated_set.ORIGINALS):
        assert_frame_equal(pl.read_parquet(tmp_path / "small" / name), pl.read_parquet(tmp_path / "whole" / name))
    assert small.manifest.counts == whole.manifest.counts


def test_rows_that_were_not_counted_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def miscount(*_: object) -> int:
        return 3

    table = rows.TABLES[curated_set.ORIGINALS]
    wrong = rows.SetTable(table.read, miscount, table.tally)
    monkeypatch.setitem(rows.TABLES, curated_set.ORIGINALS, wrong)
    with pytest.raises(BalanceError, match=r"rows of originals\.parquet, but 3 were counted; this is a bug in curate"):
        curate.clean(EXAMPLE_DUMP, tmp_path / "set", workers=1)
    assert not (tmp_path / "set").exists()
