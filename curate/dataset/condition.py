"""Parse a condition in SQL: columns, values, and a fixed list of functions and words, so that it is never a query.

Polars' SQL reads files and runs subqueries inside a condition, and some of its functions make texts of any length. What
is not in the lists is refused before Polars sees it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from curate.errors import InputError, did_you_mean
from curate.files import is_text

MAX_CHARACTERS = 100_000
MAX_PARTS = 400  # without values and commas; Polars' time grows with their cube: 0.1 s for 400, 4 s for 1,600
# No function makes a text longer than those that it is given, and none fails for the value of some row.
FUNCTIONS = frozenset(
    (
        *(
            "abs",
            "ceil",
            "ceiling",
            "floor",
            "round",
            "sqrt",
            "exp",
            "ln",
            "log",
            "log2",
            "log10",
            "mod",
            "pow",
            "power",
        ),
        *("sign", "char_length", "character_length", "length", "bit_length", "octet_length", "concat", "concat_ws"),
        *("concat_ws", "lower", "upper", "initcap", "left", "right", "reverse", "trim", "ltrim", "rtrim", "substr"),
        *("substring", "strpos", "starts_with", "ends_with", "regexp_like", "coalesce", "ifnull", "nullif", "greatest"),
        *("least", "if", "cast", "try_cast", "array_contains", "array_length", "array_to_string", "avg", "count"),
        *("first", "last", "max", "median", "min", "quantile_cont", "quantile_disc", "stddev", "sum", "variance"),
        *("row_number", "rank", "dense_rank", "lag", "lead"),
    )
)
KEYWORDS = frozenset(
    (
        *("and", "or", "not", "in", "is", "null", "true", "false", "between", "like", "ilike", "case", "when", "then"),
        *("else", "end", "distinct", "from", "as", "over", "partition", "by", "order", "asc", "desc"),
    )
)
TYPES = frozenset(("bigint", "double", "float", "int", "integer", "real", "string", "text", "varchar"))
_QUERY = frozenset(
    (
        *("select", "with", "values", "table", "exists", "from", "union", "intersect", "except", "join", "unnest"),
        *("any", "all"),
    )
)
_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*+')|(?P<name>"(?:[^"]|"")*+")|(?P<word>[^\W\d]\w*+(?!['"]))"""
    r"""|(?P<value>(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?(?![\w.])|,)|(?P<space>\s++)"""
    r"""|(?P<sign>\|\||<=|>=|<>|!=|==?|[+*%<>()]|-(?!-)|/(?![/*]))"""  # no comments
)
# Parts of an expression that look at other rows, as Polars names them; not in a text, where quotes are escaped.
_ACROSS_ROWS = re.compile(r'(?<!\\)"(?:Agg|Over|Window|Len|Quantile|Correlation|Explode|SubPlan)"')
_SHOWN = 200  # characters of a condition in an error


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # text, name, word, value or sign: a group of `_TOKEN`
    text: str
    start: int  # in the condition

    @property
    def word(self) -> str:
        return self.text.lower() if self.kind == "word" else ""


def is_row_by_row(condition: pl.Expr) -> bool:
    """Return whether a condition looks at each row by itself, unlike `tokens = max(tokens)`."""
    return _ACROSS_ROWS.search(condition.meta.serialize(format="json")) is None


def parse_condition(sql: str, frame: pl.LazyFrame) -> pl.Expr:
    """Parse a condition and check it against a frame; raises InputError in one line if it cannot be evaluated.

    Conditions compare columns of text, numbers and truth values; `array_contains(edit_names, 'chrome')` searches a
    list. The fields of messages cannot be used. What cannot be cast is null.
    """
    columns = {name: kind for name, kind in frame.collect_schema().items() if not _has_fields(kind)}
    try:
        expression = pl.sql_expr(_check(sql, columns))
        kind = _example(columns).select(expression.alias("_")).schema["_"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _condition_error(sql, _first_line(error)) from error
    if kind != pl.Boolean:
        raise _condition_error(sql, f"it gives {_describe_type(kind)}, not true or false; compare it with a value")
    return expression


def _has_fields(kind: pl.DataType) -> bool:
    return _has_fields(kind.inner) if isinstance(kind, pl.List) else isinstance(kind, pl.Struct)  # type: ignore[arg-type]


def _example(columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return two rows, one with a value in each column: some types are only refused where there are values."""
    rows: dict[str, list[object]] = {name: [_value(kind), None] for name, kind in columns.items()}
    return pl.DataFrame(rows, schema=columns)


def _value(kind: pl.DataType) -> object:
    if isinstance(kind, pl.List):
        return [_value(kind.inner)]  # type: ignore[arg-type]
    return "x" if kind == pl.String else b"x" if kind == pl.Binary else 1 if kind.is_numeric() else None


def _check(sql: str, columns: Collection[str]) -> str:
    """Return the condition for Polars; raises InputError for what is not in the lists, and for what is too long."""
    if len(sql) > MAX_CHARACTERS:
        raise _condition_error(sql, f"it has {len(sql):,} characters, at most {MAX_CHARACTERS:,} are allowed")
    if not is_text(sql):
        raise _condition_error(sql, "it is not valid UTF-8")
    tokens = list(_tokens(sql))
    parts = sum(token.kind not in ("text", "value") for token in tokens)
    if parts > MAX_PARTS:
        raise _condition_error(sql, f"it has {parts:,} parts besides values, at most {MAX_PARTS} are allowed")
    safe, end = [], 0
    for at, token in enumerate(tokens):
        after = tokens[at + 1].text if at + 1 < len(tokens) else ""
        problem = _problem_of(token, tokens[at - 1].word if at else "", after, columns)
        if token.word == "regexp_like" and not _has_fixed_pattern(tokens[at + 1 :]):
            problem = "the pattern of regexp_like is not a text in single quotes"
        if problem is not None:
            raise _condition_error(sql, problem)
        safe += [sql[end : token.start], "try_cast" if token.word == "cast" and after == "(" else token.text]
        end = token.start + len(token.text)
    return "".join(safe)


def _tokens(sql: str) -> Iterator[_Token]:
    at = 0
    while at < len(sql):
        found = _TOKEN.match(sql, at)
        if found is None or found.lastgroup is None:
            raise _condition_error(sql, f"{sql[at : at + 20]!r} cannot stand in a condition")
        if found.lastgroup != "space":
            yield _Token(found.lastgroup, found.group(), at)
        at = found.end()


def _problem_of(token: _Token, before: str, after: str, columns: Collection[str]) -> str | None:
    """Return why a name or a word is refused; `before` is the word before it, `after` the text after it."""
    if token.kind == "name":
        name = token.text[1:-1].replace('""', '"')
        return None if name in columns else f"there is no column {name!r}; write text in single quotes: '{name}'"
    if token.kind != "word" or (token.text in columns and after != "("):
        return None
    if token.word in _QUERY and not (token.word == "from" and before == "distinct"):
        return f"{token.text!r} belongs to a query; a condition compares columns and values, such as tokens > 100"
    if token.word in KEYWORDS or (token.word in TYPES and before == "as"):
        return None
    if after == "(":
        return (
            None
            if token.word in FUNCTIONS
            else f"there is no function {token.text!r}{did_you_mean(token.word, FUNCTIONS)}"
        )
    return f"there is no column {token.text!r}{did_you_mean(token.text, columns)}"


def _has_fixed_pattern(call: Sequence[_Token]) -> bool:
    """Return whether all arguments of a call but the first are texts; `call` begins with its bracket."""
    depth = commas = 0
    for token in call:
        depth += (token.text == "(") - (token.text == ")")
        if depth == 0:
            return True
        if depth == 1 and token.text == ",":
            commas += 1
        elif commas and token.kind != "text":
            return False
    return False


def _condition_error(sql: str, reason: str) -> InputError:
    shown = sql if len(sql) <= _SHOWN else f"{sql[:_SHOWN]}…"
    return InputError(f"cannot use the condition {shown!r}: {reason}")


def _first_line(error: BaseException) -> str:
    """Return the first line of a Polars error, cut off where it is long; what follows is the query plan."""
    lines = str(error).splitlines() or [type(error).__name__]
    reason = ""
    if lines[0].endswith("regex parse error:"):
        reason = next((line.removeprefix("error") for line in lines if line.startswith("error: ")), "")
    line = lines[0].partition(": Subscript(")[0].removesuffix(":" if reason else "") + reason
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _describe_type(kind: pl.DataType) -> str:
    return "a number" if kind.is_numeric() else "text" if kind == pl.String else str(kind)
