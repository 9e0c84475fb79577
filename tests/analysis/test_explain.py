"""The history of a record in a set, by any of its names."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from curate.analysis.explanation import RECORDS_SHOWN, Explanation, explain
from curate.display import text as terminal
from curate.errors import SetError
from curate.report.terminal import explain as terminal_explain
from tests.support.small_set import kept, lost, write_set


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("explain") / "set")


def rendered(explanation: Explanation, width: int = 80) -> str:
    file = io.StringIO()
    terminal.console(file=file, width=width).print(terminal_explain.render_explanation(explanation))
    return file.getvalue()


NAMES = {
    "the dump's own id": ("abc", [0]),
    "a piece's id": ("abc_1", [0]),
    "an id of the set": ("deadbeef", [1]),
    "a place in the input": ("dump.json:5", [5]),
    "an id that repeats": ("twice", [2, 4]),
    "a rejected record's id": ("copy", [3]),
}


@pytest.mark.parametrize(("name", "places"), NAMES.values(), ids=NAMES.keys())
def test_a_record_is_found_by_any_of_its_names(name: str, places: list[int], small: Path) -> None:
    explanation = explain(name, small)
    assert [(story.source_file, story.source_index) for story in explanation.records] == [
        ("dump.json", index) for index in places
    ]
    assert explanation.matches == len(places)


def test_a_conversation_without_a_source_id_is_found_by_the_ids_of_its_pieces(tmp_path: Path) -> None:
    rows = [kept(0, "c-0123_0", source_id=None), kept(0, "c-0123_1", source_id=None, piece=1), kept(1, "c-0123_x_0")]
    folder = write_set(tmp_path / "set", rows, [])
    assert [story.source_index for story in explain("c-0123", folder).records] == [0]


def test_a_kept_record_shows_its_repairs_rejected_exchanges_and_pieces(small: Path) -> None:
    story = explain("abc", small).records[0]
    assert story.kept
    assert [(edit.rule, edit.message, edit.count) for edit in story.edits] == [("html_to_markdown", 1, 2)]
    assert [(item.scope, item.rule, item.messages) for item in story.rejections] == [("exchange", "overlong", (4, 5))]
    assert [(piece.id, piece.split, piece.tokens) for piece in story.pieces] == [
        ("abc_0", "train", 600),
        ("abc_1", "eval", 300),
    ]
    assert story.record is None


def test_twins_name_each_other(small: Path) -> None:
    assert explain("copy", small).records[0].rejections[0].twin == "deadbeef"
    assert explain("deadbeef", small).records[0].twins == ("copy",)


def test_a_rejected_record_shows_its_rule_and_its_original(small: Path) -> None:
    text = rendered(explain("twice", small))
    assert "2 records have the id twice" in text
    assert "min_messages: 1 message, minimum 2" in text
    assert '{"id": "x"}' in text


def test_text_in_a_record_cannot_control_the_terminal(small: Path) -> None:
    text = rendered(explain("twice", small)) + rendered(explain("dump.json:5", small))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "␛[31mred␛[0m [bold]x" in text
    assert "\\xff␛]0;title␇" in text


def test_before_and_after_are_on_separate_lines(small: Path) -> None:
    lines = [line.strip() for line in rendered(explain("abc", small)).splitlines()]
    assert "- <p>hello</p>⏎<p>you</p>" in lines
    assert "+ hello⏎⏎you" in lines


def test_json_holds_the_same(small: Path) -> None:
    values = json.loads(terminal.to_json(explain("abc", small)))
    assert values["records"][0]["pieces"][0]["id"] == "abc_0"
    assert values["records"][0]["edits"][0]["after"] == "hello\n\nyou"


@pytest.mark.parametrize(
    ("name", "near"),
    [("abd", "'abc'"), ("deadbef", "'deadbeef'"), ("xwice", "'twice'"), ("dump.json:99", "FILE:INDEX")],
)
def test_an_unknown_id_gets_the_nearest_id_suggested(name: str, near: str, small: Path) -> None:
    with pytest.raises(SetError, match=near):
        explain(name, small)


@pytest.mark.parametrize("name", ["", ":", "a:", "dump.json:-1", "x" * 5000, "99999999999999999999:9" * 3, "\ud800"])
def test_odd_ids_are_reported_as_unknown(name: str, small: Path) -> None:
    with pytest.raises(SetError, match="no record"):
        explain(name, small)


def test_the_records_of_a_frequent_id_are_cut_with_a_note(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [], [lost(index, "plugins", source_id="same") for index in range(50)])
    explanation = explain("same", folder)
    assert (explanation.matches, len(explanation.records)) == (50, RECORDS_SHOWN)
    assert "50 records have the id same, the first 20 here" in rendered(explanation)
