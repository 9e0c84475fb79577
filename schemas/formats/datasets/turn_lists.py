"""Turns under other names: LMSYS-Chat-1M, WildChat, UltraChat, XTuner, Firefly, and lists like theirs.

What differs is the key of the list, the keys of a turn (`speaker`, `utterance`), or the unit of the list: a prompt with
its answer in one object or one pair, or texts that alternate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Role
from curate.schemas.formats.format import Format
from curate.schemas.reading import turns
from curate.schemas.reading.turn import roles, sides

KEYS = ("turns", "thread", "dialog", "dialogue", "dialogs", "chat", "utterances", "transcript", "rounds", "data")
_KEYS = frozenset(KEYS)
ID_KEYS = ("id", "conversation_id", "conversation_hash", "dialog_id", "dialogue_id", "chat_id", "thread_id", "uuid")
PERSONAL_KEYS = ("hashed_ip", "header")  # of WildChat's people: an address's hash, and a browser's headers


def recognises_lmsys(record: Mapping[str, object]) -> bool:
    """Return whether a record has its turns in a list named `conversation`."""
    return is_turn_list(record.get("conversation"))


def recognises_wildchat(record: Mapping[str, object]) -> bool:
    """Return whether a record has a list named `conversation`, and WildChat's keys beside it or in its turns."""
    if not recognises_lmsys(record):
        return False
    first = record["conversation"][0]  # type: ignore[index]
    return any(key in record or key in first for key in (*PERSONAL_KEYS, "conversation_hash"))


def recognises_ultrachat(record: Mapping[str, object]) -> bool:
    """Return whether a record has an id and alternating texts under `data`."""
    data = record.get("data")
    return "id" in record and isinstance(data, list) and len(data) > 1 and all(isinstance(text, str) for text in data)


def recognises_turns(record: Mapping[str, object]) -> bool:
    """Return whether a record has turns under another known name."""
    return list_key(record) is not None


def list_key(record: Mapping[str, object]) -> str | None:
    """Return the key of a record's list of turns under another name, or of texts that may be turns."""
    if _KEYS.isdisjoint(record):
        return None
    return next((key for key in KEYS if is_turn_list(record.get(key)) or _is_text_list(key, record)), None)


def is_turn_list(value: object) -> bool:
    """Return whether a value is a list whose first entry is a turn, or a prompt with its answer."""
    if not isinstance(value, list) or not value:
        return False
    first = value[0]
    return is_pair(first) or (isinstance(first, dict) and (turns.has_role(first) or _has_speaker(first)))


def _has_speaker(item: Mapping[str, object]) -> bool:
    """Return whether an object names who speaks beside a text, or by the keys of its texts."""
    is_named = any(isinstance(item.get(key), str) for key in roles.SPEAKER_KEYS)
    return (is_named and any(item.get(key) is not None for key in turns.TEXT_KEYS)) or bool(sides.find_sides(item))


def is_pair(item: object) -> bool:
    """Return whether an entry is a list of two texts."""
    return isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _is_text_list(key: str, record: Mapping[str, object]) -> bool:
    value = record.get(key)
    return key != "data" and isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def parse_lmsys(record: Mapping[str, object]) -> Conversation:
    """Read one record; raises RecordError if its meaning is not clear."""
    return _parse(record, "conversation", record["conversation"])


def parse_wildchat(record: Mapping[str, object]) -> Conversation:
    """Read one record without its personal data; raises RecordError if its meaning is not clear."""
    items = record["conversation"]
    assert isinstance(items, list)
    removed = sorted(
        {key for item in (record, *items) if isinstance(item, dict) for key in PERSONAL_KEYS if key in item}
    )
    conversation = _parse(_without_personal(record), "conversation", list(map(_without_personal, items)))
    if removed:
        conversation.edit("personal_data", None, ", ".join(removed), "", len(removed))
    return conversation


def remove_personal(conversation: Conversation) -> None:
    """Remove WildChat's personal data from the metadata of a record in another shape."""
    removed = [key for key in PERSONAL_KEYS if conversation.metadata.pop(key, None) is not None]
    conversation.edit("personal_data", None, ", ".join(removed), "", len(removed))


def _without_personal(item: object) -> Mapping[str, object]:
    if not isinstance(item, dict):
        return item  # type: ignore[return-value]
    return {key: value for key, value in item.items() if key not in PERSONAL_KEYS}


def parse_ultrachat(record: Mapping[str, object]) -> Conversation:
    """Read one record, whose texts are prompt, answer, prompt, answer, …"""
    texts = record["data"]
    assert isinstance(texts, list)
    roles = ("user", "assistant")
    items = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    return _parse(record, "data", items)


def parse_turns(record: Mapping[str, object]) -> Conversation:
    """Read one record; raises RecordError if its meaning is not clear, as with texts that name no role."""
    key = list_key(record)
    assert key is not None
    if _is_text_list(key, record):
        reason = (
            f"{key!r} is a list of texts that name no role; if they alternate from prompt to answer, name it 'data'"
        )
        raise RecordError("unclear_roles", f"{reason} beside an 'id', as UltraChat does", turns.preview(record[key]))
    return _parse(record, key, record[key])


def _parse(record: Mapping[str, object], key: str, items: object) -> Conversation:
    assert isinstance(items, list)
    conversation = Conversation(None, [])
    id_key = next((name for name in ID_KEYS if record.get(name) not in (None, "")), "id")
    conversation.source_id = turns.read_source_id(conversation, record.get(id_key))
    turns.read_messages(conversation, expand_turns(items), "role", "content")
    turns.read_other_keys(conversation, record, frozenset({key, id_key}))
    return conversation


def has_other_turns(items: Sequence[object]) -> bool:
    """Return whether a list's first entry has no role under a usual key, or personal data; at little cost."""
    first = items[0] if items else None
    return first.__class__ is not dict or "hashed_ip" in first or not ("from" in first or "role" in first)


def read_other_turns(conversation: Conversation, items: Sequence[object]) -> list[object]:
    """Return the turns of a list, of which an entry may be a prompt with its answer, without personal data."""
    expanded = expand_turns(items)
    removed = {key for turn in expanded if isinstance(turn, dict) for key in PERSONAL_KEYS if key in turn}
    if "hashed_ip" in removed:
        conversation.edit("personal_data", None, ", ".join(sorted(removed)), "", len(removed))
        return [_without_personal(turn) for turn in expanded]
    return expanded


def expand_turns(items: Sequence[object]) -> list[object]:
    """Return the turns of a list, of which an entry may be a prompt with its answer; one that is no turn stays."""
    if all(is_pair(item) for item in items):
        return _expand_pairs(items)
    return [turn for item in items for turn in (sides.split_sides(item) if isinstance(item, dict) else [item])]


def _expand_pairs(items: Sequence[object]) -> list[object]:
    """Return the turns of pairs, which are all of role and text, or all of prompt and answer."""
    pairs = [item for item in items if isinstance(item, list)]
    if all(_is_role(first) for first, _ in pairs):
        return [{"role": role, "content": text} for role, text in pairs]
    return [turn for prompt, answer in pairs for turn in _exchange({"user": prompt, "assistant": answer})]


def _is_role(name: str) -> bool:
    return roles.known_role(name) is not None


def _exchange(texts: Mapping[Role, object]) -> list[object]:
    return [{"role": role, "content": text} for role, text in texts.items()]


_USUAL = frozenset({"role", "content"})
FORMATS = (
    Format(
        "wildchat",
        "WildChat: {conversation_hash, conversation: [{role, content, toxic, …}], …}, without hashed IPs and headers.",
        recognises_wildchat,
        parse_wildchat,
        writes=False,
        requires=("conversation_hash", "conversation"),
        turn_keys=_USUAL | {"hashed_ip"},
    ),
    Format(
        "lmsys",
        "LMSYS-Chat-1M: {conversation_id, conversation: [{role, content}], …}; such lists of XTuner and Firefly.",
        recognises_lmsys,
        parse_lmsys,
        writes=False,
        requires=("conversation_id", "conversation"),
        turn_keys=_USUAL,
    ),
    Format(
        "ultrachat",
        "UltraChat: {id, data: [prompt, answer, …]}, texts that alternate.",
        recognises_ultrachat,
        parse_ultrachat,
        writes=False,
        requires=("data",),
        holds="a list of two texts or more",
    ),
    Format(
        "turns",
        "Turns under other names: thread, turns, dialog, …; {speaker, utterance}, {user, assistant}, [prompt, answer].",
        recognises_turns,
        parse_turns,
        writes=False,
        requires=("turns",),
        turn_keys=frozenset({"speaker", "utterance"}),
    ),
)
