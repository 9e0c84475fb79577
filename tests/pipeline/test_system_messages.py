"""A system message amid the turns stays in force for the answers after it, and for no answer before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.dataset.arrow import Row
from curate.rendering.resplit import join_pieces
from curate.schemas import Message

TEXTS = {
    "system": "You are a cat of the old city.",
    "developer": "From now on you are a dog of the new city.",
    "user": "Please tell me number {} of the many names of the many lakes.",
    "assistant": "The name of lake number {} is too long to be told in one line.",
}
ORDER = ("system", *("user", "assistant") * 2, "developer", *("user", "assistant") * 4)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    messages = [{"role": role, "content": TEXTS[role].format(index)} for index, role in enumerate(ORDER)]
    file = tmp_path / "dump.jsonl"
    file.write_text(json.dumps({"id": "x", "messages": messages}) + "\n", "utf-8")
    return file


def pieces(dump: Path, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    curate.clean(dump, folder, workers=1, **settings)
    return pl.read_parquet(folder / "conversations.parquet").to_dicts()


def shown(piece: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in piece["messages"]]


def test_a_template_that_can_say_it_has_it_in_its_place(dump: Path, tmp_path: Path) -> None:
    [piece] = pieces(dump, tmp_path / "set", template="chatml")
    assert [role for role, _ in shown(piece)] == [role.replace("developer", "system") for role in ORDER]
    assert piece["edit_names"] == []


def test_a_template_that_cannot_has_it_in_its_prompt_by_name(dump: Path, tmp_path: Path) -> None:
    [piece] = pieces(dump, tmp_path / "set", template="vicuna")
    assert [role for role, _ in shown(piece)] == [role for role in ORDER if role != "developer"]
    assert shown(piece)[5][1].startswith(TEXTS["developer"] + "\n\nPlease")
    assert piece["edit_names"] == ["fold_system"]


@pytest.mark.parametrize("template", ["chatml", "vicuna", "llama2", "alpaca", "plain"])
def test_every_later_piece_begins_with_the_instructions_in_force(dump: Path, tmp_path: Path, template: str) -> None:
    split = pieces(dump, tmp_path / "set", template=template, max_tokens=130)
    assert len(split) > 1
    for piece in split:
        messages = shown(piece)
        number = int(next(text for role, text in messages if role == "assistant").split("number ")[1].split()[0])
        head = "\n\n".join(text for role, text in messages if role == "system" or role == "user")
        assert head.startswith(TEXTS["system"])
        later = [text for role, text in messages if TEXTS["developer"] in text]
        assert len(later) == (number >= 6 or any("number 7" in text for _, text in messages))


def test_pieces_are_joined_with_each_system_message_once(dump: Path, tmp_path: Path) -> None:
    [whole] = pieces(dump, tmp_path / "whole", template="chatml")
    split = pieces(dump, tmp_path / "split", template="chatml", max_tokens=130)
    rows = [
        Row(piece["id"], piece["piece"], [Message(**message) for message in piece["messages"]], None, "train", ("", 0))
        for piece in split
    ]
    assert join_pieces(rows) == [Message(**message) for message in whole["messages"]]
