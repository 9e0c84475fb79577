"""The keys of a record that a user has named: which of them is its prompt, its answer, and so on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from curate.errors import RecipeError, RecordError, did_you_mean
from curate.schemas.reading.key_kinds import KINDS, Kind
from curate.schemas.reading.values import preview, quote_keys

Columns = tuple[tuple[str, str], ...]  # a key that the formats read, and the key that the record has instead

CHATS = (("prompt", "answer"), ("messages",), ("conversations",), ("chosen",))  # keys with which a record is a chat
OPTIONAL = ("system", "id", "model", "input", "history", "tools", "rejected", "label")
TARGETS = (*(key for keys in CHATS for key in keys), *OPTIONAL)
FLAGS: tuple[Kind, ...] = ("media", "bad_if_true", "bad_if_false")  # are read whatever else is named
MAX_COLUMNS, MAX_NAME = 50, 60  # of a table, and characters of a name, for which --columns is suggested
# Parts of the names of columns, in the languages of the tables that are found most.
PROMPT_NAMES = re.compile(
    r"prompt|question|instruction|query|user|human|input|frage|pregunta|pergunta|domanda|вопрос|질문|質問|问题|問題"
)
ANSWER_NAMES = re.compile(
    r"answer|completion|response|reply|output|assistant|antwort|respuesta|resposta|risposta|réponse|ответ|답변|回答|答"
)
_NEXT = re.compile(r",\s*(?=[a-z_]+=)")  # a column's own name may have commas


def parse_columns(values: Sequence[str]) -> Columns:
    """Return the columns in texts such as `prompt=question,answer=reply`; raises RecipeError for a mistake."""
    pairs = [part.partition("=") for value in values for part in _NEXT.split(value)]
    for target, equals, column in pairs:
        if not equals or not column:
            raise RecipeError(f"{target!r} names no column; write it as prompt=question,answer=reply")
        if target.strip() not in TARGETS:
            raise RecipeError(f"{target.strip()!r} cannot be a column's meaning{did_you_mean(target.strip(), TARGETS)}")
    columns = {target.strip(): column for target, _, column in pairs}
    if len(columns) < len(pairs):
        raise RecipeError("one meaning is given to two columns; name each once")
    if columns and not any(columns.keys() >= set(chat) for chat in CHATS):
        raise RecipeError(f"{quote_keys(list(columns))} is not enough for a chat; name prompt and answer, or messages")
    return tuple(columns.items())


def suggest(record: Mapping[str, object]) -> str:
    """Return the --columns to type for a record like a table's row, whose columns have names of their own; or nothing.

    The prompt and the answer are found by their names, or else are the first two columns of text.
    """
    if not 2 <= len(record) <= MAX_COLUMNS or any(isinstance(value, list | dict) for value in record.values()):
        return ""
    texts = [key for key, value in record.items() if isinstance(value, str) and value.strip() and len(key) <= MAX_NAME]
    answer = next((key for key in texts if ANSWER_NAMES.search(key.casefold())), None)
    others = [key for key in texts if key != answer]
    prompt = next((key for key in others if PROMPT_NAMES.search(key.casefold())), next(iter(others), None))
    answer = answer or next((key for key in others if key != prompt), None)
    if prompt is None or answer is None:
        return ""
    flag = shlex.quote(f"prompt={prompt},answer={answer}")
    return f"; if {prompt!r} is the prompt and {answer!r} the answer, add --columns {flag}"


def select(record: Mapping[str, object], columns: Columns) -> tuple[dict[str, object], dict[str, object]]:
    """Return a record with the keys that the formats read, and its other keys.

    Labels and media are among the first, since they say whether the record may be trained on. Raises RecordError if
    the record lacks a key without which it is no chat.
    """
    for target, column in columns:
        if record.get(column) is None and target not in OPTIONAL:
            problem = f"{column!r} is null" if column in record else f"there is no {column!r}"
            reason = f"{problem}, which is to be the {target}; the record's keys: {quote_keys(list(record))}"
            raise RecordError("missing_column", reason, preview(record))
    named = {column for _, column in columns}
    rest = {key: value for key, value in record.items() if key not in named}
    flags = {key: value for key, value in rest.items() if KINDS.get(key) in FLAGS}
    chosen = {target: record[column] for target, column in columns if record.get(column) is not None}
    return flags | chosen, {key: value for key, value in rest.items() if key not in flags}
