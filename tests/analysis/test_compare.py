"""Comparing two sets: the conversations that only one of them keeps, the differences in numbers, and the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import curate
from curate.analysis.comparison import Comparison, RuleDifference, Setting
from curate.cli.stats import stats as command
from curate.display import text as terminal
from curate.errors import CurateError, SetError
from curate.report.terminal.compare import render_comparison
from tests.report.test_page import FORBIDDEN, Elements
from tests.support import ROOT
from tests.support.hostile_set import write_hostile
from tests.support.small_set import KEPT, LOST, MANIFEST, kept, lost, write_set

EXAMPLE = ROOT / "examples/sharegpt_dump.json"
SECOND_MANIFEST = {**MANIFEST, "recipe": {"name": "own", "filters": {"min_messages": {"minimum": 4}}}}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Return two sets of a dump; the second rejects `deadbeef`, `twice` and an exchange that the first keeps."""
    rows = [KEPT[0], kept(4, "found", source_id="found", tokens=90)]
    losses = [
        lost(0, "rate_limit", source_id="abc", scope="exchange", message_range=[2, 4]),
        LOST[0],
        lost(1, "too_few_turns", source_id="deadbeef"),
        lost(5, "unreadable"),
    ]
    return write_set(tmp_path / "one"), write_set(tmp_path / "other", rows, losses, SECOND_MANIFEST)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("recipes")
    for recipe in ("vicuna", "fastchat"):
        curate.clean(EXAMPLE, folder / recipe, recipe=recipe, workers=1)
    return folder / "vicuna", folder / "fastchat"


def rendered(comparison: Comparison, width: int) -> str:
    file = io.StringIO()
    terminal.console(file=file, width=width).print(render_comparison(comparison))
    return file.getvalue()


def test_records_that_only_one_set_keeps_are_listed_by_rule(two: tuple[Path, Path]) -> None:
    comparison = curate.compare(*two)
    assert (comparison.matched_by, comparison.kept_by_both) == ("place", 1)
    assert comparison.only_one.rules == (RuleDifference("too_few_turns", 1, ("deadbeef",)),)
    assert (comparison.only_one.records, comparison.only_one.absent) == (2, 1), "the other never read record 2"
    assert comparison.only_other.rules == (RuleDifference("min_messages", 1, ("found",)),)


def test_exchanges_that_only_one_set_rejects_are_listed(two: tuple[Path, Path]) -> None:
    comparison = curate.compare(*two)
    assert comparison.only_one.exchanges == (RuleDifference("rate_limit", 1, ("abc",)),), (
        "that of messages 4 to 6 both lost"
    )
    assert comparison.only_other.exchanges == ()


def test_differing_settings_are_listed(two: tuple[Path, Path]) -> None:
    settings = curate.compare(*two).settings
    assert settings == (Setting("filters.min_messages.minimum", None, 4), Setting("recipe", "vicuna", "own"))


def test_sets_of_other_files_are_matched_by_id(tmp_path: Path) -> None:
    inputs = [{"name": "later.json", "bytes": 1, "sha256": "1" * 64}]
    rows = [{**row, "source_file": "later.json", "source_index": 100 - row["source_index"]} for row in KEPT[:3]]
    losses = [lost(0, "plugins", source_id="twice", source_file="later.json")]
    later = write_set(tmp_path / "later", rows, losses, {**MANIFEST, "inputs": inputs})
    comparison = curate.compare(write_set(tmp_path / "one"), later)
    assert (comparison.matched_by, comparison.kept_by_both) == ("id", 2)
    assert comparison.only_one.rules == (RuleDifference("plugins", 1, ("twice",)),)


def test_a_set_compared_with_itself_has_no_differences(recipes: tuple[Path, Path]) -> None:
    comparison = curate.compare(recipes[0], recipes[0])
    assert comparison.kept_by_both == comparison.one.header.kept
    for side in (comparison.only_one, comparison.only_other):
        assert (side.records, side.rules, side.exchanges) == (0, (), ())
    assert comparison.settings == ()
    assert all(bin.one == bin.other for overlay in comparison.histograms for bin in overlay.bins)


def test_two_recipes_over_one_dump_are_balanced(recipes: tuple[Path, Path]) -> None:
    comparison = curate.compare(*recipes)
    assert comparison.kept_by_both + comparison.only_one.records == comparison.one.header.kept
    assert comparison.kept_by_both + comparison.only_other.records == comparison.other.header.kept
    assert {difference.rule for difference in comparison.only_one.rules} >= {
        "role_order",
        "rate_limit",
        "vendor_mention",
    }
    for overlay, histogram in zip(comparison.histograms, comparison.one.histograms, strict=True):
        assert (overlay.name, sum(bin.one for bin in overlay.bins)) == (histogram.name, histogram.count)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_the_conversations_that_only_one_set_keeps_are_the_difference(mine: set[int], theirs: set[int]) -> None:
    with TemporaryDirectory() as folder:
        paths = []
        for name, keeps in (("one", mine), ("other", theirs)):
            rows = [kept(at, f"r{at}") for at in sorted(keeps)]
            losses = [lost(at, f"rule{at % 3}", source_id=f"r{at}") for at in range(31) if at not in keeps]
            paths.append(write_set(Path(folder) / name, rows, losses))
        comparison = curate.compare(*paths)
        assert comparison.kept_by_both == len(mine & theirs)
        assert (comparison.only_one.records, comparison.only_other.records) == (len(mine - theirs), len(theirs - mine))
        assert (comparison.only_one.absent, comparison.only_other.absent) == (0, 0)
        counted = {difference.rule: difference.count for difference in comparison.only_one.rules}
        assert counted == {rule: n for rule in counted if (n := sum(f"rule{at % 3}" == rule for at in mine - theirs))}


@pytest.mark.parametrize("width", [80, 200])
def test_the_comparison_fits_its_width(width: int, recipes: tuple[Path, Path]) -> None:
    lines = rendered(curate.compare(*recipes), width).splitlines()
    assert max(terminal.cells(line.rstrip()) for line in lines) <= width
    text = "\n".join(lines)
    assert "20 records kept in the first set but not in the second set" in text
    assert "1 record kept in the second set but not in the first set" in text
    assert "vendor_mention" in text
    if width == 200:
        assert "filters.exact_duplicates.first_exchange" in text


def test_the_page_shows_both_with_conversations_and_their_reasons(recipes: tuple[Path, Path], tmp_path: Path) -> None:
    curate.compare(*recipes, html=tmp_path / "beside.html")
    text = (tmp_path / "beside.html").read_text("utf-8")
    assert len(text.encode()) < 2_000_000
    assert "<h1>vicuna and fastchat</h1>" in text
    assert "<summary>Kept in the first set, rejected by role_order in the second set" in text
    assert "is the second of role assistant in a row" in text
    assert 'data-chart="overlay:conversation_tokens"' in text


def test_nothing_of_a_hostile_set_runs_on_the_page(tmp_path: Path) -> None:
    hostile = write_hostile(tmp_path / "</script><script>window.hacked=1<")
    curate.compare(write_set(tmp_path / "set"), hostile, html=tmp_path / "beside.html")
    elements = Elements((tmp_path / "beside.html").read_text("utf-8"))
    assert not FORBIDDEN - {"a"} & {tag for tag, _ in elements.found}
    assert len([tag for tag, _ in elements.found if tag == "script"]) == 3
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]


def test_json_matches_its_schema(two: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(command, [str(two[0]), "--compare", str(two[1]), "--json"])
    values = json.loads(done.stdout)
    schema: dict[str, Any] = json.loads((ROOT / "schemas/comparison.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    assert values["only_one"]["rules"] == [{"rule": "too_few_turns", "count": 1, "examples": ["deadbeef"]}]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (str(EXAMPLE), r"is not a curated set .*; make one: curate clean"),
        ("absent", r"no curated set at 'absent'; make one"),
    ],
    ids=["a dump", "nothing"],
)
def test_a_path_that_is_not_a_set_gets_one_line_with_a_suggestion(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SetError, match=message):
        curate.compare(write_set(tmp_path / "set"), path)


def test_a_damaged_set_is_named(two: tuple[Path, Path]) -> None:
    pl.DataFrame({"id": ["a"]}).write_parquet(two[1] / "rejected.parquet")
    with pytest.raises(CurateError, match=r"other' lacks a column"):
        curate.compare(*two)


def test_settings_for_dumps_are_refused_for_a_set(two: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(command, [str(two[0]), "--compare", str(two[1]), "--tokenizer", "llama3"])
    assert done.exit_code == 2
    assert "--tokenizer is for a dump" in done.stderr
