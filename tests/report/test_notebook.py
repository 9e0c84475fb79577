"""Objects in a notebook are displayed as HTML with their numbers, in which nothing can run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.dataset.manifest import decode
from curate.pipeline.run import CleanResult
from tests.report.test_page import FORBIDDEN, Elements
from tests.support import ROOT
from tests.support.hostile_set import NAME, write_hostile
from tests.support.small_set import MANIFEST, write_set

EXAMPLE = ROOT / "examples/sharegpt_dump.json"

OBJECTS: Mapping[str, tuple[Callable[[Path], Any], str]] = {
    "statistics": (curate.stats, "of 6 records"),
    "a comparison": (lambda folder: curate.compare(folder, folder), "kept by both"),
    "a set": (curate.open_set, "recipe "),
    "a selection": (lambda folder: curate.show(set_path=folder), "pieces"),
    "rejected ones": (lambda folder: curate.show(set_path=folder, rejected=True), "rejects"),
    "a conversation": (lambda folder: curate.show(set_path=folder)[0], "assistant"),
    "a record's way": (lambda folder: curate.explain(curate.show(set_path=folder)[0].id, folder), "outcome"),
    "a machine": (lambda _: curate.doctor(), "cores"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hostile(tmp_path_factory.mktemp("hostile") / "<script>set")


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("which", ["small", "hostile"])
def test_an_object_is_displayed_and_nothing_in_the_data_can_run(
    kind: str, which: str, hostile: Path, tmp_path: Path
) -> None:
    make, expected = OBJECTS[kind]
    shown = make(hostile if which == "hostile" else write_set(tmp_path / "set"))._repr_html_()
    elements = Elements(shown)
    assert expected in elements.words
    assert not (FORBIDDEN | {"script"}) & {tag for tag, _ in elements.found}
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith(("on", "href"))]
    library: Any = importlib.import_module("html5lib")  # ships no types
    library.HTMLParser(strict=True).parseFragment(shown)


def test_a_run_shows_its_counts_and_warnings(tmp_path: Path) -> None:
    shown = curate.clean(EXAMPLE, tmp_path / "set", workers=1)._repr_html_()
    assert "179 of 201 records kept (89.1 %)" in shown
    assert "exact_duplicates" in shown
    warned = CleanResult(tmp_path, decode(MANIFEST), [NAME], 1.0, 1)._repr_html_()
    assert "warning: &lt;/script&gt;" in warned


def test_display_in_a_notebook_prints_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    explanation = curate.explain("deadbeef", write_set(tmp_path / "set"))
    assert "outcome" in explanation._repr_html_()
