"""`curate.read` gives the conversations of a set or a dump as dataclasses, as a frame and for datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import curate
from curate.errors import CurateError
from curate.schemas.conversation import Conversation, Message
from tests.support import ROOT
from tests.support.small_set import KEPT, write_set

EXAMPLE = ROOT / "examples/sharegpt_dump.json"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("read") / "set")


def names(found: curate.Conversations) -> list[str | None]:
    return [chat.source_id for chat in found]


def test_a_set_is_iterated_as_typed_conversations(small: Path) -> None:
    found = curate.read(small)
    first = next(iter(found))
    assert isinstance(first, Conversation)
    assert first.messages == [Message("user", "hi"), Message("assistant", "hello")]
    assert names(found) == names(found) == ["abc_0", "abc_1", "deadbeef", "twice"]
    assert (len(found), bool(found)) == (4, True)


def test_conversations_are_filtered_without_reading_them(small: Path) -> None:
    found = curate.read(small, where="tokens > 100")
    assert names(found.filter("language = 'ko' or piece = 1")) == ["abc_1", "deadbeef"]
    assert names(found.filter("language = 'ko' or piece = 1").filter("tokens < 250")) == ["deadbeef"]
    assert names(found.filter(split="eval")) == ["abc_1"]
    assert names(found.filter(search="HELLO", split="train")) == ["abc_0", "deadbeef"]
    assert names(curate.read(small, ids=["twice"])) == ["twice"]
    assert len(curate.read(small, sample=2)) == 2
    nothing = found.filter("tokens > 9999")
    assert (names(nothing), len(nothing), bool(nothing), nothing.to_polars().height) == ([], 0, False, 0)


def test_a_set_as_a_frame_has_all_columns(small: Path) -> None:
    frame = curate.read(small).filter("tokens > 100").to_polars()
    assert frame["id"].to_list() == ["abc_0", "abc_1", "deadbeef"]
    assert set(frame.columns) == set(KEPT[0])


def test_a_dump_is_read_as_it_is_with_what_is_left_out_by_rule(tmp_path: Path) -> None:
    chats: list[Any] = [{"id": f"c{i}", "conversations": [{"from": "human", "value": "x" * i}]} for i in range(5)]
    (tmp_path / "dump.json").write_text(json.dumps([*chats, None, {"q": 1}]))
    found = curate.read(tmp_path / "dump.json", where="characters > 1")
    assert names(found) == ["c2", "c3", "c4"]
    assert (len(found), found.left_out) == (3, {"not_a_record": 1, "unknown_format": 1})
    frame = found.to_polars()
    assert frame["id"].to_list() == ["c2", "c3", "c4"]
    assert frame["messages"][0].to_list()[0]["content"] == "xx"
    assert all(len(chat.messages) > 5 for chat in curate.read(EXAMPLE).filter("turns > 5"))


def test_a_dataset_of_hugging_face_has_the_same_rows(small: Path) -> None:
    pytest.importorskip("datasets")
    rows = curate.read(small, split="train").to_hf()
    assert rows["id"][:] == ["abc_0", "deadbeef", "twice"]
    assert rows[0]["messages"][1]["content"] == "hello"


def test_conversations_display_in_a_notebook(small: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(
        json.dumps([{"id": f"<b>{i}", "conversations": [{"from": "human", "value": "<script>"}]} for i in range(9)])
    )
    assert "hello" in curate.read(small)._repr_html_()
    html = curate.read(tmp_path / "x.json")._repr_html_()
    assert "&lt;b&gt;4" in html and "&lt;b&gt;5" not in html and "and more" in html
    assert "<script>" not in html


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "nowhere"}, "there is no file or set 'nowhere'"),
        ({"path": "-"}, "there is no file or set '-'"),
        ({"sample": 0}, "sample is 0"),
        ({"keep": ["x"]}, "unknown rule 'x'"),
        ({"ids": "none.txt"}, "cannot read the ids"),
    ],
    ids=["no file", "standard input", "no sample", "unknown rule", "no ids"],
)
def test_what_cannot_be_read_gets_one_clear_line(small: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CurateError, match=message):
        curate.read(**{"path": small, **settings})


def test_a_sample_is_not_filtered_and_a_text_is_searched_for_once(small: Path) -> None:
    with pytest.raises(CurateError, match="filter them first"):
        curate.read(small, sample=2).filter("tokens > 1")
    with pytest.raises(CurateError, match="already searched"):
        curate.read(small, search="x").filter(search="y")
    with pytest.raises(CurateError, match="no column 'tokn'"):
        len(curate.read(small, where="tokn > 1"))
