"""Reports on the example dump equal the files in tests/golden, where a change in layout or numbers shows in the diff.

`CURATE_GOLDEN=write pytest tests/report/test_golden.py` rewrites them; review the diff before you commit it.
"""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from rich.console import RenderableType

import curate
from curate.display import text
from curate.report.terminal.compare import render_comparison
from curate.report.terminal.conversations import render_conversation, render_diff
from curate.report.terminal.stats import render_stats
from curate.report.terminal.summary import render_summary
from tests.support import ROOT

GOLDEN = Path(__file__).parents[1] / "golden"
EXAMPLE = ROOT / "examples/sharegpt_dump.json"


@pytest.fixture(scope="module", autouse=True)
def _sets(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make the sets for the reports, next to a copy of the dump."""
    folder = tmp_path_factory.mktemp("golden")
    shutil.copy(EXAMPLE, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for recipe in ("vicuna", "fastchat"):
            curate.clean(EXAMPLE.name, recipe, recipe=recipe, workers=1)
    _Folder.path = folder


class _Folder:
    path: Path


def _text(renderable: RenderableType, width: int) -> str:
    file = io.StringIO()
    text.console(file=file, width=width).print(renderable)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def _chats(width: int) -> str:
    """Return a conversation in each language, then the diff of one."""
    selection = curate.show(["mJsGFDv", "ZXmYdE5", "W1YkmoN"], "vicuna")
    shown = [_text(render_conversation(chat), width) for chat in selection]
    from curate.analysis import conversations

    changed = selection[1]
    return "\n".join([*shown, _text(render_diff(changed, conversations.diff_record(selection.set, changed)), width)])


def _summary(width: int) -> str:
    manifest = dataclasses.replace(curate.open_set("vicuna").manifest, run=None)  # without times
    return _text(render_summary(manifest, Path("vicuna")), width)


REPORTS: Mapping[str, Callable[[], str]] = {
    "clean-80.txt": lambda: _summary(80),
    "clean-120.txt": lambda: _summary(120),
    "stats-80.txt": lambda: _text(render_stats(curate.stats("vicuna")), 80),
    "stats-200.txt": lambda: _text(render_stats(curate.stats("vicuna")), 200),
    "stats.json": lambda: text.to_json(curate.stats("vicuna")) + "\n",
    "dump-80.txt": lambda: _text(render_stats(curate.stats(EXAMPLE.name, workers=1)), 80),
    "compare-80.txt": lambda: _text(render_comparison(curate.compare("vicuna", "fastchat")), 80),
    "compare-200.txt": lambda: _text(render_comparison(curate.compare("vicuna", "fastchat")), 200),
    "compare.json": lambda: text.to_json(curate.compare("vicuna", "fastchat")) + "\n",
    "show-80.txt": lambda: _chats(80),
    "show-200.txt": lambda: _chats(200),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_on_the_example_dump_is_unchanged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_Folder.path)
    report = REPORTS[name]()
    file = GOLDEN / name
    if os.environ.get("CURATE_GOLDEN") == "write":
        file.write_text(report, "utf-8")
    assert report == file.read_text("utf-8")


@pytest.mark.parametrize("name", [name for name in REPORTS if name.endswith("0.txt")])
def test_no_line_of_a_report_exceeds_its_width(name: str) -> None:
    width = int(name.removesuffix(".txt").rpartition("-")[2])
    lines = (GOLDEN / name).read_text("utf-8").splitlines()
    assert max(map(text.cells, lines)) <= width
