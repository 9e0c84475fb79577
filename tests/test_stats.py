"""A set's statistics: the numbers, how they look, and what is said of a set that cannot be read."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import RenderableType
from small_set import MANIFEST, kept, write_set

from curate import curated, report, terminal
from curate.errors import SetError
from curate.stats import Bin, Count, Share, Step, histogram, stats


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


def rendered(renderable: RenderableType, width: int) -> str:
    file = io.StringIO()
    terminal.console(file=file, width=width).print(renderable)
    return file.getvalue()


def test_the_header_says_what_the_set_is(small: Path) -> None:
    header = stats(small).header
    assert (header.read, header.kept, header.tokens) == (6, 3, 1180)
    assert (header.recipe, header.tokenizer, header.template, header.window) == ("vicuna", "llama3", "vicuna", 2048)
    assert [(item.name, item.bytes) for item in header.inputs] == [("dump.json", 2_000_000)]


def test_the_flow_balances_and_lists_the_rules_that_took_most_first(small: Path) -> None:
    flow = stats(small).flow
    assert flow.read == flow.kept + flow.rejected
    assert sum(step.first for step in flow.steps) == flow.rejected
    assert flow.steps[0] == Step("exact_duplicates", 1, 2)


def test_shares_are_counted_by_piece_with_their_tokens(small: Path) -> None:
    measured = stats(small)
    assert measured.languages == (Share("en", 2, 900), Share("ko", 1, 200), Share("unknown", 1, 80))
    assert measured.models == (Share("unknown", 3, 980), Share("gpt-4", 1, 200))
    assert measured.splits == (Share("train", 3, 880), Share("eval", 1, 300))
    assert measured.edits == (Count("html_to_markdown", 2), Count("chrome", 1))


def test_histograms_measure_tokens_turns_and_answers(small: Path) -> None:
    tokens, turns, answers = stats(small).histograms
    assert (tokens.count, tokens.minimum, tokens.maximum, tokens.mean) == (4, 80, 600, 295.0)
    assert turns.percentiles["p50"] == 2
    assert answers.maximum == 250  # 500 tokens in the two answers of abc_0


def test_a_set_of_nothing_has_numbers_too(tmp_path: Path) -> None:
    counts = dict.fromkeys(("read", "kept", "rejected", "rejected_exchanges", "pieces", "tokens"), 0)
    empty = stats(write_set(tmp_path / "set", [], [], {**MANIFEST, "counts": {**counts, "rules": {}, "edits": {}}}))
    assert empty.header.tokens == 0
    assert [item.bins for item in empty.histograms] == [(), (), ()]
    assert "no pieces" in rendered(report.stats_page(empty), 80)


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=200))
def test_bins_hold_each_value_once_and_join_without_gaps(values: list[int]) -> None:
    found = histogram("x", "x", pl.Series(values, dtype=pl.Int64))
    assert sum(bin.count for bin in found.bins) == len(values)
    assert len(found.bins) <= 17
    for before, after in zip(found.bins, found.bins[1:], strict=False):
        assert after.low == before.high + 1
    for bin in found.bins:
        assert bin.count == sum(bin.low <= value <= bin.high for value in values)


def test_a_long_tail_shares_the_last_bin() -> None:
    found = histogram("x", "x", pl.Series([*range(100), 10**6]))
    assert found.bins[-1] == Bin(90, 10**6, 11)


@pytest.mark.parametrize("width", [80, 200])
def test_the_page_fits_its_width_and_uses_it(small: Path, width: int) -> None:
    lines = rendered(report.stats_page(stats(small)), width).splitlines()
    longest = max(terminal.cells(line.rstrip()) for line in lines)
    assert width - 8 <= longest <= width


def test_wide_consoles_show_histograms_side_by_side(small: Path) -> None:
    page = report.stats_page(stats(small))
    headings = ("tokens per piece", "messages per piece")
    assert any(all(heading in line for heading in headings) for line in rendered(page, 200).splitlines())
    assert not any(all(heading in line for heading in headings) for line in rendered(page, 80).splitlines())


def test_east_asian_names_stay_aligned(tmp_path: Path) -> None:
    rows = [kept(0, "a", model="模型一号"), kept(1, "b", model="gpt-4")]
    page = rendered(report.stats_page(stats(write_set(tmp_path / "set", rows))), 80)
    ends = [
        terminal.cells(line[: line.index(" %")]) for line in page.splitlines() if line.startswith(("模型一号", "gpt-4"))
    ]
    assert len(ends) == 2
    assert ends[0] == ends[1]


def test_names_from_the_data_cannot_command_the_terminal(tmp_path: Path) -> None:
    rows = [kept(0, "a", model="\x1b[2J[bold red]\u202egpt")]
    measured = stats(write_set(tmp_path / "set", rows))
    page = rendered(report.stats_page(measured), 80)
    assert "\x1b" not in page
    assert "␛[2J[bold red]\\u202egpt" in page
    assert "\u202e" not in report.to_json(measured)
    assert json.loads(report.to_json(measured))["models"][0]["name"] == "\x1b[2J[bold red]\u202egpt"


def test_the_page_says_the_same_in_ascii(small: Path) -> None:
    raw = io.BytesIO()
    console = terminal.console(file=io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace"), width=80)
    console.print(report.stats_page(stats(small)))
    console.file.flush()
    assert b"####" in raw.getvalue()


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    file = folder / curated.CONVERSATIONS
    os.truncate(file, file.stat().st_size // 2)


def scribble(folder: Path) -> None:
    """Overwrite the pages, leaving the footer whole."""
    with (folder / curated.CONVERSATIONS).open("r+b") as file:
        file.seek(4)
        file.write(b"\xff" * 2000)


def drop_column(folder: Path) -> None:
    file = folder / curated.CONVERSATIONS
    pl.read_parquet(file).drop("answer_tokens").write_parquet(file)


def drop_key(folder: Path) -> None:
    curated.write_manifest(folder, {"version": "0.0.1"})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "make one: curate clean"),
    "no manifest": (remove(curated.MANIFEST), "not a curated set"),
    "manifest of something else": (lambda f: (f / curated.MANIFEST).write_text("{}"), "not a curated set"),
    "manifest without counts": (drop_key, "damaged or of another version"),
    "another format": (lambda f: (f / curated.MANIFEST).write_text('{"curate_set": 99}'), "run curate clean again"),
    "half deleted": (remove(curated.CONVERSATIONS), "conversations.parquet is missing"),
    "truncated": (truncate, "is damaged"),
    "corrupt": (scribble, "is damaged"),
    "an older version's columns": (drop_column, "lacks a column"),
}


@pytest.mark.parametrize(("harm", "said"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_set_that_cannot_be_read_is_one_line_with_what_to_do(
    harm: Callable[[Path], object], said: str, small: Path
) -> None:
    harm(small)
    with pytest.raises(SetError) as caught:
        stats(small)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_set(tmp_path: Path) -> None:
    file = tmp_path / "dump.json"
    file.write_text("[]")
    with pytest.raises(SetError, match="is a file, not a curated set"):
        stats(file)


def test_the_summary_tells_the_run_from_read_to_kept() -> None:
    text = rendered(report.summary(MANIFEST, "curated"), 80)
    for said in ("read", "exact_duplicates", "kept", "50.0 %", "html_to_markdown 2", "1.5 s, 1.3 MB/s, 2 workers"):
        assert said in text
    assert "1 exchange lost from kept records: overlong 1" in text


SAFE = {
    "escape": ("\x1b[31mred", "␛[31mred"),
    "a C1 control": ("\x9b31m", "\\u009b31m"),
    "delete and bell": ("\x7f\x07", "␡␇"),
    "an override of direction": ("a\u202eb\u2066", "a\\u202eb\\u2066"),
    "a lone surrogate": ("\ud800", "\\ud800"),
    "lines and tabs stay": ("a\r\nb\tc\n", "a\nb\tc\n"),
    "a lone carriage return would overwrite": ("good\rbad", "good␍bad"),
    "other scripts stay": ("한국어 日本語 עברית 👩‍👩‍👧", "한국어 日本語 עברית 👩‍👩‍👧"),
}


@pytest.mark.parametrize(("text", "shown"), SAFE.values(), ids=SAFE.keys())
def test_text_is_harmless_in_a_terminal(text: str, shown: str) -> None:
    assert terminal.safe(text) == shown


@given(st.text(), st.integers(1, 40))
def test_one_line_is_one_harmless_line_of_its_width(text: str, width: int) -> None:
    line = terminal.one_line(text, width)
    assert terminal.cells(line) <= width
    assert len(line.splitlines()) <= 1
    line.encode()
