"""`curate.clean` with one file as its target, and the page of the set."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import curate
from curate.dataset import curated_set, manifest
from curate.errors import SetError

Dump = Callable[..., Path]


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    """Return a function that writes a dump with one conversation for each number."""

    def write(*numbers: int) -> Path:
        records = [
            {
                "id": f"chat{number}",
                "conversations": [
                    {"from": "human", "value": f"Question {number}?"},
                    {"from": "gpt", "value": f"The answer to {number} is {number + 7}."},
                ],
            }
            for number in numbers
        ]
        (tmp_path / "dump.json").write_text(json.dumps(records), "utf-8")
        return tmp_path / "dump.json"

    return write


def test_the_page_of_the_set_has_its_name(dump: Dump, tmp_path: Path) -> None:
    curate.clean(dump(1), tmp_path / "english")
    assert "<h1>english</h1>" in (tmp_path / "english" / curated_set.REPORT).read_text("utf-8")


def test_a_single_file_can_be_the_target(dump: Dump, tmp_path: Path) -> None:
    result = curate.clean(dump(1, 2), tmp_path / "clean.json")
    assert result.file == tmp_path / "clean.json"
    turns = [row["conversations"] for row in json.loads((tmp_path / "clean.json").read_text())]
    assert [turn["from"] for turn in turns[0]] == ["human", "gpt"]
    assert manifest.is_set(tmp_path / "clean")


def test_the_file_of_an_earlier_run_is_replaced(dump: Dump, tmp_path: Path) -> None:
    curate.clean(dump(1), tmp_path / "out.jsonl")
    curate.clean(dump(2), tmp_path / "out.jsonl")
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["chat2"]


def test_an_unsupported_target_format_is_refused(dump: Dump, tmp_path: Path) -> None:
    with pytest.raises(SetError, match=r"ending in \.json"):
        curate.clean(dump(1), tmp_path / "out.csv")


def test_a_stop_while_the_single_file_is_written_says_that_the_set_is_complete(
    dump: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("curate.conversion.convert"), "convert", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"set' is complete, but .*set\.json' was not written"):
        curate.clean(dump(1), tmp_path / "set.json")
    assert manifest.is_set(tmp_path / "set") and not (tmp_path / "set.json").exists()
