"""The settings for LLaMA-Factory and axolotl are written beside a converted file, and say what they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curate.conversion.convert import convert
from curate.errors import CurateError
from curate.schemas.conversation import Conversation, Message
from tests.conversion.test_outputs import CALLS, CUT, LONG, PLAIN, UNTRAINED, USER, set_of

TOOLS = Conversation("t", [USER, Message("assistant", "", tool_calls=CALLS)], tools='[{"name":"f"}]')


def entry_of(folder: Path, to: str, *chats: Conversation, **settings: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    result = convert(set_of(folder, *chats), folder / "train.json", to=to, config_for=["llama-factory"], **settings)
    assert result.configs == (folder / "dataset_info.json",)
    return json.loads((folder / "dataset_info.json").read_text("utf-8"))["train"], result.warnings


def test_entries_of_llama_factory_name_only_columns_that_are_there(tmp_path: Path) -> None:
    entry, warnings = entry_of(tmp_path, "alpaca", PLAIN)
    assert entry == {
        "file_name": "train.json",
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }
    assert warnings == ()
    entry, _ = entry_of(tmp_path, "alpaca", PLAIN, LONG, history=True)
    assert entry["columns"] == {
        **{"prompt": "instruction", "query": "input", "response": "output"},
        **{"system": "system", "history": "history"},
    }
    assert entry_of(tmp_path, "openai", PLAIN)[0]["columns"] == {"messages": "messages"}
    assert entry_of(tmp_path, "openai", TOOLS)[0]["columns"] == {"messages": "messages", "tools": "tools"}
    assert entry_of(tmp_path, "vicuna", PLAIN)[0]["tags"]["assistant_tag"] == "gpt"


def test_what_llama_factory_does_not_see_is_said(tmp_path: Path) -> None:
    assert "trains on every answer" in entry_of(tmp_path, "openai", UNTRAINED)[1][0]
    entry, warnings = entry_of(tmp_path, "sharegpt", TOOLS, CUT)
    assert (entry["tags"]["function_tag"], entry["tags"]["observation_tag"]) == ("function_call", "observation")
    assert warnings == ()


def test_what_axolotl_does_not_see_is_said(tmp_path: Path) -> None:
    result = convert(set_of(tmp_path, TOOLS), tmp_path / "x.jsonl", to="sharegpt", config_for=["axolotl"])
    assert "axolotl reads no tool calls from this format; write 'openai'" in result.warnings


def test_other_entries_of_a_user_stay(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(
        '{"mine": {"file_name": "ü.json"}, "train": {"file_name": "old"}}', "utf-8"
    )
    entry_of(tmp_path, "trl", PLAIN)
    entries = json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))
    assert list(entries) == ["mine", "train"]
    assert (entries["mine"], entries["train"]["formatting"]) == ({"file_name": "ü.json"}, "openai")


@pytest.mark.parametrize(
    ("to", "lines"),
    [
        ("openai", ['type: "chat_template"', 'field_messages: "messages"', 'message_field_training: "weight"']),
        ("sharegpt", ['message_property_mappings: {"role": "from", "content": "value"}']),
        ("alpaca", ['type: "alpaca"']),
    ],
)
def test_axolotls_stanza_lists_the_files(tmp_path: Path, to: str, lines: list[str]) -> None:
    result = convert(set_of(tmp_path, PLAIN), tmp_path / "x.jsonl", to=to, config_for=["axolotl"], shards=2)
    text = (tmp_path / "x.axolotl.yaml").read_text("utf-8")
    assert text.startswith("datasets:\n  - path: ")
    assert [json.dumps(str(file)) in text for file in result.files] == [True, True]
    assert [f"\n    {line}\n" in text for line in lines] == [True] * len(lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "openai", "config_for": ["axlotl"]}, "did you mean 'axolotl'"),
        ({"to": "csv", "config_for": ["axolotl"]}, "no settings of axolotl for csv"),
        ({"to": "text", "config_for": ["llama-factory"]}, "no settings of llama-factory for text"),
        ({"to": "trl", "shape": "preference", "config_for": ["axolotl"]}, "for trl \\(preference\\)"),
        ({"to": "openai", "shards": 2, "config_for": ["llama-factory"]}, "names one file"),
        ({"to": "openai", "name": "x.jsonl.gz", "config_for": ["llama-factory"]}, "does not read .gz"),
    ],
    ids=["unknown trainer", "a table", "text", "a shape", "shards", "compressed"],
)
def test_settings_that_would_not_load_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    target = tmp_path / settings.pop("name", "x.jsonl")
    with pytest.raises(CurateError, match=message):
        convert(set_of(tmp_path, PLAIN), target, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_damaged_list_of_data_sets_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset_info.json").write_text(text, "latin-1")
    with pytest.raises(CurateError, match=r"dataset_info\.json"):
        convert(set_of(tmp_path, PLAIN), tmp_path / "x.jsonl", to="openai", config_for=["llama-factory"])
    assert (tmp_path / "dataset_info.json").read_text("latin-1") == text
