"""The nearest format of a record that no format recognises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import formats
from curate.schemas.nearest import REQUIRED, describe_nearest, nearest_format

TURNS = [{"role": "user", "content": "Hi"}]
VALUES: st.SearchStrategy[object] = (
    st.none() | st.text(max_size=5) | st.just(TURNS) | st.just([]) | st.just([{"from": "x"}]) | st.just({"a": {}})
)


@pytest.mark.parametrize(
    ("record", "name", "missing"),
    [
        pytest.param({"chats": [{"text": "a", "sender": "human"}]}, "claude", ["chat_messages"], id="Claude"),
        pytest.param({"maps": {"r": {"parent": None}}}, "chatgpt", ["mapping"], id="ChatGPT"),
        pytest.param({"dialog": TURNS}, "openai", ["messages"], id="another key"),
        pytest.param({"chat": [{"from": "a", "value": "b"}]}, "sharegpt", ["conversations"], id="ShareGPT's turns"),
        pytest.param({"conversation": [["a", "b"]]}, "sharegpt", ["conversations"], id="singular"),
        pytest.param({"prompt": "a", "completion": "b"}, "alpaca", ["instruction", "output"], id="prompt"),
        pytest.param({"instruction": "a", "response": "b"}, "alpaca", ["output"], id="one key of two"),
    ],
)
def test_the_nearest_format_and_its_missing_keys(record: dict[str, Any], name: str, missing: list[str]) -> None:
    assert nearest_format(record) == (name, missing)


def test_a_key_that_may_be_meant_is_named() -> None:
    assert describe_nearest({"dialog": TURNS}) == (
        "the nearest format is openai: 'messages' is missing (the record has 'dialog')"
    )
    assert describe_nearest({"a": "b"}) == "the nearest format is alpaca: 'instruction' and 'output' are missing"


@given(
    st.dictionaries(st.text(max_size=12) | st.sampled_from(["instruction", "output", "message"]), VALUES, max_size=5)
)
def test_with_the_missing_keys_a_record_is_of_the_format(record: dict[str, Any]) -> None:
    try:
        formats.parse(record)
    except RecordError as error:
        if error.rule == "unknown_format":
            name, missing = nearest_format(record)
            assert missing and set(missing) <= set(REQUIRED[name])
            recognises = formats.get(name).recognises
            assert recognises is not None and recognises({**record, **dict.fromkeys(missing, TURNS)})
            assert name in describe_nearest(record)


def test_every_format_with_records_of_its_own_is_considered() -> None:
    others = ("jsonl", "parquet", "preference", "pairs")  # curate's own, and those without a key that must be there
    own = {item.parse for item in formats.FORMATS.values() if item.parse and item.name not in others}
    assert {formats.FORMATS[name].parse for name in REQUIRED} == own
