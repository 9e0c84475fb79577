"""Limit what a chat template, a program from elsewhere, may use: its steps, and the length of what it reads and makes.

Jinja's sandbox keeps a template from Python's objects, but not from loops within loops, or a text of 10^11 characters.
The limits count; they do not measure time, so that a template gives the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from json import JSONEncoder, dumps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from curate.rendering.chat_template import costs
from curate.rendering.chat_template.costs import MAX_SIZE
from curate.rendering.chat_template.counted_nodes import (
    FOUND_IN,
    MACRO_STEPS,
    MADE,
    READ,
    STEPS,
    TEXTS,
    WRITTEN,
    Counter,
)

MAX_STEPS = 2_000_000  # turns of loops in one rendering; a turn of a long body counts more
MAX_TOTAL = 1_000_000_000  # characters of all texts that one rendering makes; a list's item counts as 100
MAX_NUMBER = 100_000  # of an argument, such as a width; also Jinja's limit of `range`
MAX_BITS = 10_000  # of a number
_FILTER_STEPS, _CALL_STEPS = 2, 5  # what a filter or test, and a call, count
_CHEAP = frozenset({"attr", "count", "d", "default", "first", "last", "length"})  # do not read their subject
_LINEAR = frozenset({"capitalize", "e", "escape", "lower", "safe", "string", "trim", "upper"})
_LAZY = frozenset({"batch", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice"})
_READING_TESTS = (
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "eq",
    "equalto",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "le",
    "lessthan",
    "lt",
    "ne",
)
# No chat template needs them: they take time out of proportion to their text, or give another text each time.
_REFUSED_FILTERS = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
_REFUSED_GLOBALS = ("lipsum",)
_REFUSED_METHODS = frozenset({"encode", "format_map", "striptags", "to_bytes", "unescape"})
_JINJA_VARIABLES = frozenset({"_loop_vars", "_block_vars"})  # which the compiler adds to the arguments of calls
_LIST_METHODS = frozenset({"copy", "count", "index"})  # go through their list


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits; a template that exceeds one raises SecurityError."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.restart()
        for name in _REFUSED_FILTERS:
            del self.filters[name]
        for name in _REFUSED_GLOBALS:
            del self.globals[name]
        self.filters["tojson"] = self._to_json
        for name, function in list(self.filters.items()):
            self.filters[name] = self._limited_filter(name, function)
        for name in _READING_TESTS:
            self.tests[name] = self._limited_test(self.tests[name], self._read)
        for name in ("lower", "upper"):
            self.tests[name] = self._limited_test(self.tests[name], self._write)
        counters = {
            STEPS: self._count_turn,
            WRITTEN: self._write,
            READ: self._read,
            FOUND_IN: self._look_up,
            MADE: self._make,
        }
        self.filters |= {**counters, TEXTS: self._join_texts}

    def restart(self) -> None:
        """Begin to count for a new rendering."""
        self.steps, self.total = 0, 0

    def charge(self, size: int) -> None:
        """Count characters, before they are made where that is possible."""
        self.total += size
        if size > MAX_SIZE or self.total > MAX_TOTAL:
            raise SecurityError(f"it makes a text or list of more than {MAX_SIZE:,} characters or items")

    def count(self, steps: int) -> None:
        """Count steps."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS:,} steps")

    def join(self, parts: Iterable[str]) -> str:
        """Return parts as one text, whose length is checked as they come."""
        texts, size = [], 0
        for part in parts:
            size += len(part)
            if size > MAX_SIZE:
                self.charge(size)
            texts.append(part)
        self.charge(size)
        return "".join(texts)

    # ---- what the counter of nodes inserts

    @pass_context  # else Jinja would count once, as it compiles
    def _count_turn(self, _: Context, steps: int) -> bool:
        self.count(steps)
        return True

    def _write(self, value: Any) -> Any:
        """Count a value that becomes text."""
        self.charge(len(value) if isinstance(value, str) else costs.weigh(value))
        return value

    def _read(self, value: Any) -> Any:
        """Count a value that is compared, or looked through."""
        if isinstance(value, str):
            self.charge(len(value) // costs.READ_SHARE)
        elif not isinstance(value, int):
            self.charge(costs.weigh(value, read=True))
        return value

    def _look_up(self, value: Any) -> Any:
        """Count a value in which another is looked for; in a dict that takes no time."""
        return value if isinstance(value, dict) else self._read(value)

    def _make(self, value: Any) -> Any:
        """Count a copy."""
        self.charge(len(value) if isinstance(value, str) else costs.of_items(value))
        return value

    def _join_texts(self, parts: Iterable[object]) -> str:
        """Return texts as one: what `~` does."""
        texts = [part if isinstance(part, str) else str(self._write(part)) for part in parts]
        self.charge(sum(map(len, texts)))
        return "".join(texts)

    # ---- filters, tests and calls

    def _to_json(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """Return JSON as transformers' filter does; Jinja's own sorts keys and escapes for HTML."""
        settings = {"ensure_ascii": ensure_ascii, "separators": separators, "sort_keys": sort_keys}
        if indent is None:
            return dumps(value, **settings)
        return self.join(JSONEncoder(indent=indent, **settings).iterencode(value))

    def _limited_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter whose subject, arguments and result are limited."""
        hidden = 1 if getattr(function, "jinja_pass_arg", None) else 0  # arguments that Jinja passes

        @wraps(function)
        def limited(*arguments: Any, **named: Any) -> Any:
            self.count(_FILTER_STEPS)
            given, (subject, *rest) = arguments[:hidden], arguments[hidden:]
            if name in _LINEAR and len(arguments) == hidden + 1 and isinstance(subject, str):  # the most frequent
                self.charge(len(subject))
                return function(*arguments)
            if name in _CHEAP:
                return function(*arguments, **named)
            if name in _LAZY:
                self.charge(costs.of_items(subject))
            else:
                subject = self._as_list(subject)
                self._read(subject)
            if name == "sum" and not isinstance(named.get("start", rest[1] if len(rest) > 1 else 0), (int, float)):
                raise SecurityError("it adds up what are no numbers")
            self._check(name, subject, _values(rest, named))
            return self._checked(function(*given, subject, *rest, **named))

        return limited

    def _limited_test(self, function: Any, count: Callable[[Any], Any]) -> Callable[..., Any]:
        @wraps(function)
        def limited(*arguments: Any) -> Any:
            self.count(_FILTER_STEPS)
            for value in arguments:
                count(value)
            return function(*arguments)

        return limited

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what a template calls."""
        self.count(MACRO_STEPS if isinstance(function, LoopContext) else _CALL_STEPS)
        self.charge(costs.ITEM * (len(arguments) + len(named)))
        if isinstance(function, (Macro, BlockReference, LoopContext)):  # parts of the template, which count themselves
            return super().call(context, function, *arguments, **named)
        # Jinja wraps the method `format`.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        name = str(getattr(function, "__name__", "")) if isinstance(owner, (str, list, tuple, dict, range)) else ""
        if name == "join":
            arguments = tuple(
                list(self._passed(value)) if isinstance(value, Iterator) else value for value in arguments
            )
        values = _values(arguments, named)
        for value in values:
            self._read(value)
        if isinstance(owner, str):
            self._read(owner)
            self._check(name, owner, values)
        elif name in _LIST_METHODS:
            self.charge(costs.weigh(owner, read=True))
        else:
            self._check("", None, values)
        return self._checked(super().call(context, function, *arguments, **named))

    def _check(self, name: str, subject: Any, values: Sequence[Any]) -> None:
        """Count what a filter or a method will make."""
        for value in values:
            if isinstance(value, int) and abs(value) > MAX_NUMBER:
                raise SecurityError(f"it calls with a number of more than {MAX_NUMBER:,}")
        self.charge(costs.of_call(name, subject, values))

    def _checked(self, result: Any) -> Any:
        """Return what a filter or a method has made, counted."""
        if isinstance(result, int):
            _check_number(result.bit_length())
        elif isinstance(result, Iterator):
            return self._passed(result)
        else:
            self._make(result)
        return result

    def _passed(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield items that are made one by one, counted."""
        for item in items:
            self.charge(costs.ITEM + costs.of_items(item))
            yield item

    def _as_list(self, value: Any) -> Any:
        """Return a list of what an iterator yields; other values are returned as they are."""
        return list(self._passed(value)) if isinstance(value, Iterator) else value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may use an attribute."""
        refused = attr in _REFUSED_METHODS and not isinstance(obj, dict)
        return not refused and super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return what an object holds under a key, which may be a list in a list in a list."""
        if not isinstance(argument, (str, int)):
            self._read(argument)
        return super().getitem(obj, argument)

    # ---- operators

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Calculate `left operator right`."""
        if operator == "%" and isinstance(left, str):
            self._check("format", left, right if isinstance(right, tuple) else (right,))
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            _check_number(bits * abs(right) if operator == "**" else bits + right.bit_length())
        elif operator == "*":
            values, count = (left, right) if isinstance(right, int) else (right, left)
            self.charge(max(count, 0) * _size(values) if isinstance(count, int) else 0)
        elif operator == "+":
            self.charge(_size(left) + _size(right))
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int):
            _check_number(result.bit_length())
        return result

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return Counter().visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]


def _size(value: object) -> int:
    return len(value) if isinstance(value, str) else costs.of_items(value) if isinstance(value, (list, tuple)) else 0


def _check_number(bits: int) -> None:
    if bits > MAX_BITS:
        raise SecurityError(f"it makes a number of more than {MAX_BITS:,} bits")


def _values(arguments: Iterable[Any], named: dict[str, Any]) -> list[Any]:
    """Return arguments in the order in which their functions take them: `old` before `new`, `d` before `attribute`."""
    names = sorted(named.keys() - _JINJA_VARIABLES, reverse=True)
    return [*arguments, *(named[name] for name in names)]
