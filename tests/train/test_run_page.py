"""A run's page and picture: what they show, and that nothing in them can run."""

from __future__ import annotations

import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.train.report import curves, html
from curate.train.report.curves import Line
from curate.train.run import records

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> \"' \x1b[31m \u202eevil $\\frac{$ &lt;"


def slices(loss: float) -> dict[str, Any]:
    def one(name: str) -> dict[str, Any]:
        return {"name": name, "loss": loss, "tokens": 1200, "conversations": 3}

    return {
        "overall": one("all"),
        "by_exchanges": [one("1"), one("2-3")],
        "by_language": [one("en"), one(HOSTILE)],
        "by_length": [one("0-512")],
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first <run>"
    folder.mkdir()
    steps = [
        {
            "step": n,
            "loss": 3.0 / n,
            "lr": 2e-5,
            "tokens": 2048,
            "seconds": 0.5,
            "tokens_per_s": 4096.0 + n,
            "mfu": 0.0,
            "gib": 1.25,
        }
        for n in range(1, 41)
    ]
    records.append(folder / records.METRICS, steps)
    evals = [("base", 0, 3.5), ("tuned", 20, 1.0), ("tuned", 40, 0.5)]
    records.append(folder / records.EVAL, [{"step": n, "which": which, **slices(loss)} for which, n, loss in evals])
    asked = [{"role": "user", "content": HOSTILE}]
    samples = [
        {"step": 0, "which": "base", "name": "fixed", "messages": asked, "answer": "ehh", "stopped": False},
        {"step": 20, "which": "tuned", "name": "fixed", "messages": asked, "answer": "half way", "stopped": True},
        {"step": 40, "which": "tuned", "name": "fixed", "messages": asked, "answer": HOSTILE, "stopped": True},
    ]
    records.append(folder / records.SAMPLES, samples)
    records.append(
        folder / records.MASKED, [{"name": HOSTILE, "runs": [["USER: hi ASSISTANT:", False], [HOSTILE, True]]}]
    )
    records.append(folder / records.LEFT_OUT, [{"name": HOSTILE, "reason": HOSTILE}])
    (folder / records.CONFIG).write_text(f'name = "{HOSTILE}"', "utf-8")
    (folder / records.PLAN).write_text(json.dumps({"steps": 40, "peak_gib": 1.2, "reasons": [HOSTILE]}), "utf-8")
    facts = {"base": HOSTILE, "method": "lora", "data": {HOSTILE: HOSTILE, "conversations": 12345}}
    (folder / records.FACTS).write_text(json.dumps(facts), "utf-8")
    return folder


class Tags(HTMLParser):
    """Collects elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, ""), *((tag, name) for name, _ in attrs)]


def test_nothing_of_the_data_can_run_on_the_page(run: Path) -> None:
    text = (html.write(run)[0]).read_text("utf-8")
    tags = Tags()
    tags.feed(text)
    assert not {"script", "img", "iframe", "link", "object", "form", "base"} & {tag for tag, _ in tags.found}
    assert not [name for _, name in tags.found if name.startswith("on") or name in ("href", "src")]
    assert "default-src 'none'" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text), "nor hide anything"
    assert text.count("&lt;script&gt;") >= 9, "the hostile text stands on the page, as text"


def test_the_page_is_whole_html(run: Path) -> None:
    library: Any = importlib.import_module("html5lib")  # ships no types
    parser = library.HTMLParser(strict=True)
    parser.parse((html.write(run)[0]).read_text("utf-8"))


def test_the_page_shows_both_losses_and_the_last_answers_side_by_side(run: Path) -> None:
    text = html.html(records.read(run))
    assert "<td>all</td>" in text
    assert "3.5000" in text
    assert "0.5000" in text
    assert "-3.0000" in text
    assert "ehh" in text
    assert "half way" not in text, "the answer of the end stands for the run"
    assert "(did not stop)" in text
    assert "<mark>" in text
    assert "1,2" in text
    assert "1.25" in text, "the measured memory stands beside the planned"


def test_the_picture_is_a_png_with_a_title_that_is_only_text(run: Path) -> None:
    picture = html.write(run)[1]
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1200, 675)
    curves.png(picture, [], HOSTILE)


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    assert html.write(tmp_path)[0].read_text("utf-8").startswith("<!doctype html>")


def test_a_half_written_line_and_steps_taken_again_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / records.METRICS
    records.append(path, [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0}])
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    records.append(path, [{"step": 2, "loss": 7.0}, {"step": 3, "loss": 6.0}])
    assert [row["loss"] for row in records.read(tmp_path).metrics] == [9.0, 7.0, 6.0]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_span_what_is_drawn(low: float, span: float) -> None:
    found = curves.ticks(low, low + span)
    rounding = 1e-6 * max(abs(low), abs(low + span))
    assert found[0] <= low + rounding
    assert found[-1] >= low + span - rounding
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))


def test_a_long_run_is_thinned_and_no_number_is_left_out() -> None:
    points = [(float(x), float("nan") if x % 7 == 0 else 1.0) for x in range(100_000)]
    kept = curves.thinned(points)
    assert len(kept) == curves.POINTS
    assert {y for _, y in kept} == {1.0}
    assert curves.svg([Line("x", "raw", [(0.0, float("inf"))])], "t") == ""


def test_the_running_mean_is_free_of_its_start() -> None:
    assert [y for _, y in curves.smoothed([(1.0, 5.0), (2.0, 5.0)])] == pytest.approx([5.0, 5.0])
