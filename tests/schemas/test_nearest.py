"""The nearest format of a record that no format recognises."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import formats
from curate.schemas.reading.columns import parse_columns
from curate.schemas.reading.options import ReadOptions
from tests.schemas.formats.examples import EXAMPLES, ROWS

TURNS = [{"role": "user", "content": "Hi"}]
VALUES: st.SearchStrategy[object] = (
    st.none() | st.text(max_size=5) | st.just(TURNS) | st.just([]) | st.just([{"from": "x"}]) | st.just({"a": {}})
)


def reason(record: object) -> str:
    with pytest.raises(RecordError) as caught:
        formats.parse(record)
    assert caught.value.rule == "unknown_format"
    return caught.value.reason


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"msgs": TURNS}, "openai: 'messages' is missing (the record has 'msgs': rename it 'messages')"),
        (
            {"talk": [{"from": "a", "value": "b"}]},
            "sharegpt: 'conversations' is missing (the record has 'talk': rename it",
        ),
        ({"chats": [{"text": "a", "sender": "human"}]}, "claude: 'chat_messages' is missing (the record has 'chats'"),
        ({"maps": {"r": {"parent": None}}}, "chatgpt: 'mapping' is missing (the record has 'maps'"),
        ({"prompt": "a"}, "pairs: 'completion' is missing;"),
        ({"instruction": "a", "result": "b"}, "alpaca: 'output' is missing;"),
        (
            {"instruction": "a", "outputs": ["b", "c"]},
            "alpaca: 'output' is missing (the record has 'outputs': rename it",
        ),
        ({"headline": "a", "body": "b"}, "sharegpt: 'conversations' is missing;"),
        ({"text": "a"}, "log, but 'text' is not a text with a name before each turn"),
        ({"id": "a", "data": [1, 2]}, "ultrachat, but 'data' is not a list of two texts or more"),
        (
            {"Instructions": "a", "Responses": "b"},
            "alpaca: 'instruction' and 'output' are missing (the record has 'Instructions'",
        ),
    ],
    ids=repr,
)
def test_the_reason_names_the_nearest_format_and_what_to_do(record: dict[str, Any], expected: str) -> None:
    assert reason(record).startswith(f"the nearest format is {expected}")
    assert f"; its keys: {next(iter(record))!r}" in reason(record)


@pytest.mark.parametrize(
    "record",
    [
        {"role": "user", "text": "a"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        {"from": "human", "value": "a", "id": 3},
        {"role": "Model", "parts": [{"text": "a"}]},
    ],
    ids=repr,
)
def test_a_record_that_is_one_turn_is_called_so(record: dict[str, Any]) -> None:
    assert reason(record).startswith("the record is one turn, not a chat; put the turns of each chat in a list, under ")
    assert reason({**record, next(iter(record)): "the web"}).startswith("the nearest format is")


@given(
    st.dictionaries(st.text(max_size=12) | st.sampled_from(["instruction", "output", "message"]), VALUES, max_size=5)
)
def test_any_unknown_record_has_a_nearest_format(record: dict[str, Any]) -> None:
    try:
        formats.parse(record)
    except RecordError as error:
        if error.rule == "unknown_format":
            assert any(f"the nearest format is {name}" in error.reason for name in formats.FORMATS)


NAMED = [
    (name, key)
    for name, form in formats.FORMATS.items()
    for key in form.requires[-1:]
    if name not in ("oasst_rows", "log", "preference", "chatgpt")
]


@pytest.mark.parametrize(("name", "key"), NAMED)
def test_every_format_is_named_if_its_last_key_is_misspelled(name: str, key: str) -> None:
    record = next(record for record in [*EXAMPLES[name], ROWS] if key in record)
    record = {(f"{other}z" if other == key else other): value for other, value in record.items()}
    assert (
        f"the nearest format is {name}: {key!r} is missing (the record has {key + 'z'!r}: rename it {key!r})"
        in reason(record)
    )


@pytest.mark.parametrize(
    ("columns", "flag"),
    [
        (("Frage", "Antwort"), "prompt=Frage,answer=Antwort"),
        (("답변", "질문"), "'prompt=질문,answer=답변'"),
        (("id", "prompt_text", "completion_text"), "prompt=prompt_text,answer=completion_text"),
        (("left side", "right"), "'prompt=left side,answer=right'"),
    ],
)
def test_a_table_with_columns_of_its_own_gets_the_flag_to_type(columns: tuple[str, ...], flag: str) -> None:
    record = {column: 7 if column == "id" else f"text of {column}" for column in columns}
    assert reason(record).endswith(f", add --columns {flag}")
    (typed,) = shlex.split(flag)
    options = ReadOptions(columns=parse_columns([typed]))
    assert [message.role for message in formats.parse(record, options).messages] == ["user", "assistant"]
