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

A **signal** measures: it takes the frame and returns columns to add to it. A **corpus rule** needs
the whole set (duplicates) and runs over what the workers send back; only its settings are declared here.

Columns a filter can read: `source_id, messages, prompts, answers` (lists of text: user and assistant
contents), `html_answers` (list of bool, which answers came as ChatGPT's HTML), `turns` (messages),
`characters`, `model`, `metadata` (JSON text or null), and every signal's columns.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
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

    def expression(self, settings: Mapping[str, object]) -> pl.Expr:
        """Return the filter's verdict: a struct {reason, evidence}, null where the row is kept."""
        built = self.function(**{**self.settings, **settings})
        if not isinstance(built, pl.Expr):
            raise RecipeError(f"filter {self.name!r} returned {type(built).__name__}, not a Polars expression")
        return built


_RULES: dict[str, Rule] = {}


def _register(function: Callable[..., object], kind: Kind, columns: Mapping[str, pl.DataType]) -> None:
    parameters = inspect.signature(function).parameters.values()
    settings = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    name = getattr(function, "__name__", "")
    doc = inspect.cleandoc(function.__doc__ or "")
    if not doc:
        raise RecipeError(f"{kind} {name!r} has no docstring; its first line is its documentation")
    if name in _RULES and _RULES[name].function.__module__ != function.__module__:
        raise RecipeError(f"{kind} {name!r} is already defined in {_RULES[name].function.__module__}")
    _RULES[name] = Rule(name, kind, function, doc.split("\n\n")[0].replace("\n", " "), doc, settings, columns)


def rule(function: Function) -> Function:
    """Register a filter: a function of settings that returns an expression, null where a row is kept."""
    _register(function, "filter", {})
    return function


def corpus_rule(function: Function) -> Function:
    """Register a rule that needs the whole set at once."""
    _register(function, "corpus", {})
    return function


def signal(**columns: pl.DataType) -> Callable[[Function], Function]:
    """Register a signal: a function of the frame (and settings) that returns a frame of exactly `columns`."""

    def decorate(function: Function) -> Function:
        _register(function, "signal", columns)
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
        reason=pl.concat_str(parts, ignore_nulls=True), evidence=shown.cast(pl.String).str.slice(0, 200)
    )
    return pl.when(when.fill_null(False)).then(verdict).otherwise(pl.lit(None, dtype=VERDICT))


def verdict_of(expression: pl.Expr, dtype: pl.DataType, summary: str) -> pl.Expr:
    """Bring what a filter returned (bool, text or verdict) to a verdict; `dtype` is the type it evaluated to."""
    if dtype == pl.Boolean:
        return reject(expression, summary.replace("{", "").replace("}", ""))
    if dtype == pl.String:
        return pl.when(expression.is_not_null()).then(
            pl.struct(reason=expression, evidence=pl.lit(None, dtype=pl.String))
        )
    if dtype == VERDICT:
        return expression
    raise RecipeError(f"a filter must give true, text or a verdict, not {dtype}")


@functools.cache
def _load_built_in() -> None:
    from curate import filters

    filters.load_built_in()


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


def load(path: str | Path) -> list[str]:
    """Run a user's own file of filters and return the names it registered; raises RecipeError if it fails."""
    file = Path(path)
    spec = importlib.util.spec_from_file_location(f"curate_user_filters_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise RecipeError(f"no file of filters at {str(path)!r}; give a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(f"{str(path)!r} failed: {type(error).__name__}: {error}") from error
    found = [name for name, rule in rules().items() if rule.function.__module__ == spec.name]
    if not found:
        raise RecipeError(f"{str(path)!r} defines no filter; decorate one with @curate.filters.rule")
    return found
