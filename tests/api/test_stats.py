"""`curate.stats`: which paths are sets and which are dumps, and the page."""

from __future__ import annotations

from pathlib import Path

import pytest

import curate
from curate.errors import InputError, SetError
from tests.support import ROOT
from tests.support.small_set import write_set


def test_a_set_and_a_dump_are_measured_and_get_a_page(tmp_path: Path) -> None:
    for path in (write_set(tmp_path / "set"), ROOT / "examples/sharegpt_dump.json"):
        measured = curate.stats(path, workers=1, html=tmp_path / "page.html")
        assert measured.header.tokens > 0
        assert "<html" in (tmp_path / "page.html").read_text("utf-8")


def test_settings_for_counting_are_refused_for_a_set(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="counted when it was cleaned, in 'vicuna'"):
        curate.stats(write_set(tmp_path / "set"), template="llama3")


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.parquet", "x.json.gz", "x.jsonl.zst", "x.ZIP"])
def test_a_missing_dump_is_reported_as_a_missing_input(name: str) -> None:
    with pytest.raises(InputError, match=f"^input '{name}' does not exist"):
        curate.stats(name)


@pytest.mark.parametrize("name", ["nowhere", "english.v2"])
def test_any_other_missing_path_is_reported_as_a_missing_set(name: str) -> None:
    with pytest.raises(SetError, match=f"^no curated set at '{name}'"):
        curate.stats(name)


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        curate.stats(write_set(tmp_path / "set"), html=tmp_path / "absent" / "page.html")
