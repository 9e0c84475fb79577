"""Two sets side by side: what one keeps and the other does not, how their numbers differ, and how that looks."""

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
OTHER = {**MANIFEST, "recipe": {"name": "own", "filters": {"min_messages": {"minimum": 4}}}}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two sets of one dump: the other loses `deadbeef`, `twice` and an exchange, and keeps what the first lost."""
    rows = [KEPT[0], kept(4, "found", source_id="found", tokens=90)]
    losses = [
        lost(0, "rate_limit", source_id="abc", scope="exchange", message_range=[2, 4]),
        LOST[0],
        lost(1, "too_few_turns", source_id="deadbeef"),
        lost(5, "unreadable"),
    ]
    return write_set(tmp_path / "one"), write_set(tmp_path / "other", rows, losses, OTHER)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("recipes")
    for recipe in ("vicuna", "fastchat"):
        curate.clean(EXAMPLE, folder / recipe, recipe=recipe, workers=1)
    return folder / "vicuna", folder / "fastchat"


def rendered(found: Comparison, width: int) -> str:
    file = io.StringIO()
    terminal.console(file=file, width=width).print(render_comparison(found))
    return file.getvalue()


def test_records_that_one_keeps_and_the_other_rejects_are_named_with_the_rule(two: tuple[Path, Path]) -> None:
    found = curate.compare(*two)
    assert (found.matched_by, found.kept_by_both) == ("place", 1)
    assert found.only_one.rules == (RuleDifference("too_few_turns", 1, ("deadbeef",)),)
    assert (found.only_one.records, found.only_one.absent) == (2, 1), "the other never read record 2"
    assert found.only_other.rules == (RuleDifference("min_messages", 1, ("found",)),)


def test_exchanges_that_one_lost_alone_are_named(two: tuple[Path, Path]) -> None:
    found = curate.compare(*two)
    assert found.only_one.exchanges == (RuleDifference("rate_limit", 1, ("abc",)),), "that of messages 4 to 6 both lost"
    assert found.only_other.exchanges == ()


def test_settings_that_differ_are_named(two: tuple[Path, Path]) -> None:
    found = curate.compare(*two).settings
    assert found == (Setting("filters.min_messages.minimum", None, 4), Setting("recipe", "vicuna", "own"))


def test_sets_of_other_files_are_matched_by_id(tmp_path: Path) -> None:
    inputs = [{"name": "later.json", "bytes": 1, "sha256": "1" * 64}]
    rows = [{**row, "source_file": "later.json", "source_index": 100 - row["source_index"]} for row in KEPT[:3]]
    losses = [lost(0, "plugins", source_id="twice", source_file="later.json")]
    later = write_set(tmp_path / "later", rows, losses, {**MANIFEST, "inputs": inputs})
    found = curate.compare(write_set(tmp_path / "one"), later)
    assert (found.matched_by, found.kept_by_both) == ("id", 2)
    assert found.only_one.rules == (RuleDifference("plugins", 1, ("twice",)),)


def test_a_set_beside_itself_differs_in_nothing(recipes: tuple[Path, Path]) -> None:
    found = curate.compare(recipes[0], recipes[0])
    assert found.kept_by_both == found.one.header.kept
    for side in (found.only_one, found.only_other):
        assert (side.records, side.rules, side.exchanges) == (0, (), ())
    assert found.settings == ()
    assert all(bin.one == bin.other for overlay in found.histograms for bin in overlay.bins)


def test_two_recipes_over_one_dump_balance(recipes: tuple[Path, Path]) -> None:
    found = curate.compare(*recipes)
    assert found.kept_by_both + found.only_one.records == found.one.header.kept
    assert found.kept_by_both + found.only_other.records == found.other.header.kept
    assert {one.rule for one in found.only_one.rules} >= {"role_order", "rate_limit", "vendor_mention"}
    for overlay, histogram in zip(found.histograms, found.one.histograms, strict=True):
        assert (overlay.name, sum(bin.one for bin in overlay.bins)) == (histogram.name, histogram.count)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_what_is_kept_by_one_alone_is_the_difference(mine: set[int], theirs: set[int]) -> None:
    with TemporaryDirectory() as folder:
        paths = []
        for name, keeps in (("one", mine), ("other", theirs)):
            rows = [kept(at, f"r{at}") for at in sorted(keeps)]
            losses = [lost(at, f"rule{at % 3}", source_id=f"r{at}") for at in range(31) if at not in keeps]
            paths.append(write_set(Path(folder) / name, rows, losses))
        found = curate.compare(*paths)
        assert found.kept_by_both == len(mine & theirs)
        assert (found.only_one.records, found.only_other.records) == (len(mine - theirs), len(theirs - mine))
        assert (found.only_one.absent, found.only_other.absent) == (0, 0)
        counted = {one.rule: one.count for one in found.only_one.rules}
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


def test_json_is_as_its_schema_says(two: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(command, [str(two[0]), "--compare", str(two[1]), "--json"])
    found = json.loads(done.stdout)
    schema: dict[str, Any] = json.loads((ROOT / "schemas/comparison.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(found, schema)
    assert found["only_one"]["rules"] == [{"rule": "too_few_turns", "count": 1, "examples": ["deadbeef"]}]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (str(EXAMPLE), r"is not a curated set, and only sets can be compared; make one: curate clean"),
        ("absent", r"no curated set at 'absent'; make one"),
    ],
    ids=["a dump", "nothing"],
)
def test_what_is_no_set_is_one_line_with_what_to_do(other: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SetError, match=said):
        curate.compare(write_set(tmp_path / "set"), other)


def test_a_damaged_set_is_named(two: tuple[Path, Path]) -> None:
    pl.DataFrame({"id": ["a"]}).write_parquet(two[1] / "rejected.parquet")
    with pytest.raises(CurateError, match=r"other' lacks a column"):
        curate.compare(*two)


def test_settings_of_a_dump_are_refused_beside_a_set(two: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(command, [str(two[0]), "--compare", str(two[1]), "--tokenizer", "llama3"])
    assert done.exit_code == 2
    assert "--tokenizer is for a dump" in done.stderr
