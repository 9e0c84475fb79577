"""The one table of rules: what each filter, signal and corpus rule is called, does, and can be set to.

A **filter** is a function that returns a Polars expression over one row per conversation. Null keeps
the row; `true`, or a text that says why (with the numbers in it), drops it; `reject` builds such an
expression. The function's name is the recipe key and the rule written beside each reject, its keyword
defaults are its settings, and the first line of its docstring is its documentation:

    @rule
    def too_short(minimum: int = 16) -> pl.Expr:
        '''Drop conversations with fewer characters than `minimum`.'''
        return reject(pl.col("characters") < minimum, "{characters} characters, minimum {minimum}",
                      characters=pl.col("characters"), minimum=minimum)

A **signal** measures: it takes the frame and returns columns to add to it. A **corpus rule** takes a frame
of hashes of the whole set (duplicates) once the workers are done. Both may have settings after the frame.

Columns a filter can read: `source_id, messages, prompts, answers` (lists of text: user and assistant
contents), `html_answers` (list of bool, which answers were or may have been HTML), `turns` (messages),
`characters`, `model`, `metadata` (JSON text or null), and every signal's columns.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import polars as pl

from curate.errors import RecipeError, did_you_mean

Kind = Literal["filter", "signal", "corpus"]
Function = TypeVar("Function", bound=Callable[..., object])

VERDICT = pl.Struct({"reason": pl.String, "evidence": pl.String})
EVIDENCE = 200  # characters of evidence that are kept
USER_MODULE = "curate_user_filters_"


@dataclass(frozen=True)
class Rule:
    """One registered rule: `settings` maps each setting's name to its default."""

    name: str
    kind: Kind
    function: Callable[..., object]
    summary: str
    doc: str
    settings: Mapping[str, object]
    columns: Mapping[str, pl.DataType]

    @property
    def label(self) -> str:
        """How messages name the rule: its kind and name, and the file of one that is not built in."""
        module = self.function.__module__
        file = None if module.startswith("curate.") else getattr(sys.modules.get(module), "__file__", None)
        return f"{self.kind} {self.name!r}" + (f" in {file!r}" if file else "")

    def expression(self, settings: Mapping[str, object]) -> pl.Expr:
        """Return what the filter gives: an expression of bool, text or verdict, null where a row is kept."""
        try:
            built = self.function(**{**self.settings, **settings})
        except RecipeError:
            raise
        except Exception as error:
            raise RecipeError(f"{self.label} failed: {first_line(error)}") from error
        if not isinstance(built, pl.Expr):
            raise RecipeError(f"{self.label} returned {type(built).__name__}, not a Polars expression")
        return built


_RULES: dict[str, Rule] = {}


def first_line(error: BaseException) -> str:
    """Return an error as `Type: text`, without the query plan that Polars prints on the lines below."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _defaults(function: Callable[..., object], kind: Kind, name: str) -> dict[str, object]:
    """Read the settings off a signature; a signal and a corpus rule take the frame first."""
    parameters = list(inspect.signature(function).parameters.values())
    settings = parameters if kind == "filter" else parameters[1:]
    for parameter in settings:
        if parameter.default is inspect.Parameter.empty:
            raise RecipeError(f"{kind} {name!r}: setting {parameter.name!r} has no default; its default gives its type")
    return {parameter.name: parameter.default for parameter in settings}


def _register(function: Callable[..., object], kind: Kind, columns: Mapping[str, pl.DataType]) -> None:
    name = getattr(function, "__name__", "")
    doc = inspect.cleandoc(function.__doc__ or "")
    if not doc:
        raise RecipeError(f"{kind} {name!r} has no docstring; its first line is its documentation")
    # a notebook's cell is run again and again; anywhere else the second of a name would silence the first
    if name in _RULES and function.__module__ != "__main__":
        raise RecipeError(f"{kind} {name!r} is already defined: {_RULES[name].label}; give it another name")
    summary = doc.split("\n\n")[0].replace("\n", " ")
    _RULES[name] = Rule(name, kind, function, summary, doc, _defaults(function, kind, name), columns)


def rule(function: Function) -> Function:
    """Register a filter: a function of settings that returns an expression, null where a row is kept."""
    _register(function, "filter", {})
    return function


def corpus_rule(function: Function) -> Function:
    """Register a rule that needs the whole set at once: a function of a frame of hashes (and settings)."""
    _register(function, "corpus", {})
    return function


def signal(**columns: pl.DataType | type[pl.DataType]) -> Callable[[Function], Function]:
    """Register a signal: a function of the frame (and settings) that returns a frame of exactly `columns`."""
    types = {name: dtype if isinstance(dtype, pl.DataType) else dtype() for name, dtype in columns.items()}

    def decorate(function: Function) -> Function:
        _register(function, "signal", types)
        return function

    return decorate


def reject(when: pl.Expr, reason: str, *, evidence: pl.Expr | str | None = None, **values: pl.Expr | object) -> pl.Expr:
    """Return a verdict: null where `when` is not true, else `reason` with its `{names}` filled from `values`.

    `evidence` is the piece of text that shows it, cut at 200 characters.
    """
    parts: list[pl.Expr] = []
    for text, name in re.findall(r"([^{}]*)(?:\{(\w+)\})?", reason):
        if text:
            parts.append(pl.lit(text))
        if name:
            value = values[name]
            parts.append(value.cast(pl.String) if isinstance(value, pl.Expr) else pl.lit(str(value)))
    shown = evidence if isinstance(evidence, pl.Expr) else pl.lit(evidence, dtype=pl.String)
    verdict = pl.struct(
        reason=pl.concat_str(parts, ignore_nulls=True), evidence=shown.cast(pl.String).str.slice(0, EVIDENCE)
    )
    return pl.when(when.fill_null(False)).then(verdict).otherwise(pl.lit(None, dtype=VERDICT))


@functools.cache
def _load_built_in() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.ispkg:
            importlib.import_module(f"curate.filters.{module.name}")


def rules(*kinds: Kind) -> dict[str, Rule]:
    """Return the registered rules of these kinds (all kinds, if none is named), in order of name."""
    _load_built_in()
    return {name: _RULES[name] for name in sorted(_RULES) if not kinds or _RULES[name].kind in kinds}


def get(name: str, *kinds: Kind) -> Rule:
    """Return one rule by name; raises RecipeError with the nearest name where there is none."""
    known = rules(*kinds)
    if name not in known:
        raise RecipeError(f"unknown filter {name!r}{did_you_mean(name, known)}")
    return known[name]


def check(name: str, settings: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return a rule's settings in full, `settings` over its defaults; raises RecipeError for what is not allowed."""
    found = get(name)
    given = settings or {}
    for key in given:
        if key not in found.settings:
            hint = did_you_mean(key, found.settings) or "; it has none"
            raise RecipeError(f"{found.label} has no setting {key!r}{hint}")
    full = {key: _conform(found, key, given[key]) if key in given else value for key, value in found.settings.items()}
    if found.kind == "filter":
        found.expression(full)  # a filter checks the values that a type cannot, such as a language's code
    return full


def _conform(found: Rule, key: str, value: object) -> object:
    """Return `value` as its default's type; TOML's arrays become tuples, whole numbers pass for fractions."""
    default = found.settings[key]
    if isinstance(default, tuple | list):
        kind, words = (type(default[0]) if default else str), "a list of "
        if isinstance(value, tuple | list) and all(type(item) is kind for item in value):
            return tuple(value)
    else:
        kind, words = type(default), ""
        if default is None or type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
    words += {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(kind, kind.__name__)
    raise RecipeError(f"{found.label}: {key} = {value!r} is not allowed; give {words}, like {_example(default)}")


def _example(default: object) -> str:
    """Write a default the way TOML does."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(_example, default or ('en', 'ko')))}]"
    return f'"{default}"' if isinstance(default, str) else str(default)


def _forget(module: str) -> None:
    for name in [name for name, known in _RULES.items() if known.function.__module__ == module]:
        del _RULES[name]


def load(path: str | Path) -> list[str]:
    """Run a user's own file of filters and return the names it registered; raises RecipeError if it fails.

    Loading a file again replaces what it registered before; a name that another file or curate has is refused.
    """
    file = Path(path)
    digest = hashlib.blake2b(str(file.resolve()).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    spec = importlib.util.spec_from_file_location(f"{USER_MODULE}{digest}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise RecipeError(f"no file of filters at {str(path)!r}; give a Python file (.py)")
    _load_built_in()
    _forget(spec.name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        _forget(spec.name)
        text = str(error) if isinstance(error, RecipeError) else first_line(error)
        raise RecipeError(f"filters file {str(path)!r} failed: {text}") from error
    found = [name for name, known in rules().items() if known.function.__module__ == spec.name]
    if not found:
        raise RecipeError(f"filters file {str(path)!r} defines no filter; decorate one with @curate.filters.rule")
    return found
