"""Pairs of chats of which people preferred one: LMSYS's Chatbot Arena and MT-Bench's human judgments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats import preference
from curate.schemas.formats.datasets import turn_lists
from curate.schemas.formats.format import Format
from curate.schemas.reading import record_keys, turns
from curate.schemas.reading.key_kinds import is_true
from curate.schemas.reading.values import MAX_NAME

NAME = "arena"
SUMMARY = (
    "Chatbot Arena's pairs: {model_a, model_b, winner, conversation_a, conversation_b}; the winner's chat is read."
)

RULE = "no_preference"
CHATS = {"a": "conversation_a", "b": "conversation_b"}
ANSWERS = {"a": "response_a", "b": "response_b"}  # lists of texts to the list of texts under `prompt`
SIDES = {"a": "model_side_a", "b": "model_side_b"}  # of each entry of `full_conversation`
WINNERS = {"model_a": "a", "a": "a", "left": "a", "model_b": "b", "b": "b", "right": "b"}
FLAGS = {"winner_model_a": "a", "winner_model_b": "b"}  # where a table has one column for each outcome
ID_KEYS = ("id", "question_id", "conversation_id", "battle_id")


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has two chats, or a prompt with two answers."""
    return _find_form(record) is not None


def parse(record: Mapping[str, object]) -> Conversation:
    """Read the winner's chat; the other is the rejected answer if only the last answer differs.

    Raises RecordError if neither was preferred.
    """
    side = _winner(record)
    other = "b" if side == "a" else "a"
    form = _find_form(record)
    assert form is not None
    chats, used = _chats(record, form)
    conversation = Conversation(None, [])
    id_key = next((key for key in ID_KEYS if record.get(key) not in (None, "")), "id")
    conversation.source_id = turns.read_source_id(conversation, record.get(id_key))
    turns.read_messages(conversation, chats[side], "role", "content")
    turns.read_other_keys(conversation, record, used | {id_key})
    if isinstance(model := record.get(f"model_{side}"), str):
        if conversation.model:  # of the record, which has those of both sides too
            conversation.metadata["model"] = conversation.model
        conversation.model = model or None
    key = CHATS[other] if form is SIDES else form[other]
    preference.keep_rejected(conversation, key, record.get(key, chats[other]), chats[other])
    return conversation


def _find_form(record: Mapping[str, object]) -> Mapping[str, str] | None:
    """Return the keys of both sides, in the form that the record has."""
    if record.get("conversation_a") and record.get("conversation_b"):
        return CHATS
    if record.get("full_conversation") and "winner" in record:
        return SIDES
    if record.get("prompt") and all(record.get(key) for key in ANSWERS.values()):
        return ANSWERS
    return None


def _winner(record: Mapping[str, object]) -> str:
    """Return the side that was preferred, `a` or `b`; raises RecordError for none, or for what is not known."""
    won = {side for key, side in FLAGS.items() if is_true(record.get(key))}
    if "winner" in record:
        name = str(record["winner"]).strip().casefold()
        won = {WINNERS[name]} if name in WINNERS else set()
        reason = f"the winner is {turns.preview(record['winner'])[:MAX_NAME]!r}"
    else:
        reason = "the record names no winner"
    if len(won) != 1:
        raise RecordError(RULE, f"{reason}: neither of the two answers was preferred", turns.preview(record))
    return won.pop()


def _chats(record: Mapping[str, object], form: Mapping[str, str]) -> tuple[dict[str, list[object]], frozenset[str]]:
    """Return the turns of both sides, and the keys that hold them."""
    if form is CHATS:
        return {side: _turns(record[key], key) for side, key in form.items()}, frozenset(form.values())
    if form is SIDES:
        exchanges = record["full_conversation"]
        return {side: _side_of(exchanges, key) for side, key in form.items()}, frozenset({"full_conversation"})
    prompts = _texts(record, "prompt")
    return {side: _zip(prompts, _texts(record, key), key) for side, key in form.items()}, frozenset(
        {"prompt", *form.values()}
    )


def _turns(value: object, key: str) -> list[object]:
    return turn_lists.expand_turns(record_keys.read_turn_list(Conversation(None, []), value, key))


def _zip(prompts: Sequence[object], answers: Sequence[object], key: str) -> list[object]:
    if len(answers) != len(prompts):
        reason = f"'prompt' has {len(prompts)} texts and {key!r} has {len(answers)}"
        raise RecordError("bad_turn", reason, turns.preview(answers))
    return turn_lists.expand_turns(
        [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    )


def _texts(record: Mapping[str, object], key: str) -> list[object]:
    """Return a prompt or an answer, or those of several exchanges: a text, a list, or a list as JSON text."""
    value = record[key]
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = record_keys.read_turn_list(Conversation(None, []), value, key)
    return value if isinstance(value, list) else [value]


def _side_of(value: object, key: str) -> list[object]:
    """Return the turns of one side; an entry has the user's turn and both models'."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RecordError("bad_turn", "'full_conversation' is not a list of objects", turns.preview(value))
    return [turn for item in value for turn in _entry_turns(item, key)]


def _entry_turns(entry: Mapping[str, object], key: str) -> list[object]:
    """Return the turns of the user and of one side in an entry; its other keys stay with the first."""
    turns_of_entry = [entry[name] for name in ("user", key) if entry.get(name) is not None]
    others = {name: value for name, value in entry.items() if name != "user" and name not in SIDES.values()}
    if others and turns_of_entry and isinstance(first := turns_of_entry[0], dict):
        turns_of_entry[0] = {**first, "entry": others}
    return turns_of_entry


FORMATS = (
    Format(
        NAME,
        SUMMARY,
        recognises,
        parse,
        writes=False,
        requires=("winner", "conversation_a", "conversation_b"),
        turn_keys=frozenset({"role", "content"}),
    ),
)
