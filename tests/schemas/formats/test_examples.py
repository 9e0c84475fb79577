"""Every format: an example is recognised, read, described by a JSON Schema, and named when a key is misspelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import RecordError
from curate.schemas import Conversation, Message, formats
from curate.schemas.reading.options import ReadOptions
from curate.schemas.writing import WriteOptions
from tests.schemas.formats.examples import ANSWER, CHAT, EXAMPLES, PROMPT, READ, ROWS, WORSE, Record

FOLDER = Path(formats.__file__).parent / "records"
WITHOUT_SCHEMA = {"parquet", "hf", "csv", "text"}  # not records of JSON; the first two have the columns of jsonl
OWN = {"jsonl", "vicuna", "parquet", "csv"}  # written by curate


def schema(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((FOLDER / f"{name}.schema.json").read_text("utf-8")))


def examples() -> Iterator[tuple[str, Record]]:
    return ((name, record) for name, records in EXAMPLES.items() for record in records)


EACH = pytest.mark.parametrize(("name", "record"), [pytest.param(*each, id=each[0]) for each in examples()])


def test_every_format_that_is_read_has_an_example_and_a_schema() -> None:
    assert set(EXAMPLES) == {name for name, form in formats.FORMATS.items() if form.reads} - OWN
    schemas = {path.name.removesuffix(".schema.json") for path in FOLDER.iterdir()}
    assert schemas == set(formats.FORMATS) - WITHOUT_SCHEMA
    for name in schemas:
        jsonschema.Draft202012Validator.check_schema(schema(name).schema)


@EACH
def test_an_example_is_read_as_its_format_whatever_is_asked_for(name: str, record: Record) -> None:
    for options in (ReadOptions(), ReadOptions(format=name)):
        conversation = formats.parse(record, options)
        assert [(message.role, message.content) for message in conversation.messages] == READ
    recognised = next(form.name for form in formats.FORMATS.values() if form.recognises and form.recognises(record))
    assert recognised == name


@EACH
def test_an_example_fits_the_schema_of_its_format_and_not_that_of_rows(name: str, record: Record) -> None:
    schema(name).validate(record)
    assert schema("oasst_rows").is_valid(record) == (name == "oasst_rows")
    assert schema("oasst_rows").is_valid(ROWS)


@EACH
def test_a_record_without_its_required_keys_does_not_fit_the_schema(name: str, record: Record) -> None:
    assert not schema(name).is_valid({})
    assert not schema(name).is_valid([record])


@EACH
def test_an_example_with_a_misspelled_key_is_rejected_with_a_format_and_the_key(name: str, record: Record) -> None:
    form = formats.get(name)
    for key in form.requires:
        if key not in record or form.requires[-1] not in record:
            continue
        misspelled = {f"{other}_x" if other == key else other: value for other, value in record.items()}
        if form.recognises and form.recognises(misspelled):
            continue  # the key is usual, but not needed
        try:
            formats.parse(misspelled)
        except RecordError as error:
            assert "nearest format" in error.reason or error.rule != "unknown_format"


@EACH
def test_other_keys_of_an_example_become_metadata(name: str, record: Record) -> None:
    conversation = formats.parse({**record, "other": {"mark": [1, None]}, "note": "n"})
    assert conversation.metadata["other"] == {"mark": [1, None]}
    assert conversation.metadata["note"] == "n"


# ---- what curate writes

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
EXCHANGES = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)


@given(EXCHANGES, st.none() | TEXTS, st.none() | TEXTS)
def test_what_is_written_fits_the_schema_of_its_format(
    exchanges: list[tuple[str, str]], source_id: str | None, system: str | None
) -> None:
    messages = [Message("system", system)] if system else []
    for prompt, reply in exchanges:
        messages += [Message("user", prompt), Message("assistant", reply)]
    conversation = Conversation(source_id, messages, model="m", metadata={"title": "T"})
    conversation.rejected_answer = [Message("assistant", WORSE)]
    for name, form in formats.FORMATS.items():
        if form.dump is None or name in WITHOUT_SCHEMA or (name == "alpaca" and len(exchanges) > 1):
            continue
        written = form.dump(conversation)
        schema(name).validate(json.loads(json.dumps(written)))


@pytest.mark.parametrize("shape", ["messages", "prompt-completion", "preference"])
def test_what_is_written_for_trl_fits_its_schema(shape: str) -> None:
    conversation = Conversation("a", [Message("user", PROMPT), Message("assistant", ANSWER)])
    conversation.rejected_answer = [Message("assistant", WORSE)]
    dump_all = formats.get("trl").dump_all
    assert dump_all is not None
    for record in dump_all(conversation, WriteOptions(shape=shape)):
        schema("trl").validate(record)
        assert [message.content for message in formats.parse(record).messages] == [PROMPT, ANSWER]


def test_a_call_of_a_tool_fits_the_schemas() -> None:
    call = '[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]'
    messages = [
        Message("user", PROMPT),
        Message("assistant", "", tool_calls=call),
        Message("tool", "{}", name="f"),
        Message("assistant", ANSWER, train=False),
    ]
    for name in ("sharegpt", "openai", "jsonl"):
        form = formats.get(name)
        assert form.dump is not None
        schema(name).validate(form.dump(Conversation("a", messages)))


# ---- the rejected answer


@pytest.mark.parametrize("name", ["preference", "arena"])
def test_the_rejected_answer_is_beside_the_messages(name: str) -> None:
    for record in EXAMPLES[name]:
        conversation = formats.parse(record)
        assert [(message.role, message.content) for message in conversation.rejected_answer] == [("assistant", WORSE)]
        assert WORSE not in json.dumps(conversation.metadata)


@pytest.mark.parametrize(
    ("rejected", "reason"),
    [
        ([{"role": "user", "content": "Which nut?"}, {"role": "assistant", "content": WORSE}], "another prompt"),
        ([*CHAT, {"role": "user", "content": "And?"}, {"role": "assistant", "content": WORSE}], "a longer chat"),
        ([WORSE, "Dust."], "two answers"),
        ({"score": 1}, "no answer"),
        ([{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}], "a picture"),
        ([{"role": "narrator", "content": WORSE}], "an unknown role"),
        (CHAT[:1], "a prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rejected_answer_that_answers_something_else_stays_in_the_metadata(rejected: object, reason: str) -> None:
    conversation = formats.parse({"prompt": PROMPT, "chosen": CHAT, "rejected": rejected})
    assert conversation.rejected_answer == []
    assert conversation.metadata == {"rejected": rejected}, reason


def test_a_rejected_answer_to_the_result_of_a_tool_is_read() -> None:
    turns = [
        {"from": "human", "value": PROMPT},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"from": "observation", "value": "1"},
    ]
    conversation = formats.parse({"conversations": turns, "chosen": ANSWER, "rejected": WORSE})
    assert [message.content for message in conversation.rejected_answer] == [WORSE]


def test_a_rejected_answer_after_the_same_call_of_a_tool_is_read() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    steps = [call, {"role": "tool", "content": "1"}]
    record = {
        "prompt": PROMPT,
        "chosen": [*steps, CHAT[1]],
        "rejected": [*steps, {"role": "assistant", "content": WORSE}],
    }
    conversation = formats.parse(record)
    assert [message.content for message in conversation.rejected_answer] == [WORSE]
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
