"""The table of formats, and the parser that recognises a record's format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from curate.errors import InputError, RecordError, did_you_mean
from curate.schemas.conversation import Conversation
from curate.schemas.formats import (
    alpaca,
    labelling,
    native,
    openai,
    pairs,
    preference,
    responses,
    sharegpt,
    trl,
    vicuna,
)
from curate.schemas.formats.datasets import (
    arena,
    comparisons,
    marked_text,
    moss,
    oasst,
    self_instruct,
    smoltalk,
    turn_lists,
)
from curate.schemas.formats.exports import ai_studio, chatgpt, claude, gemini, open_webui
from curate.schemas.formats.format import Format as Format
from curate.schemas.formats.format import Record
from curate.schemas.nearest import Nearest, Requirement
from curate.schemas.reading import columns, record_keys, turns, whole_tables
from curate.schemas.reading.key_kinds import SPECIAL_KEYS
from curate.schemas.reading.options import DEFAULT, ReadOptions

FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        sharegpt.FORMAT,
        native.FORMAT,
        chatgpt.FORMAT,
        claude.FORMAT,
        open_webui.FORMAT,
        openai.FORMAT,
        responses.FORMAT,
        gemini.FORMAT,
        *ai_studio.FORMATS,
        *comparisons.FORMATS,
        alpaca.FORMAT,
        trl.FORMAT,
        labelling.FORMAT,
        preference.FORMAT,
        pairs.STEPWISE_FORMAT,
        *arena.FORMATS,
        pairs.FORMAT,
        *oasst.FORMATS,
        *self_instruct.FORMATS,
        *turn_lists.FORMATS,
        *moss.FORMATS,
        *marked_text.FORMATS,
        vicuna.FORMAT,
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
_NEAREST = Nearest(  # of equally near ones, the first: rather a usual shape than one data set's
    [
        Requirement(item.name, item.requires, item.turn_keys, item.holds)
        for item in sorted(FORMATS.values(), key=lambda item: item in comparisons.FORMATS)
        if item.requires
    ]
)
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
    "no_preference": "Answers of which none was preferred: a tie, both bad, no winner, or no scores.",
    "tree_row": "The record is one message of a tree, and no rows near it link it to the tree's first message.",
    "unclear_roles": "A text or a list of texts does not say clearly who speaks.",
    "by_columns": "The object is a whole table by columns, as pandas writes it, not one record.",
    "truncated_row": "The row comes from the Hub's server, which cut some of its cells.",
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
        if "columns" in value and whole_tables.is_split(value):
            raise RecordError("unknown_format", "", turns.preview(value))
        return _parse_record(value, options)
    except RecordError as error:
        if (reason := whole_tables.describe_table(value)) is not None:
            raise RecordError(whole_tables.RULE, reason, error.evidence) from None
        raise


def _parse_record(value: Record, options: ReadOptions) -> Sequence[Conversation]:
    try:
        if (form := _recognise(value, options.format)) is not None:
            return _read(value, form, options)
    except RecursionError:
        raise RecordError("bad_value", "the record is nested too deep to be read") from None
    if (renamed := _lower_keys(value)) is not None and _recognise(renamed, options.format) is not None:
        return [_with_edit(each, "key_case", value) for each in parse_all(renamed, options)]
    if (key := _record_key(value)) is not None:
        return [_parse_nested(value, key, options)]
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
    for form in (get(name),) if name else _READERS:
        if form.recognises and form.recognises(record):
            return form
    return None


def _read(record: Record, form: Format, options: ReadOptions) -> Sequence[Conversation]:
    if form.parse_all is not None:
        conversations = form.parse_all(record, options)
        for conversation in conversations:
            _read_metadata(conversation)
        return conversations
    assert form.parse is not None
    conversation = form.parse(record)
    metadata = conversation.metadata
    if metadata and form.parse is not native.parse:
        _read_metadata(conversation)
    return [conversation]


def _read_metadata(conversation: Conversation) -> None:
    """Read the keys of a known kind in the metadata."""
    if not SPECIAL_KEYS.isdisjoint(conversation.metadata):
        record_keys.read_special_keys(conversation, _CHATS)
    record_keys.read_beside(conversation)
    record_keys.flag_marks(conversation)
    if "hashed_ip" in conversation.metadata:
        turn_lists.remove_personal(conversation)
    if smoltalk.KEY in conversation.metadata:
        smoltalk.read_settings(conversation)


def _lower_keys(record: Record) -> Record | None:
    """Return a record with its keys in lower case, as the columns of spreadsheets often are not; None if they are."""
    keys = [key.strip().lower().replace(" ", "_") for key in record]
    return (
        dict(zip(keys, record.values(), strict=True)) if keys != list(record) and len(set(keys)) == len(keys) else None
    )


def _with_edit(conversation: Conversation, rule: str, record: Record) -> Conversation:
    conversation.edit(rule, None, turns.quote_keys(list(record)), "")
    return conversation


def _record_key(record: Record) -> str | None:
    """Return the only key of a record whose value is a record with turns, if no other key has the same name in both."""
    if "row_idx" in record and isinstance(record.get("row"), dict):
        return "row"  # of the Hub's server of rows
    keys = [
        key
        for key, value in record.items()
        if isinstance(value, dict) and any(recognises(value) for recognises, _ in _CHATS)
    ]
    if len(keys) != 1:
        return None
    inner = record[keys[0]]
    return keys[0] if isinstance(inner, dict) and inner.keys().isdisjoint(record) else None


def _parse_nested(record: Record, outer: str, options: ReadOptions) -> Conversation:
    """Read a record within another, such as a request of OpenAI's batches, with the keys beside it."""
    inner = record[outer]
    assert isinstance(inner, dict)
    if cells := record.get("truncated_cells"):
        raise RecordError("truncated_row", f"the row's cells {cells} were cut by the server", turns.preview(inner))
    conversation = parse({**{key: value for key, value in record.items() if key != outer}, **inner}, options)
    conversation.edit("record_unwrapped", None, outer, "")
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
    if turns.role_of(record) and any(key in record for key in turns.TEXT_KEYS):
        reason = "the record is one turn, not a chat; put the turns of each chat in a list, under 'messages'"
        return RecordError("unknown_format", f"{reason}{keys}", turns.preview(record))
    return RecordError(
        "unknown_format", f"{_NEAREST.describe(record)}{keys}{columns.suggest(record)}", turns.preview(record)
    )
