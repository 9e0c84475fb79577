"""Replace values in conversations by placeholders such as [EMAIL_1], the same value by the same one in all texts."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import polars as pl

from curate.filters.personal_data import matching
from curate.filters.personal_data.checks import numbers
from curate.filters.personal_data.matching import Family, Hit
from curate.schemas.conversation import EXCERPT, Conversation, Edit, Flaw

JSON_FIELDS = ("tool_calls", "extra")
PLACEHOLDER = re.compile(r"\[([A-Z][A-Z_]*)_(\d{1,9})\]")
PIECE = re.compile(r"(?<=.)_\d+\Z", re.DOTALL)  # at the end of an id
BARE = re.compile(r'(\\*")\s*:\s*$')  # before a number that is the value of a key in JSON
IN_ARRAY = re.compile(r"[\[,]\s*\[[A-Z_]+_\d+\]\s*[,\]]")  # a placeholder, perhaps of a bare number
CUT_TAIL = re.compile(r"(?:[\d ().+/-]{1,40}|\S{1,80})$")  # what may be the beginning of a value
LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
MAX_KNOWN = 200  # values that are also replaced where their words are not near


@dataclass(slots=True)
class Slot:
    """A text of a conversation: the object and attribute that hold it, and the message's index if it is in one."""

    owner: Any
    name: str
    message: int | None
    text: str
    is_json: bool = False


def redact(conversations: Sequence[Conversation], rule: Family, types: Sequence[str]) -> None:
    """Replace a family's values (of these types; none: all) in place; each message that changes has an edit."""
    ids = redact_ids([conversation.source_id for conversation in conversations], {rule: types})
    for conversation, source_id in zip(conversations, ids, strict=True):
        conversation.source_id = source_id
    slots = [(number, slot) for number, each in enumerate(conversations) for slot in _slots(each)]
    found = matching.find(pl.Series([slot.text for _, slot in slots], dtype=pl.String), rule)
    chosen = {place: _of_types(hits, types) for place, hits in found.items()}
    owners = {slots[place][0] for place, hits in chosen.items() if hits}
    hits_of: defaultdict[int, list[tuple[Slot, list[Hit]]]] = defaultdict(list)
    for place, (number, slot) in enumerate(slots):
        if number in owners:
            hits_of[number].append((slot, chosen.get(place, [])))
    for number, texts in hits_of.items():
        _redact_conversation(conversations[number], texts, rule)


def redacted_families(filters: Mapping[str, Mapping[str, object]]) -> dict[Family, Sequence[str]]:
    """Return the families whose filter redacts, each with its types."""
    names: tuple[Family, ...] = ("privacy", "secrets")
    settings = {name: filters[name] for name in names if name in filters}
    return {name: _names(each.get("types")) for name, each in settings.items() if each.get("action") == "redact"}


def _names(types: object) -> Sequence[str]:
    return [str(name) for name in types] if isinstance(types, tuple | list) else []


def redact_texts(texts: Sequence[str], families: Mapping[Family, Sequence[str]]) -> list[str]:
    """Return texts, each of its own, without the values of these families (by their types; none: all)."""
    for family, types in families.items():
        found = matching.find(pl.Series(texts, dtype=pl.String), family)
        changed = list(texts)
        for place, hits in found.items():
            if chosen := _of_types(hits, types):
                changed[place] = _redact_alone(texts[place], chosen, family)
        texts = changed
    return list(texts)


def redact_ids(ids: Sequence[str | None], families: Mapping[Family, Sequence[str]]) -> list[str | None]:
    """Return ids of records with the type of each value and a hash of it instead, as it is written.

    Records of one id then still have one, in later dumps too, and those of two ids have two; the number of a piece
    stays too.
    """
    numbers_ = [match[0] if (match := PIECE.search(each or "")) else "" for each in ids]
    changed = [each and each.removesuffix(number) for each, number in zip(ids, numbers_, strict=True)]
    for family, types in families.items():
        found = matching.find(pl.Series(changed, dtype=pl.String).fill_null(""), family)
        for place, hits in found.items():
            changed[place] = _redact_id(changed[place] or "", _of_types(hits, types))
    return [each and each + number for each, number in zip(changed, numbers_, strict=True)]


def _redact_id(text: str, hits: Sequence[Hit]) -> str:
    for hit in reversed(hits):
        mark = _hash_slowly(text[hit.start : hit.end])
        text = f"{text[: hit.start]}[{hit.rule.type.upper()}_{mark}]{text[hit.end :]}"
    return text


@functools.lru_cache(65_536)
def _hash_slowly(value: str) -> str:
    """Return 64 bits of a value's scrypt hash (RFC 7914) as 16 letters, in which no rule finds a value.

    So many bits tell a million ids apart. No key can be secret here, so each try to find the value costs 0.7 ms.
    """
    digest = hashlib.scrypt(value.encode("utf-8", "surrogatepass"), salt=b"curate id", n=256, r=8, p=1, dklen=8)
    return digest.hex().translate(LETTERS)


def _redact_alone(text: str, hits: Sequence[Hit], family: Family) -> str:
    slot = Slot(None, "", None, text, is_json=_is_json(text))
    placeholders = Placeholders.after([text], family)
    for hit in hits:
        placeholders.add(hit.rule.type, text[hit.start : hit.end])
    return _replace(slot, hits, placeholders)[0]


def _of_types(hits: Sequence[Hit], types: Sequence[str]) -> list[Hit]:
    return [hit for hit in hits if not types or hit.rule.type in types]


def _slots(conversation: Conversation) -> Iterator[Slot]:
    """Yield the texts of a conversation: messages first, whose placeholders are then numbered in order."""
    for index, message in enumerate(conversation.messages):
        for name in ("content", "reasoning", *JSON_FIELDS):
            if text := getattr(message, name):
                yield Slot(message, name, index, text, name in JSON_FIELDS)
    for message in conversation.rejected_answer:
        for name in ("content", "reasoning", *JSON_FIELDS):
            if text := getattr(message, name):
                yield Slot(message, name, None, text, name in JSON_FIELDS)
    if conversation.tools:
        yield Slot(conversation, "tools", None, conversation.tools, True)
    if conversation.metadata:
        yield Slot(conversation, "metadata", None, json.dumps(conversation.metadata, ensure_ascii=False), True)
    for edit in conversation.edits:
        yield Slot(edit, "before", None, edit.before)
        yield Slot(edit, "after", None, edit.after)
    for flaw in conversation.flaws:
        yield Slot(flaw, "reason", None, flaw.reason)
        yield Slot(flaw, "evidence", None, flaw.evidence)


@dataclass(slots=True)
class Placeholders:
    """The placeholders of one conversation, by type and value."""

    family: Family
    last: Counter[str] = field(default_factory=Counter)  # the last number of each type
    by_value: dict[tuple[str, str], str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)  # by the value as it was written
    pattern: re.Pattern[str] | None = None

    @classmethod
    def after(cls, texts: Sequence[str], family: Family) -> Placeholders:
        """Return placeholders that begin after those that the texts have."""
        last: Counter[str] = Counter()
        for name, number in (match.groups() for text in texts for match in PLACEHOLDER.finditer(text)):
            last[name] = max(last[name], int(number))
        return cls(family, last)

    def add(self, type_: str, value: str) -> str:
        """Return the placeholder of a value."""
        key = (type_, _normalize(type_, value))
        if key not in self.by_value:
            name = type_.upper()
            self.last[name] += 1
            self.by_value[key] = f"[{name}_{self.last[name]}]"
        if value not in self.written:
            self.written[value] = self.by_value[key]
            self.pattern = None
        return self.by_value[key]

    def replace_known(self, text: str) -> str:
        """Replace values where no rule finds them, such as an id that is repeated without the word for it."""
        if self.pattern is None:
            known = sorted(list(self.written)[:MAX_KNOWN], key=len, reverse=True)
            self.pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, known))})(?![A-Za-z0-9])")
        return self.pattern.sub(lambda match: self.written[match[0]], text)


def _normalize(type_: str, value: str) -> str:
    """Return what makes two ways to write a value the same."""
    if type_ == "email":
        return value.lower()
    return numbers(value) if type_ in ("phone", "card") else value.replace(" ", "").replace("-", "")


def _redact_conversation(conversation: Conversation, texts: Sequence[tuple[Slot, Sequence[Hit]]], rule: Family) -> None:
    placeholders = Placeholders.after([slot.text for slot, _ in texts], rule)
    key = matching.hash_key([slot.text for slot, _ in texts])
    for slot, hits in texts:
        for hit in hits:
            placeholders.add(hit.rule.type, slot.text[hit.start : hit.end])
    notes: defaultdict[int | None, list[tuple[str, str]]] = defaultdict(list)
    for slot, hits in texts:
        text, count = _replace(slot, hits, placeholders)
        if isinstance(slot.owner, (Edit, Flaw)):
            _store(slot, _without_tail(slot.text, text))
        elif text != slot.text:
            _store(slot, text)
            values = [(hit.rule.type, slot.text[hit.start : hit.end]) for hit in hits]
            notes[slot.message] += values or [("repeated", "")] * max(1, count)
    for message, values in notes.items():
        before = ", ".join(f"{type_} {matching.hash_value(value, key)}" for type_, value in values)
        after = ", ".join(placeholders.written.get(value, "") for _, value in values)
        conversation.edit(rule, message, before, after, len(values))


def _without_tail(before: str, after: str) -> str:
    """Return an excerpt without its end if it was cut there, perhaps in the middle of a value."""
    return CUT_TAIL.sub("…", after) if len(before) >= EXCERPT else after


def _store(slot: Slot, text: str) -> None:
    setattr(slot.owner, slot.name, json.loads(text) if slot.name == "metadata" else text)


def _replace(slot: Slot, hits: Sequence[Hit], placeholders: Placeholders) -> tuple[str, int]:
    """Return the slot's text with placeholders, still JSON if it was, and how many further values were replaced."""
    parts, last = [], 0
    for hit in hits:
        value = slot.text[hit.start : hit.end]
        parts += [slot.text[last : hit.start], _in_place(slot.text, hit, placeholders.add(hit.rule.type, value))]
        last = hit.end
    text = "".join([*parts, slot.text[last:]])
    known = placeholders.replace_known(text)
    if known != slot.text and IN_ARRAY.search(known) and (slot.is_json or _is_json(slot.text)):
        known = _replace_in_json(slot.text, placeholders)
    return known, int(known != text)


def _replace_in_json(text: str, placeholders: Placeholders) -> str:
    """Return JSON with the values replaced in each of its texts and numbers, and in the JSON in its texts."""
    value = json.loads(text)
    leaves = list(dict.fromkeys(_leaves(value)))
    found = matching.find(pl.Series(leaves, dtype=pl.String), placeholders.family)
    types = {type_ for type_, _ in placeholders.by_value}
    changed = {
        leaf: _replace(Slot(None, "", None, leaf), _of_types(found.get(place, []), list(types)), placeholders)[0]
        for place, leaf in enumerate(leaves)
    }
    return json.dumps(_rebuild(value, changed, placeholders.written), ensure_ascii=False)


def _leaves(value: Any) -> Iterator[str]:
    """Yield the texts of a JSON value, but of a text that is JSON its own."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield from _leaves(json.loads(value)) if _is_json(value) else [value]


def _rebuild(value: Any, changed: Mapping[str, str], numbers_: Mapping[str, str]) -> Any:
    """Return a JSON value with its texts and numbers replaced."""
    if isinstance(value, dict):
        return {changed[key]: _rebuild(item, changed, numbers_) for key, item in value.items()}
    if isinstance(value, list):
        return [_rebuild(item, changed, numbers_) for item in value]
    if isinstance(value, str) and _is_json(value):
        return json.dumps(_rebuild(json.loads(value), changed, numbers_), ensure_ascii=False)
    if isinstance(value, str):
        return changed[value]
    return numbers_.get(str(value), value) if type(value) is int else value


def _in_place(text: str, hit: Hit, placeholder: str) -> str:
    """Return a placeholder, in quotes where the value is a bare number of JSON."""
    before = BARE.search(text, max(0, hit.start - 20), hit.start)
    bare = before and text[hit.start : hit.end].isdigit()
    return f"{before[1]}{placeholder}{before[1]}" if before and bare else placeholder


def _is_json(text: str) -> bool:
    """Tell whether a text is a JSON object or list."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
