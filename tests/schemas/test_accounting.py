"""Nothing vanishes: each key of a record is found again in what is read from it, or the record is rejected."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import Conversation, formats
from curate.schemas.reading import key_kinds
from curate.schemas.reading.options import ReadOptions
from tests.schemas.formats.examples import EXAMPLES
from tests.support.records import RICH, Record

SENTINEL = "-" * 200 + "zqxj"  # longer than the excerpts of edits
RECORDS = {name: [*EXAMPLES.get(name, []), *RICH.get(name, [])] for name in sorted({*EXAMPLES, *RICH})}
KNOWN_KEYS = sorted(
    {*key_kinds.SPECIAL_KEYS, "refusal", "name", "tool_calls", "function_call", "tools", "system", "annotations"}
    | {"text", "content", "value", "from", "role", "title", "model", "id", "history", "type", "parts", "metadata"}
    | {"reasoning_content", "thinking", "context", "documents", "weight", "status", "finish_reason", "channel"}
    | {"tool_call_id", "user", "human", "gpt", "question", "answer", "utterance", "speaker", "files", "rank"}
    | {"executableCode", "functionCall", "functionResponse", "thought", "isThought", "arguments", "args", "extra"}
)
VALUES = st.sampled_from(
    [
        SENTINEL,
        [SENTINEL],
        {"a": SENTINEL},
        [{"a": SENTINEL}],
        {"text": SENTINEL},
        [{"type": "text", "text": SENTINEL}],
        [{"type": "thing", "thing": SENTINEL}],
        [{"role": "assistant", "content": SENTINEL}],
        {"role": "user", "content": SENTINEL},
        [[SENTINEL, SENTINEL]],
    ]
)


def objects(value: object) -> Iterator[dict[str, Any]]:
    """Yield every object within a value."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from objects(item)


def everything(conversation: Conversation) -> str:
    """Return all texts that are kept of a record: of messages, metadata, edits and flaws."""
    return json.dumps(dataclasses.asdict(conversation), ensure_ascii=False)


def nodes(name: str, record: Record) -> list[dict[str, Any]]:
    """Return the objects of a record, but for what is left out by name: private data, branches without an answer."""
    left_out = [record.get("mapping")] if name == "chatgpt" else []
    left_out += [record["chat"]["history"]["messages"]] if name == "open_webui" else []
    left_out += [each["header"] for each in objects(record) if name == "wildchat" and "header" in each]
    return [each for each in objects(record) if not any(each is one for one in left_out)]


@pytest.mark.parametrize(
    "record",
    [
        {"conversation": [{"role": "user", "content": "Hi", "value": SENTINEL}]},
        {"conversation": [{"role": "user", "content": "Hi"}, {"role": "assistant", "text": SENTINEL, "content": "Yo"}]},
        {"contents": [{"role": "user", "parts": [{"text": SENTINEL, "functionCall": {"name": "f"}}]}]},
        {"contents": [{"role": "user", "parts": [{"text": "Hi", "role": SENTINEL}]}]},
        {"chunkedPrompt": {"chunks": [{"role": "user", "text": "Hi", "parts": [{"text": SENTINEL}]}]}},
        {"chunkedPrompt": {"chunks": [{"role": "model", "text": "Hi", "executableCode": {"code": SENTINEL}}]}},
        {"chunkedPrompt": {"chunks": [{"role": "model", "text": SENTINEL, "isThought": True, "type": {"a": 1}}]}},
        {"chat_messages": [{"sender": "human", "text": SENTINEL, "content": [{"type": "text", "text": "Hi"}]}]},
    ],
    ids=repr,
)  # fmt: skip
def test_a_second_spelling_is_kept(record: Record) -> None:
    assert SENTINEL in everything(formats.parse(record))


def test_two_answers_in_one_object_are_not_joined() -> None:
    with pytest.raises(RecordError, match="differ under 'answer', 'response'"):
        formats.parse({"messages": [{"question": "Why?", "answer": "So.", "response": "No."}]})


@pytest.mark.parametrize("name", list(RECORDS))
@given(st.data())
def test_no_key_vanishes(name: str, data: st.DataObject) -> None:
    record = copy.deepcopy(data.draw(st.sampled_from(RECORDS[name])))
    node = data.draw(st.sampled_from(nodes(name, record)))
    key = data.draw(st.sampled_from(KNOWN_KEYS) | st.text(max_size=8))
    assume(key not in node)
    node[key] = data.draw(VALUES)
    try:
        conversations = formats.parse_all(record, ReadOptions(branches=True))
    except RecordError:
        return  # rejected with its bytes
    if not any(SENTINEL in everything(conversation) for conversation in conversations):
        edits = [edit for conversation in conversations for edit in conversation.edits]
        assert any(edit.rule == "personal_data" and key in edit.before for edit in edits)
