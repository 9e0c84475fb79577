"""What a step of a chat template costs: about how many characters or bytes it reads or makes, known beforehand."""

from __future__ import annotations

import re
from collections.abc import Callable, ItemsView, Iterable, KeysView, Sequence, ValuesView
from string import Formatter
from typing import Any

from jinja2.utils import Namespace

MAX_SIZE = 100_000_000  # characters of a text, or what a list takes
ITEM = 100  # of a list's item: it takes a number's bytes and a pointer, and the time of some characters
READ_SHARE = 8  # characters that are read in the time in which one is made
_FIELDS = 1_000  # of a format
_PADDING = 1_000  # of a field, at the least
_WIDE = re.compile(r"%[^%a-zA-Z]*(?:\d{4}|\*)")  # a field of `%` with a wide or variable width
_WIDE_SPEC = re.compile(r"\d{4}|\{")  # the same of `format`
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def weigh(value: object, *, read: bool = False) -> int:
    """Return about how many characters a value has, with all that is in it; counting stops above MAX_SIZE.

    `read`: what it takes to read them, an eighth of that for texts.
    """
    share = READ_SHARE if read else 1
    total, rest = ITEM, [value]
    while rest and total <= MAX_SIZE:
        value = rest.pop()
        if isinstance(value, str):
            total += len(value) // share
        elif not isinstance(value, (int, float)):
            parts = _parts(value)
            total += ITEM * len(parts)
            rest += parts if not isinstance(parts, range) else ()
    return total


def _parts(value: object) -> Sequence[Any]:
    if isinstance(value, (list, tuple, range)):
        return value
    if isinstance(value, Namespace):
        value = value._Namespace__attrs
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, _VIEWS) else ()


_VIEWS = (KeysView, ValuesView, ItemsView)


def of_items(value: object) -> int:
    """Return what it takes to go through a value once, without looking into its items."""
    if isinstance(value, str):
        return len(value) // READ_SHARE
    return ITEM * len(value) if isinstance(value, (list, tuple, dict, range)) else ITEM


def of_call(name: str, subject: object, values: Sequence[Any]) -> int:
    """Return about how many characters a filter, or a method of a text, makes or passes over.

    `values` are its arguments, with those that are named. What is not larger than the subject is not counted here.
    """
    cost = _COSTS.get(name)
    return cost(subject, values) if cost else 0


def _texts(values: Iterable[object]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _length(value: object) -> int:
    return len(value) if isinstance(value, str) else weigh(value) if value is not None else 0


def _format(subject: object, values: Sequence[Any]) -> int:
    """A format may repeat a value, and pad each field."""
    text = str(subject)
    fields = text.count("{") + text.count("%")
    try:
        wide = any(spec and _WIDE_SPEC.search(spec) for _, _, spec, _ in Formatter().parse(text))
    except ValueError:  # not a format of this kind
        wide = False
    if wide or _WIDE.search(text) or fields > _FIELDS:
        return MAX_SIZE + 1
    return len(text) + fields * (_PADDING + sum(map(_length, values)))


def _replace(subject: object, values: Sequence[Any]) -> int:
    texts = _texts(values)
    return str(subject).count(texts[0]) * len(texts[1]) if len(texts) > 1 else 0


def _join(subject: object, values: Sequence[Any]) -> int:
    """`items|join(separator)`, or `separator.join(items)`."""
    items, separator = (values[0] if values else (), subject) if isinstance(subject, str) else (subject, values[:1])
    count = len(items) if isinstance(items, (list, tuple, dict, str)) else 1
    return count * _length(separator if isinstance(separator, str) else separator[0] if separator else "") + _length(
        items
    )


def _indent(subject: object, values: Sequence[Any]) -> int:
    width = max((len(value) if isinstance(value, str) else value for value in values if value is not None), default=4)
    return (1 + sum(map(str(subject).count, _LINE_BREAKS))) * width if isinstance(width, int) else MAX_SIZE + 1


def _expand_tabs(subject: object, values: Sequence[Any]) -> int:
    return str(subject).count("\t") * max((value for value in values if isinstance(value, int)), default=8)


def _translate(subject: object, values: Sequence[Any]) -> int:
    table = values[0] if values and isinstance(values[0], dict) else {}
    return len(str(subject)) * max(map(len, _texts(table.values())), default=1)


def _split(subject: object, values: Sequence[Any]) -> int:
    separators = _texts(values)
    count = str(subject).count(separators[0]) if separators and separators[0] else len(str(subject)) // 2
    return len(str(subject)) + ITEM * count


def _split_lines(subject: object, _: Sequence[Any]) -> int:
    return len(str(subject)) + ITEM * sum(map(str(subject).count, _LINE_BREAKS))


def _search_backwards(subject: object, values: Sequence[Any]) -> int:
    """CPython compares at each place where the first character fits."""
    return len(str(subject)) * max(map(len, _texts(values)), default=0) // READ_SHARE


def _search_backwards_and_split(subject: object, values: Sequence[Any]) -> int:
    return _search_backwards(subject, values) + _split(subject, values)


def _to_json(subject: object, values: Sequence[Any]) -> int:
    """A separator is written once for each item."""
    separators = [len(text) for value in values if isinstance(value, (list, tuple)) for text in _texts(value)]
    return weigh(subject) * (1 + max(separators, default=0) // ITEM)


def _text_of(subject: object, _: Sequence[Any]) -> int:
    return weigh(subject)


def _list(subject: object, _: Sequence[Any]) -> int:
    return ITEM * len(subject) if isinstance(subject, str) else 0


def _slowly(subject: object, _: Sequence[Any]) -> int:
    """Python code, or a regular expression, for each character."""
    return 10 * _length(subject)


_COSTS: dict[str, Callable[[object, Sequence[Any]], int]] = {
    "expandtabs": _expand_tabs,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "list": _list,
    "lstrip": _search_backwards,
    "replace": _replace,
    "rfind": _search_backwards,
    "rindex": _search_backwards,
    "rpartition": _search_backwards_and_split,
    "rsplit": _search_backwards_and_split,
    "rstrip": _search_backwards,
    "split": _split,
    "splitlines": _split_lines,
    "string": _text_of,
    "strip": _search_backwards,
    "title": _slowly,
    "tojson": _to_json,
    "translate": _translate,
    "trim": _search_backwards,
    "urlencode": _slowly,
    "wordcount": _slowly,
}
