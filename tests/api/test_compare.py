"""`curate.compare`: two sets side by side, and the page."""

from __future__ import annotations

from pathlib import Path

import pytest

import curate
from curate.errors import CurateError
from tests.support.small_set import write_set


def test_two_sets_are_compared_and_get_a_page(tmp_path: Path) -> None:
    sets = write_set(tmp_path / "one"), write_set(tmp_path / "other")
    comparison = curate.compare(*sets, html=tmp_path / "page.html")
    assert comparison == curate.compare(*sets)
    assert "<h1>one and other</h1>" in (tmp_path / "page.html").read_text("utf-8")


def test_a_page_must_be_html_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"page\.txt"):
        curate.compare("absent", "absent", html=tmp_path / "page.txt")
