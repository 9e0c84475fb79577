"""The table of formats, and the parser that recognises a record's format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from curate.errors import InputError, RecordError, did_you_mean
from curate.schemas.conversation import Conversation
from curate.schemas.formats import (
    alpaca,
    chatgpt_export,
    claude_export,
    native,
    openai,
    pairs,
    preference,
    sharegpt,
    vicuna,
)
from curate.schemas.reading import columns, record_keys, turns
from curate.schemas.reading.key_kinds import SPECIAL_KEYS
from curate.schemas.reading.options import DEFAULT, ReadOptions

Record = Mapping[str, object]


@dataclass(frozen=True)
class Format:
    """One format: how its records are recognised and parsed, and how a conversation is written.

    `recognises` and `parse` are None for a format that is only written, `dump` for one without a record of its own.
    `dump` raises RecordError for a conversation that the format cannot express. `parse_all` is there for a format with
    options, or whose record can hold several conversations: it returns at least one.
    """

    name: str
    summary: str
    recognises: Callable[[Record], bool] | None = None
    parse: Callable[[Record], Conversation] | None = None
    dump: Callable[[Conversation], dict[str, object]] | None = None
    array: bool = False  # written as one JSON array, not as lines
    writes: bool = True
    parse_all: Callable[[Record, ReadOptions], Sequence[Conversation]] | None = None

    @property
    def reads(self) -> bool:
        """Whether records of this format can be read."""
        return self.parse is not None


FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        Format(sharegpt.NAME, sharegpt.SUMMARY, sharegpt.recognises, sharegpt.parse, sharegpt.dump),
        Format(native.NAME, native.SUMMARY, native.recognises, native.parse, native.dump),
        Format(
            chatgpt_export.NAME,
            chatgpt_export.SUMMARY,
            chatgpt_export.recognises,
            chatgpt_export.parse,
            writes=False,
            parse_all=chatgpt_export.parse_all,
        ),
        Format(
            claude_export.NAME,
            claude_export.SUMMARY,
            claude_export.recognises,
            claude_export.parse,
            writes=False,
            parse_all=claude_export.parse_all,
        ),
        Format(openai.NAME, openai.SUMMARY, openai.recognises, openai.parse, openai.dump),
        Format(alpaca.NAME, alpaca.SUMMARY, alpaca.recognises, alpaca.parse, alpaca.dump),
        Format(preference.NAME, preference.SUMMARY, preference.recognises, preference.parse, writes=False),
        Format(pairs.NAME, pairs.SUMMARY, pairs.recognises, pairs.parse, writes=False),
        Format(vicuna.NAME, vicuna.SUMMARY, sharegpt.recognises, sharegpt.parse, vicuna.dump, array=True),
        Format(
            "parquet",
            "A Parquet file with the columns of curate's own lines, lossless.",
            native.recognises,
            native.parse,
            native.dump,
        ),
        Format(
            "hf", "A folder that datasets.load_from_disk opens: train and eval, with the columns of curate's own lines."
        ),
        Format("rendered", "Training data for TRL, axolotl and others: {input_ids, attention_mask, labels}, checked."),
        Format("text", "Each conversation as rendered text, below a line with its id."),
    )
}
_SHARED = ("vicuna", "parquet")  # their records are read by another format's module
# In the order of FORMATS, which matters: curate's own lines also look like OpenAI's.
_READERS = tuple(item for item in FORMATS.values() if item.reads and item.name not in _SHARED)
_CHATS = tuple((item.recognises, item.parse) for item in (sharegpt, openai, alpaca))

PROBLEMS: dict[str, str] = {
    "not_a_record": "The record is null, text, a number or a list, not an object.",
    "unknown_format": "The record is an object without a list of turns under a key of any known format.",
    "no_messages": "The record has no turns: the list is missing, null, empty or not a list.",
    "bad_turn": "A turn is null or not an object.",
    "bad_value": "A turn's content is not text and has no text in it: an object, true or false.",
    "several_answers": "An answer is a list of texts that differ, which may be alternatives or parts of one answer.",
    "two_chats": "The row holds two chats that differ, such as `conversations` beside `messages`.",
    "bad_preference": "A preference pair has no chosen answer, no prompt, or turns that contradict the chosen answer.",
    "missing_column": "The record lacks a key that --columns names.",
    "unknown_role": "A turn's role is unknown, or missing and not clear from its neighbours.",
}

_TURN_KEYS = ("conversations", "items", "messages")
_METADATA = frozenset({"id", "title", "model", "url", "created", "create_time", "created_at", "plugins", *_TURN_KEYS})


def get(name: str) -> Format:
    """Return a format by name; raises InputError, with the nearest name, for an unknown one."""
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def parse(value: object, options: ReadOptions = DEFAULT) -> Conversation:
    """Read one decoded record, or its first conversation if it holds several; raises RecordError as `parse_all`."""
    return parse_all(value, options)[0]


def parse_all(value: object, options: ReadOptions = DEFAULT) -> Sequence[Conversation]:
    """Read the conversations of one decoded record, nearly always one.

    Raises RecordError if the record cannot be read, or if it is not of the format that the options name.
    """
    if not isinstance(value, dict):
        raise RecordError(
            "not_a_record", f"the record is {turns.describe_type(value)}, not an object", turns.preview(value)
        )
    if options.columns:
        return _parse_columns(value, options)
    try:
        if (form := _recognise(value, options.format)) is not None:
            return _read(value, form, options)
    except RecursionError:
        raise RecordError("bad_value", "the record is nested too deep to be read") from None
    if (wrapper := _wrapper(value)) is not None:
        return [_parse_wrapped(value, wrapper, options)]
    raise _of_another_format(value, options.format) if options.format else _unrecognised(value)


def _parse_columns(record: Record, options: ReadOptions) -> Sequence[Conversation]:
    """Read a record by the keys that the options name; its other keys become metadata."""
    chosen, rest = columns.select(record, options.columns)
    conversations = parse_all(chosen, replace(options, columns=()))
    for conversation in conversations:
        for key, value in rest.items():
            conversation.metadata.setdefault(key, turns.to_plain_json(value))
    return conversations


def _of_another_format(record: Record, name: str) -> RecordError:
    """Return why a record is not read, where only one format is to be read."""
    other = _recognise(record, "")
    seems = f"; it seems to be {other.name}" if other else f"; its keys: {turns.quote_keys(list(record))}"
    return RecordError("unknown_format", f"the record is not of the format {name!r}{seems}", turns.preview(record))


def _recognise(record: Record, name: str) -> Format | None:
    """Return the format of a record; with a name, that format if the record is of it."""
    readers = (get(name),) if name else _READERS
    return next((form for form in readers if form.recognises and form.recognises(record)), None)


def _read(record: Record, form: Format, options: ReadOptions) -> Sequence[Conversation]:
    if form.parse_all is not None:
        return form.parse_all(record, options)
    assert form.parse is not None
    conversation = form.parse(record)
    metadata = conversation.metadata
    if metadata and form.parse is not native.parse and not SPECIAL_KEYS.isdisjoint(metadata):
        record_keys.read_special_keys(conversation, _CHATS)
    return [conversation]


def _wrapper(record: Record) -> str | None:
    """Return the only key of a record whose value is a record with turns, if no other key has the same name in both."""
    keys = [
        key
        for key, value in record.items()
        if isinstance(value, dict) and any(recognises(value) for recognises, _ in _CHATS)
    ]
    if len(keys) != 1:
        return None
    inner = record[keys[0]]
    return keys[0] if isinstance(inner, dict) and inner.keys().isdisjoint(record) else None


def _parse_wrapped(record: Record, wrapper: str, options: ReadOptions) -> Conversation:
    """Read a record within another, such as a request of OpenAI's batches, with the keys beside it."""
    inner = record[wrapper]
    assert isinstance(inner, dict)
    conversation = parse({**{key: value for key, value in record.items() if key != wrapper}, **inner}, options)
    conversation.edit("record_unwrapped", None, wrapper, "")
    return conversation


def _unrecognised(record: Record) -> RecordError:
    """Return why no format recognises the record: it has no turns, or none under a known key."""
    for key in _TURN_KEYS:
        if key in record:
            if record[key] is None:
                return RecordError("no_messages", f"{key!r} is null", turns.preview(record))
            return RecordError("no_messages", f"{key!r} is empty", turns.preview(record[key]))
    keys = f"; its keys: {turns.quote_keys(list(record))}" if record else "; it is empty"
    if _METADATA.issuperset(record):
        return RecordError("no_messages", f"the record has no 'conversations'{keys}", turns.preview(record))
    expected = "conversations, items, messages, or a prompt with its answer, such as instruction and output"
    return RecordError("unknown_format", f"no {expected}{keys}", turns.preview(record))
