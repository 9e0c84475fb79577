"""The registry of rules: the name, documentation and settings of each filter, signal, repair and corpus rule.

A **filter** is a function that returns a Polars expression over one row per conversation. Null keeps
the row; `true` drops it, and so does a text, which is the reason. `reject` builds such an
expression. The function's name is the key in recipes and the rule recorded with each reject, its keyword
defaults are its settings, and the first paragraph of its docstring is its documentation:

    @rule
    def too_short(minimum: int = 16) -> pl.Expr:
        '''Drop conversations with fewer characters than `minimum`.'''
        return reject(pl.col("characters") < minimum, "{characters} characters, minimum {minimum}",
                      characters=pl.col("characters"), minimum=minimum)

Where an expression is not enough, a filter takes the frame first and returns a value for each row, as a list or a
Series: `def too_odd(frame: pl.DataFrame, limit: int = 3) -> list[str | None]`.

A **signal** is a function that takes the frame and returns columns to add to it. It runs if it is always on, if a
filter that is on reads one of its columns (with those of the filter's settings that it has too), or if the recipe's
section [signals] names it. A **repair** takes a batch of conversations and changes them in place, before their turns
are put in order; each change is an edit of the repair's name. A **corpus rule** takes a frame of hashes of all
conversations (to find duplicates) when the workers are done. All three may have settings after their first parameter.

`@repair(of="refusals")` makes a repair part of the filter of that name: it runs where the filter is on, with those of
the filter's settings that it takes. So one name in a recipe can flag, repair or drop: `refusals = { action = "mask" }`.

Columns that a filter can read: `source_id`, `messages`, `prompts` and `answers` (lists of text: user and assistant
contents), `html_answers` (list of bool: which answers were or may have been HTML), `turns` (number of messages),
`characters`, `model`, `metadata` (JSON text or null), and the columns of all signals.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import polars as pl

from curate.errors import RecipeError, did_you_mean
from curate.filters.examples import Examples

Kind = Literal["filter", "signal", "repair", "corpus"]
Function = TypeVar("Function", bound=Callable[..., object])
Settings = Mapping[str, object]

VERDICT = pl.Struct({"reason": pl.String, "evidence": pl.String})
EVIDENCE = 200  # maximum number of characters
USER_MODULE = "curate_user_filters_"


@dataclass(frozen=True)
class Rule:
    """A registered rule; `settings` maps each setting's name to its default.

    `takes_frame`: a filter that computes its values from the frame, instead of giving an expression. `columns` are
    those of a signal. `reads` are columns of signals that a filter which takes the frame needs. `always`: a signal that
    every set has. `measured_by`: the command that measures a signal, after `clean`. `of`: the filter that a repair is a
    part of. `check` raises RecipeError for settings that are not allowed.
    """

    name: str
    kind: Kind
    function: Callable[..., object]
    summary: str
    doc: str
    settings: Settings
    columns: Mapping[str, pl.DataType] = field(default_factory=dict)
    takes_frame: bool = False
    reads: tuple[str, ...] = ()
    always: bool = False
    measured_by: str = ""
    of: str | None = None
    examples: Examples | None = None
    check: Callable[[Settings], None] | None = None

    @property
    def is_users(self) -> bool:
        """Whether the rule is from a user's file, and not curate's own."""
        return not self.function.__module__.startswith("curate.")

    @property
    def source(self) -> str:
        """The file that defines the rule: `filters/NAME.py` for curate's own; empty for a notebook's cell."""
        module = self.function.__module__
        if self.is_users:
            return str(getattr(sys.modules.get(module), "__file__", None) or "")
        return f"{module.removeprefix('curate.').replace('.', '/')}.py"

    @property
    def label(self) -> str:
        """The rule's name in messages: kind and name, and the file of a user's own rule."""
        file = self.source if self.is_users else ""
        kind = "filter" if self.kind == "corpus" else self.kind
        return f"{kind} {self.name!r}" + (f" in {file!r}" if file else "")

    def call(self, subject: object, settings: Settings) -> Any:
        """Call a rule that takes a frame or conversations, with these settings over its defaults."""
        values = {**self.settings, **settings}
        return self.function(subject, **{name: values[name] for name in self.settings})

    def expression(self, settings: Settings) -> pl.Expr:
        """Return the filter's expression (bool, text or verdict; null keeps the row).

        Raises RecipeError if the function fails or returns anything else.
        """
        try:
            expression = self.function(**{**self.settings, **settings})
        except RecipeError:
            raise
        except Exception as error:
            raise RecipeError(f"{self.label} failed: {first_line(error)}") from error
        if not isinstance(expression, pl.Expr):
            raise RecipeError(f"{self.label} returned {type(expression).__name__}, not a Polars expression")
        return expression


_RULES: dict[str, Rule] = {}
_PARTS: dict[str, Rule] = {}  # repairs that are part of a filter, by its name


def first_line(error: BaseException) -> str:
    """Return an error as `Type: text`, without the query plan that Polars appends on further lines."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _register(function: Function, kind: Kind, **facts: Any) -> Function:
    """Register a function as a rule; raises RecipeError if it lacks documentation, a default, or a free name."""
    name = getattr(function, "__name__", "")
    doc = inspect.cleandoc(function.__doc__ or "")
    of = facts.get("of")
    if not doc:
        raise RecipeError(f"{kind} {name!r} has no docstring; its first line is its documentation")
    # a notebook cell may run many times; anywhere else a second rule of the same name is a mistake
    if name in _RULES and not of and function.__module__ != "__main__":
        raise RecipeError(f"{kind} {name!r} is already defined: {_RULES[name].label}; give it another name")
    summary = doc.split("\n\n")[0].replace("\n", " ")
    takes_frame, settings = _signature(function, kind, name)
    known = Rule(name, kind, function, summary, doc, settings, takes_frame=takes_frame, **facts)
    if of:
        _PARTS[of] = known
    else:
        _RULES[name] = known
    return function


def _signature(function: Callable[..., object], kind: Kind, name: str) -> tuple[bool, dict[str, object]]:
    """Return whether a filter takes the frame, and a rule's settings with their defaults.

    Of any other rule the first parameter is what it works on; of a filter it is the frame if it has no default.
    """
    parameters = list(inspect.signature(function).parameters.values())
    takes_frame = kind == "filter" and bool(parameters) and _is_frame(parameters[0])
    settings = parameters[1:] if takes_frame or kind != "filter" else parameters
    for parameter in settings:
        if parameter.default is inspect.Parameter.empty:
            raise RecipeError(f"{kind} {name!r}: setting {parameter.name!r} has no default; its default gives its type")
    return takes_frame, {parameter.name: parameter.default for parameter in settings}


def _is_frame(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty and (
        parameter.name == "frame" or str(parameter.annotation).endswith("DataFrame")
    )


@overload
def rule(function: Function) -> Function: ...
@overload
def rule(
    *,
    examples: Examples | None = None,
    reads: tuple[str, ...] = (),
    check: Callable[[Settings], None] | None = None,
) -> Callable[[Function], Function]: ...
def rule(
    function: Function | None = None,
    *,
    examples: Examples | None = None,
    reads: tuple[str, ...] = (),
    check: Callable[[Settings], None] | None = None,
) -> Function | Callable[[Function], Function]:
    """Register a filter: a function of settings that returns an expression, null where a row is kept.

    A function that takes the frame first returns a value for each row instead; `reads` names the columns of signals
    that it needs, and `check` checks its settings when a recipe is read. `examples` are shown beside the filter, and
    tested.
    """
    decorate = functools.partial(_register, kind="filter", examples=examples, reads=reads, check=check)
    return decorate(function) if function is not None else decorate


@overload
def corpus_rule(function: Function) -> Function: ...
@overload
def corpus_rule(
    *, examples: Examples | None = None, check: Callable[[Settings], None] | None = None
) -> Callable[[Function], Function]: ...
def corpus_rule(
    function: Function | None = None,
    *,
    examples: Examples | None = None,
    check: Callable[[Settings], None] | None = None,
) -> Function | Callable[[Function], Function]:
    """Register a corpus rule: a function of hashes of all conversations (and settings, which `check` checks)."""
    decorate = functools.partial(_register, kind="corpus", examples=examples, check=check)
    return decorate(function) if function is not None else decorate


def signal(*, always: bool = False, **columns: pl.DataType | type[pl.DataType]) -> Callable[[Function], Function]:
    """Register a signal: a function of the frame (and settings) that returns a frame of exactly `columns`."""
    return functools.partial(_register, kind="signal", columns=_types(columns), always=always)


def score(command: str, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> Callable[[Function], Function]:
    """Register a signal that `command` measures on a set; the function returns what is known before: nulls."""
    return functools.partial(_register, kind="signal", columns=_types(columns), measured_by=command)


def _types(columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> dict[str, pl.DataType]:
    return {name: dtype if isinstance(dtype, pl.DataType) else dtype() for name, dtype in columns.items()}


@overload
def repair(function: Function) -> Function: ...
@overload
def repair(*, of: str | None = None, examples: Examples | None = None) -> Callable[[Function], Function]: ...
def repair(
    function: Function | None = None, *, of: str | None = None, examples: Examples | None = None
) -> Function | Callable[[Function], Function]:
    """Register a repair: a function of a list of conversations (and settings) that changes them in place.

    It records each change with `Conversation.edit`, and each exchange to remove with `Conversation.flaw`, under its own
    name, or that of the filter that it is a part of.
    """
    decorate = functools.partial(_register, kind="repair", of=of, examples=examples)
    return decorate(function) if function is not None else decorate


def reject(when: pl.Expr, reason: str, *, evidence: pl.Expr | str | None = None, **values: pl.Expr | object) -> pl.Expr:
    """Return a verdict: null unless `when` is true, else `reason` with its `{names}` filled in from `values`.

    `evidence` is an excerpt that shows why, cut to 200 characters.
    """
    parts: list[pl.Expr] = []
    for text, name in re.findall(r"([^{}]*)(?:\{(\w+)\})?", reason):
        if text:
            parts.append(pl.lit(text))
        if name:
            value = values[name]
            parts.append(value.cast(pl.String) if isinstance(value, pl.Expr) else pl.lit(str(value)))
    excerpt = evidence if isinstance(evidence, pl.Expr) else pl.lit(evidence, dtype=pl.String)
    verdict = pl.struct(
        reason=pl.concat_str(parts, ignore_nulls=True), evidence=excerpt.cast(pl.String).str.slice(0, EVIDENCE)
    )
    return pl.when(when.fill_null(False)).then(verdict).otherwise(pl.lit(None, dtype=VERDICT))


@functools.cache
def _load_built_in() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.ispkg:
            importlib.import_module(f"curate.filters.{module.name}")


def rules(*kinds: Kind) -> dict[str, Rule]:
    """Return the registered rules of these kinds (by default all), sorted by name."""
    _load_built_in()
    return {name: _RULES[name] for name in sorted(_RULES) if not kinds or _RULES[name].kind in kinds}


def get(name: str, *kinds: Kind) -> Rule:
    """Return a rule by name; raises RecipeError with the closest name if there is none."""
    known = rules(*kinds)
    if name not in known:
        what = "signal" if kinds == ("signal",) else "filter"
        raise RecipeError(f"unknown {what} {name!r}{did_you_mean(name, known)}")
    return known[name]


def part_of(name: str) -> Rule | None:
    """Return the repair that is part of the filter of this name."""
    _load_built_in()
    return _PARTS.get(name)


def check(name: str, settings: Settings | None = None) -> dict[str, object]:
    """Return all settings of a rule, `settings` over its defaults; raises RecipeError for an invalid name or value."""
    known = get(name)
    values = settings or {}
    for key in values:
        if key not in known.settings:
            hint = did_you_mean(key, known.settings) or "; it has none"
            raise RecipeError(f"{known.label} has no setting {key!r}{hint}")
    complete = {
        key: _convert(known, key, values[key]) if key in values else default for key, default in known.settings.items()
    }
    if known.check is not None:
        known.check(complete)
    if known.kind == "filter" and not known.takes_frame:
        known.expression(complete)  # the function checks what a type cannot express, such as language codes
    return complete


def check_range(name: str, key: str, value: float, lowest: float, highest: float = math.inf) -> None:
    """Raise RecipeError unless a filter's setting is from `lowest` to `highest`."""
    if not lowest <= value <= highest:
        wanted = f"{lowest:g} or more" if highest == math.inf else f"a number from {lowest:g} to {highest:g}"
        raise RecipeError(f"filter {name!r}: {key} = {value!r} is not allowed; give {wanted}")


def _convert(known: Rule, key: str, value: object) -> object:
    """Return `value` in the type of its default: a TOML array as a tuple, a whole number as a float."""
    default = known.settings[key]
    if isinstance(default, tuple | list):
        kind, many = (type(default[0]) if default else str), True
        if isinstance(value, tuple | list) and all(type(item) is kind and item == item for item in value):  # not NaN
            return tuple(value)
    else:
        kind, many = type(default), False
        if default is None or (type(value) is kind and value == value):  # not NaN
            return value
        if kind is float and type(value) is int:
            return float(value)
    one = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    lists = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of texts"}
    expected = (lists if many else one).get(kind, kind.__name__)
    raise RecipeError(f"{known.label}: {key} = {value!r} is not allowed; give {expected}, like {_example(default)}")


def _example(default: object) -> str:
    """Return a default as TOML."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(_example, default[:2] or ('en', 'ko')))}]"
    return f'"{default}"' if isinstance(default, str) else str(default)


def forget(module: str) -> None:
    """Unregister the rules that a module defined."""
    for known in (_RULES, _PARTS):
        for name in [name for name, rule in known.items() if rule.function.__module__ == module]:
            del known[name]


def load(path: str | Path) -> list[str]:
    """Import a user's file of filters and return the names it registers; raises RecipeError if it fails.

    Loading a file again replaces its earlier rules. A name that curate or another file uses is refused.
    """
    file = Path(path)
    try:
        digest = hashlib.blake2b(str(file.resolve()).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
        spec = importlib.util.spec_from_file_location(f"{USER_MODULE}{digest}", file) if file.is_file() else None
    except (OSError, ValueError):  # a name too long, or with a NUL
        spec = None
    if spec is None or spec.loader is None:
        raise RecipeError(f"no file of filters at {str(path)!r}; give a Python file (.py)")
    _load_built_in()
    forget(spec.name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        forget(spec.name)
        text = str(error) if isinstance(error, RecipeError) else first_line(error)
        raise RecipeError(f"filters file {str(path)!r} failed: {text}") from error
    names = [name for name, known in rules().items() if known.function.__module__ == spec.name]
    if not names:
        raise RecipeError(f"filters file {str(path)!r} defines no filter; decorate one with @curate.filters.rule")
    return names
