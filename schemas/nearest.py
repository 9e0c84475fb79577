"""The format that a record of no known format is nearest to, and the keys that it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

MAX_KEYS = 8  # of a record, beside those that a format requires
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


Likeness = Mapping[str, Mapping[str, float]]  # of each key of a format: the record's keys that are like it, 0 to 1
Shape = tuple[tuple[str, frozenset[str]], ...]  # of a record: its keys with a value, and the keys of a turn in it


class Nearest:
    """Finds the nearest of some formats, once for each shape of record."""

    def __init__(self, requirements: Sequence[Requirement]) -> None:
        self.requirements = requirements
        self.sizes = {key: len(_letter_pairs(key)) for requirement in requirements for key in requirement.keys}
        self.keys_by_pair: dict[str, list[str]] = {}
        for key in self.sizes:
            for pair in _letter_pairs(key):
                self.keys_by_pair.setdefault(pair, []).append(key)
        self._describe_once = lru_cache(maxsize=1024)(self._describe)

    def describe(self, record: Mapping[str, object]) -> str:
        """Say which format is nearest, which keys are missing, and which key to rename.

        It is the nearest in its keys, and in the keys of its turns; of equally near ones, the first.
        """
        known = self.sizes.keys()
        others = (key for key in islice(record, MAX_KEYS + len(known)) if key not in known)
        keys = [*(key for key in known if key in record), *islice(others, MAX_KEYS)]
        shape = ((str(key)[:MAX_NAME], _turn_keys(record[key])) for key in keys if record[key] is not None)
        return self._describe_once(tuple(shape))

    def _describe(self, shape: Shape) -> str:
        likeness = self._key_likeness(shape)
        found = max(self.requirements, key=lambda requirement: _likeness(shape, requirement, likeness))
        names = {name for name, _ in shape}
        missing = [key for key in found.keys if key not in names]
        if not missing:
            return f"the nearest format is {found.name}, but {found.keys[-1]!r} is not {found.holds}"
        verb = "is" if len(missing) == 1 else "are"
        meant = _meant_key(shape, found, missing, likeness)
        rename = f" (the record has {meant[0]!r}: rename it {meant[1]!r})" if meant else ""
        return f"the nearest format is {found.name}: {' and '.join(map(repr, missing))} {verb} missing{rename}"

    def _key_likeness(self, shape: Shape) -> Likeness:
        likeness: dict[str, dict[str, float]] = {}
        for name, _ in shape:
            own = _letter_pairs(name)
            common = Counter(key for pair in own for key in self.keys_by_pair.get(pair, ()))
            for key, count in common.items():
                if (share := 2 * count / (len(own) + self.sizes[key])) >= NEAR:
                    likeness.setdefault(key, {})[name] = share
        return likeness


def _turn_keys(value: object) -> frozenset[str]:
    """Return the keys of the first entry of a list or an object."""
    if not isinstance(value, list | dict) or not value:
        return frozenset()
    entry = next(iter(value if isinstance(value, list) else value.values()))
    return frozenset(str(key)[:MAX_NAME] for key in islice(entry, MAX_KEYS)) if isinstance(entry, dict) else frozenset()


def _likeness(shape: Shape, requirement: Requirement, likeness: Likeness) -> float:
    """Return how much a record is like a format: in its share of the keys, in their number, and in a turn's keys."""
    alike = sum(max(likeness[key].values()) for key in requirement.keys if key in likeness)
    turn = max((_turn_likeness(keys, requirement.turn_keys) for _, keys in shape if keys), default=0.0)
    return alike / len(requirement.keys) + PER_KEY * alike + turn


def _turn_likeness(keys: frozenset[str], turn_keys: frozenset[str]) -> float:
    return len(keys & turn_keys) / len(turn_keys) if turn_keys else 0.0


def _letter_pairs(name: str) -> set[str]:
    folded = f" {name.casefold()} "
    return {folded[index : index + 2] for index in range(len(folded) - 1)}


def _meant_key(shape: Shape, found: Requirement, missing: list[str], likeness: Likeness) -> tuple[str, str] | None:
    """Return the key that may be meant as a missing one, and that one: by its name, and by its turns."""
    near: list[tuple[float, str, str]] = []
    for name, turn_keys in shape:
        for key in missing if name not in found.keys else ():
            turn = _turn_likeness(turn_keys, found.turn_keys) if key == found.keys[-1] else 0.0
            if like := likeness.get(key, {}).get(name, 0.0) + turn:
                near.append((like, name, key))
    return max(near)[1:] if near else None
