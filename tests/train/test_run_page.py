"""A run's page shows its results, and nothing in it can run."""

from __future__ import annotations

import importlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.train.report import html
from curate.train.run import records
from tests.support.hostile_run import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first <run>")


class Tags(HTMLParser):
    """Collects elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, ""), *((tag, name) for name, _ in attrs)]


def test_nothing_in_the_data_can_run_on_the_page(run: Path) -> None:
    text = html.write(run).read_text("utf-8")
    tags = Tags()
    tags.feed(re.sub(r"(<script>).*?(</script>)", r"\1\2", text, flags=re.S))
    assert not {"img", "iframe", "link", "object", "form", "base"} & {tag for tag, _ in tags.found}
    assert tags.found.count(("script", "")) == 3, "the data, the library, the page's own"
    assert not [name for _, name in tags.found if name.startswith("on") or name == "src"]
    assert set(re.findall(r'href="(.)', text)) == {"#"}
    assert "default-src 'none'" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text.split("<script")[0]), "nor hide anything"
    assert text.count("&lt;script&gt;") >= 9, "the hostile text stands on the page, as text"


def test_the_page_is_valid_html(run: Path) -> None:
    library: Any = importlib.import_module("html5lib")  # ships no types
    parser = library.HTMLParser(strict=True)
    parser.parse(html.write(run).read_text("utf-8"))


def test_the_page_shows_benchmarks_and_intervals(run: Path) -> None:
    text = html.render(records.read(run))
    for name in ("benchmarks", "judge", "arena"):
        assert f'href="#{name}"' in text
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text.split('id="benchmarks"')[1])
    assert cells[:8] == ["owls", "0", "4", "50.0 %", "10.0 %", "25.0 %", "50.0 %", "3"]
    assert "7.125" in text
    assert re.search(r"maths</td>.*?>5</td>.*?>−∞</td>.*?>6</td>", text), "no bound"
    assert "1,234" in text
    assert "items too short to look for" in text
    assert "judge-b.json cannot be read" in text


def test_the_page_shows_both_losses_and_the_last_answers_side_by_side(run: Path) -> None:
    text = html.render(records.read(run))
    assert ">all</td>" in text
    assert "3.5000" in text
    assert "0.5000" in text
    assert "-3.0000" in text
    assert "ehh" in text
    assert "half way" not in text, "the answer of the end stands for the run"
    assert "base, did not stop" in text
    assert "<mark>" in text
    assert "1,2" in text
    assert "1.25" in text, "the measured memory stands beside the planned"


def test_without_scripts_the_figures_are_in_tables(run: Path) -> None:
    shown = html.render(records.read(run))
    tables = "".join(re.findall(r"<table.*?</table>", shown, re.S))
    for caption in ("training loss", "held-out loss over the run", "the run by steps"):
        assert f"<caption>{caption}</caption>" in tables
    for step in range(1, 41):
        assert (
            f'<td class="n" data-v="{step}">{step}</td><td class="n" data-v="{3.0 / step}">{3.0 / step:.4f}' in tables
        )
    assert "<noscript><style>.chart{display:none}</style></noscript>" in shown


def test_each_chart_has_its_lines(run: Path) -> None:
    shown = html.render(records.read(run))
    lines = json.loads(shown.partition('id="chart-data">')[2].partition("</script>")[0])["lines"]
    charts = re.findall(r'data-chart="lines:(\w+)"', shown)
    assert charts == ["loss", "lr", "tokens_per_s", "gib"], "MFU is 0 throughout on a device of unknown speed"
    assert set(charts) <= set(lines)
    each, mean, tuned, base = (line["points"] for line in lines["loss"]["series"])
    assert len(each) == len(mean) == 40
    assert tuned == [[20, 1.0], [40, 0.5]]
    assert base == [[0, 3.5], [40, 3.5]]


def test_the_page_calls_the_pieces_of_the_set_pieces() -> None:
    facts = {"data": {"conversations": 12, "eval_conversations": 4, "supervised": 9}}
    shown = html.render(records.Records("run", facts=facts, plan={"conversations": 12, "conversations_a_step": 4.0}))
    assert "conversation" not in shown.partition("<main>")[2].partition("<script")[0]
    for label in ("pieces", "held-out pieces", "pieces a step", "tokens trained on"):
        assert f"<dt>{label}</dt>" in shown


def test_a_run_that_has_just_started_has_a_page(tmp_path: Path) -> None:
    assert html.write(tmp_path).read_text("utf-8").startswith("<!doctype html>")


def test_partial_lines_and_repeated_steps_are_handled(tmp_path: Path) -> None:
    path = tmp_path / records.METRICS
    records.append(path, [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0}])
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    records.append(path, [{"step": 2, "loss": 7.0}, {"step": 3, "loss": 6.0}])
    assert [row["loss"] for row in records.read(tmp_path).metrics] == [9.0, 7.0, 6.0]


@given(st.integers(1, 5000), st.integers(1, 700))
def test_a_long_run_is_reduced_to_means_of_consecutive_steps(count: int, most: int) -> None:
    kept = records.downsample([(step, float(step)) for step in range(1, count + 1)], most)
    assert len(kept) == min(count, most)
    assert kept[-1][0] == count
    assert all(point[0] < next_point[0] and point[1] < next_point[1] for point, next_point in pairwise(kept))


def test_a_step_without_a_finite_loss_has_no_point() -> None:
    losses = [2.0, float("nan"), float("inf"), None, 1.0]
    assert records.points([{"step": n, "loss": loss} for n, loss in enumerate(losses)], "loss") == [(0, 2.0), (4, 1.0)]


def test_the_running_mean_is_unbiased_at_the_start() -> None:
    assert [y for _, y in records.smooth([(1, 5.0), (2, 5.0)])] == pytest.approx([5.0, 5.0])
