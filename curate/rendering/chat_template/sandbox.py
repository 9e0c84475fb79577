"""Limit what a chat template, a program from elsewhere, may use: its steps, and the length of what it makes.

Jinja's sandbox keeps a template from Python's objects, but not from loops within loops, or a text of 10^11 characters.
The limits count; they do not measure time, so that a template gives the same on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000  # turns of loops in one rendering
_MACRO_STEPS = 20  # what a call of a macro counts, as it takes as long
MAX_SIZE = 100_000_000  # characters of a text, or items of a list
MAX_TOTAL = 1_000_000_000  # of all texts and lists that one rendering makes
MAX_NUMBER = 100_000  # of an argument, such as a width; also Jinja's limit of `range`
_WIDE = re.compile(r"\d{6,}|\*")  # a width in a format
_MAX_FIELDS = 1000  # of a format
_FILTERS = ("center", "format", "indent", "join", "list", "replace", "tojson", "truncate", "wordwrap")


class _Counter(NodeTransformer):
    """Makes loops and macros count their turns, and `~` check its length."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._count(node, 1)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._count(node, _MACRO_STEPS)

    def _count(self, node: nodes.For | nodes.Macro, steps: int) -> nodes.Node:
        self.generic_visit(node)
        step = nodes.Call(nodes.EnvironmentAttribute("count_steps"), [nodes.Const(steps)], [], None, None)
        node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("join_texts"), node.nodes, [], None, None).set_lineno(node.lineno)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits; a template that exceeds one raises SecurityError."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.restart()
        for name in _FILTERS:
            self.limit_filter(name, self.filters[name])

    def restart(self) -> None:
        """Begin to count for a new rendering."""
        self.steps, self.total = 0, 0

    def count_steps(self, steps: int) -> None:
        """Count a turn of a loop or a call of a macro."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS:,} steps")

    def charge(self, size: int) -> None:
        """Count characters or items, before they are made where that is possible."""
        self.total += size
        if size > MAX_SIZE or self.total > MAX_TOTAL:
            raise SecurityError(f"it makes a text or list of more than {MAX_SIZE:,} characters or items")

    def join_texts(self, *parts: object) -> str:
        """Return texts as one: what `~` does."""
        texts = [str(part) for part in parts]
        self.charge(sum(map(len, texts)))
        return "".join(texts)

    def limit_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Register a filter whose arguments and result are limited."""

        @wraps(function)
        def limited(*arguments: Any, **named: Any) -> Any:
            values = [value for value in arguments if isinstance(value, (str, int, list, tuple))]
            return self._checked(name, values[0] if values else None, function, arguments, named, values[1:])

        self.filters[name] = limited

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what a template calls."""
        # Jinja wraps the method `format`.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if owner is self:
            return function(*arguments)

        def safely(*values: Any, **more: Any) -> Any:
            return super(LimitedEnvironment, self).call(context, function, *values, **more)

        name = str(getattr(function, "__name__", "")) if isinstance(owner, str) else ""
        return self._checked(name, owner, safely, arguments, named, list(arguments))

    def _checked(
        self,
        name: str,
        subject: Any,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        values: list[Any],
    ) -> Any:
        for value in (*values, *named.values()):
            if isinstance(value, int) and abs(value) > MAX_NUMBER:
                raise SecurityError(f"it calls with the number {value:.0e}, more than {MAX_NUMBER:,}")
        self.charge(_size(name, subject, values))
        result = function(*arguments, **named)
        if isinstance(result, (str, list)):
            self.charge(len(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Calculate `left operator right`."""
        self._check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _check_operands(self, operator: str, left: Any, right: Any) -> None:
        sizes = [len(value) if isinstance(value, (str, list, tuple)) else None for value in (left, right)]
        if operator == "+" and None not in sizes:
            self.charge(sum(size for size in sizes if size))
        elif operator == "*" and sizes != [None, None]:
            count = right if sizes[1] is None else left
            self.charge((sizes[0] or sizes[1] or 0) * (count if isinstance(count, int) and count > 0 else 1))
        elif operator == "%" and isinstance(left, str):
            self.charge(_size("format", left, []))
        elif operator in ("*", "**"):
            digits = [abs(value).bit_length() for value in (left, right) if isinstance(value, int)]
            self.charge(MAX_SIZE + 1 if operator == "**" and max(digits, default=0) > 16 else sum(digits))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counter().visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]


def _size(name: str, subject: Any, values: list[Any]) -> int:
    """Return about how many characters a method of a text, or a filter, will make of `subject`."""
    texts = [value for value in values if isinstance(value, str)]
    if name in ("format", "format_map") and isinstance(subject, str):
        fields = subject.count("{") + subject.count("%")
        return MAX_SIZE + 1 if _WIDE.search(subject) or fields > _MAX_FIELDS else fields * MAX_NUMBER // 100
    if name == "replace" and len(texts) >= 2 and isinstance(subject, str):
        return subject.count(texts[0]) * len(texts[1])
    if name == "join":
        items, separator = (subject, texts[:1]) if isinstance(subject, (list, tuple)) else (values[:1], [subject])
        items = items[0] if not isinstance(subject, (list, tuple)) and items else items
        count = len(items) if isinstance(items, (list, tuple)) else MAX_NUMBER
        return count * sum(len(text) for text in separator if isinstance(text, str))
    return 0
