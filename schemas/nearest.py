"""The format that a record of no known format is nearest to, and the keys that it lacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

MAX_KEYS = 30  # of a record
MAX_NAME = 40  # characters of a key
NEAR = 0.5  # share of the pairs of letters that two keys have in common, from which one may be meant as the other

PER_KEY = 0.1  # what a key counts beside its share: of two formats, the one with more of the record's keys is nearer


@dataclass(frozen=True)
class Requirement:
    """What records of a format must have: keys; the last one holds what `holds` says, with turns of `turn_keys`."""

    name: str
    keys: tuple[str, ...]
    turn_keys: frozenset[str] = frozenset()
    holds: str = "a list of turns"


Shape = tuple[
    tuple[str, bool, frozenset[str]], ...
]  # of a record: each key, whether its value is text, its turns' keys


def nearest_format(record: Mapping[str, object], requirements: Iterable[Requirement]) -> tuple[str, list[str]]:
    """Return the name of the nearest format and the keys that the record lacks.

    It is the nearest in its keys, and in the keys of its turns. The first of equally near ones is returned.
    """
    found = _nearest(_shape(record), tuple(requirements))
    return found.name, [key for key in found.keys if record.get(key) is None]


def describe_nearest(record: Mapping[str, object], requirements: Iterable[Requirement]) -> str:
    """Say which format is nearest, which keys are missing, and which key to rename."""
    shape, known = _shape(record), tuple(requirements)
    found = _nearest(shape, known)
    missing = [key for key in found.keys if record.get(key) is None]
    if not missing:
        return f"the nearest format is {found.name}, but {found.keys[-1]!r} is not {found.holds}"
    verb = "is" if len(missing) == 1 else "are"
    instead = _meant_key(shape, found, missing)
    rename = f" (the record has {instead[0]!r}: rename it {instead[1]!r})" if instead else ""
    return f"the nearest format is {found.name}: {' and '.join(map(repr, missing))} {verb} missing{rename}"


def _shape(record: Mapping[str, object]) -> Shape:
    items = list(record.items())[:MAX_KEYS]
    return tuple((str(key)[:MAX_NAME], isinstance(value, str), _turn_keys(value)) for key, value in items)


def _turn_keys(value: object) -> frozenset[str]:
    """Return the keys of the first entry of a list or an object."""
    entries = value if isinstance(value, list) else list(value.values())[:1] if isinstance(value, dict) else []
    first = entries[0] if entries else None
    return frozenset(map(str, list(first)[:MAX_KEYS])) if isinstance(first, dict) else frozenset()


@lru_cache(maxsize=1024)
def _nearest(shape: Shape, requirements: tuple[Requirement, ...]) -> Requirement:
    likeness = _key_likeness(shape, requirements)
    return max(requirements, key=lambda requirement: _likeness(shape, requirement, likeness))


def _likeness(shape: Shape, requirement: Requirement, likeness: Mapping[str, Mapping[str, float]]) -> float:
    """Return how much a record is like a format: in its share of the keys, in their number, and in a turn's keys."""
    alike = sum(max(likeness[key].values(), default=0.0) for key in requirement.keys)
    turn = max((_turn_likeness(keys, requirement.turn_keys) for _, _, keys in shape), default=0.0)
    return alike / len(requirement.keys) + PER_KEY * alike + turn


def _turn_likeness(keys: frozenset[str], turn_keys: frozenset[str]) -> float:
    return len(keys & turn_keys) / len(turn_keys) if turn_keys else 0.0


def _key_likeness(shape: Shape, requirements: Iterable[Requirement]) -> dict[str, dict[str, float]]:
    """Return for each key of a format the record's keys that are like it, 0 to 1."""
    pairs, sizes = _index(frozenset(key for requirement in requirements for key in requirement.keys))
    likeness: dict[str, dict[str, float]] = defaultdict(dict)
    for name, _, _ in shape:
        own = _letter_pairs(name)
        common: dict[str, int] = defaultdict(int)
        for pair in own:
            for key in pairs.get(pair, ()):
                common[key] += 1
        for key, count in common.items():
            if (share := 2 * count / (len(own) + sizes[key])) >= NEAR:
                likeness[key][name] = share
    return likeness


@lru_cache(maxsize=8)
def _index(keys: frozenset[str]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the keys that have each pair of letters, and how many pairs each has."""
    pairs: dict[str, list[str]] = defaultdict(list)
    for key in sorted(keys):
        for pair in _letter_pairs(key):
            pairs[pair].append(key)
    return dict(pairs), {key: len(_letter_pairs(key)) for key in keys}


def _letter_pairs(name: str) -> set[str]:
    folded = f" {name.casefold()} "
    return {folded[index : index + 2] for index in range(len(folded) - 1)}


def _meant_key(shape: Shape, found: Requirement, missing: list[str]) -> tuple[str, str] | None:
    """Return the key that may be meant as a missing one, and that one: by its name, and by its turns."""
    likeness = _key_likeness(shape, (found,))
    near = [
        (like, name, key)
        for key in missing
        for name, _, turn_keys in shape
        if (like := likeness[key].get(name, 0.0) + _turn_likeness(turn_keys, found.turn_keys) * (key == found.keys[-1]))
        and name not in found.keys
    ]
    return max(near)[1:] if near else None
