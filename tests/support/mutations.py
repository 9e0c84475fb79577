"""JSON files with any value in place of any other, as in a file that is damaged or hostile."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
JUNK: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, float("inf"), 10**30, "", "x", "../../outside", "/etc/passwd", "\ud800", "\x00"),
    *([], {}, [[]], ["x"], [None], {"a": 1}, {"": {}}, DEEP),
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every list or object of a JSON value with each of its indices or keys."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def mutations(values: Any, rounds: int, seed: int = 0) -> Iterator[Any]:
    """Yield copies of a JSON object with one or two values replaced, removed or renamed."""
    source = random.Random(seed)
    for _ in range(rounds):
        changed = copy.deepcopy(values)
        for _ in range(source.choice((1, 1, 2))):
            parent, key = source.choice(list(places(changed)))
            value = parent[key]
            match source.randrange(8):
                case 0:
                    del parent[key]
                case 1 if isinstance(parent, dict):
                    parent[f"{key}x"] = parent.pop(key)
                case 2:
                    parent[key] = [value]
                case _:
                    parent[key] = copy.deepcopy(source.choice(JUNK))
            if not changed:
                break
        yield changed
