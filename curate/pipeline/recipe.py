"""Recipes: settings of `clean` with defaults and checks, as TOML and as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from curate.errors import RecipeError, did_you_mean
from curate.pipeline.overrides import Overrides, read_declarations
from curate.pipeline.repair_turns import RepairSettings as RepairSettings  # re-exported: the section [repair]
from curate.schemas.reading.columns import parse_columns
from curate.schemas.reading.options import ReadOptions
from curate.settings import (
    Catalogue,
    Table,
    decode,
    decode_sections,
    limits,
    merge,
    plain_values,
    refuse_odd,
    refuse_unknown,
    toml_assignment,
    toml_key,
    toml_tables,
)

if TYPE_CHECKING:
    from curate.filters.registry import Kind

RECIPES = Catalogue("curate.pipeline", "recipes", "recipe", "vicuna")
MAX_BASES = 8  # a longer chain of bases must be a cycle


@dataclass(frozen=True)
class InputSettings:
    """Limits on the input, and how its records are read."""

    limit: int = limits(0, 0)  # records; 0 reads all
    max_record_bytes: int = limits(256 << 20, 1)
    max_expanded_bytes: int = limits(1 << 40, 1)  # of one compressed file
    max_expansion: int = limits(1000, 1)  # decompressed bytes per compressed byte, after the first 64 MiB
    damaged_streams: Literal["reject", "keep"] = "reject"  # records that a failed checksum leaves in doubt
    format: str = ""  # the only format to read; empty recognises each record's
    custom_instructions: bool = False  # what users wrote about themselves for all chats becomes the system message
    branches: bool = False  # every branch of a chat becomes a conversation, not only the current one
    encoding: str = "utf-8"  # of text that does not show its own
    columns: tuple[str, ...] = ()  # keys that records have in place of the formats', such as "prompt=question"

    def read_options(self) -> ReadOptions:
        """Return the settings that the formats know."""
        return ReadOptions(self.format, self.custom_instructions, self.branches, parse_columns(self.columns))


@dataclass(frozen=True)
class TokenSettings:
    """How tokens are counted, and the longest piece."""

    tokenizer: str = "llama3"
    template: str = "vicuna"
    max_tokens: int = limits(2048, 1)  # of the rendered prompt
    overlong: Literal["reject", "cut"] = "reject"


@dataclass(frozen=True)
class EvalSettings:
    """The share of conversations that is held out."""

    fraction: float = limits(0.01, 0.0, 1.0)
    minimum: int = limits(200, 0)  # conversations; a smaller set holds none out
    seed: str = "curate"


@dataclass(frozen=True)
class OutputSettings:
    """Tables written in addition to the conversations."""

    originals: bool = True
    redact_rejects: bool = False  # the bytes of rejected records, with what the filters `privacy` and `secrets` redact


@dataclass(frozen=True)
class Recipe:
    """Which repairs, filters and signals run, with which settings; `filters` has those that are on, in order.

    `signals` has those that are measured although no filter that is on reads them.
    """

    name: str = "custom"
    summary: str = ""
    input: InputSettings = field(default_factory=InputSettings)
    repair: RepairSettings = field(default_factory=RepairSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    filters: Mapping[str, Table] = field(default_factory=dict)
    filter_files: tuple[str, ...] = ()  # a user's own files of filters
    signals: Mapping[str, Table] = field(default_factory=dict)
    eval: EvalSettings = field(default_factory=EvalSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def to_dict(self) -> dict[str, object]:
        """Return the recipe as JSON values, structured like the TOML file."""
        filters: dict[str, object] = {"files": list(self.filter_files)} if self.filter_files else {}
        filters |= _switches(self.filters)
        sections = {name: plain_values(dataclasses.asdict(getattr(self, name))) for name in SECTIONS}
        return {
            "name": self.name,
            "summary": self.summary,
            **sections,
            "filters": filters,
            "signals": _switches(self.signals),
        }

    def to_toml(self) -> str:
        """Return the recipe as a TOML file that `load` reads back to an equal recipe."""
        values = self.to_dict()
        tables = {key: value for key, value in values.items() if isinstance(value, dict)}
        for section in ("filters", "signals"):
            switches = typing.cast("dict[str, object]", tables.pop(section))
            tables[section] = {key: value for key, value in switches.items() if not isinstance(value, dict)}
            nested = {key: value for key, value in switches.items() if isinstance(value, dict)}
            tables |= {f"{section}.{toml_key(key)}": value for key, value in nested.items()}
        top = [toml_assignment(key, value) for key, value in values.items() if not isinstance(value, dict)]
        return "\n".join([*top, *toml_tables(tables)]) + "\n"


def _switches(rules: Mapping[str, Table]) -> dict[str, object]:
    return {name: plain_values(settings) if settings else True for name, settings in rules.items()}


SECTIONS: dict[str, type] = {
    "input": InputSettings,
    "repair": RepairSettings,
    "tokens": TokenSettings,
    "eval": EvalSettings,
    "output": OutputSettings,
}


def load(recipe: str | Path | Recipe, *, check_filters: bool = True, run_files: bool = True) -> Recipe:
    """Return a built-in recipe by name, or the recipe in a TOML file, with all settings filled in and checked.

    With `check_filters=False` filters are not checked, and neither Polars nor a user's file is imported. With
    `run_files=False` filters are checked, unless the recipe names a user's file, which would be run.
    Raises RecipeError with the file, the key, the value and the closest valid name.
    """
    if isinstance(recipe, Recipe):
        return from_dict(recipe.to_dict(), where=f"recipe {recipe.name!r}", check_filters=check_filters)
    values, where = _read(str(recipe), MAX_BASES)
    section = values.get("filters")
    has_files = isinstance(section, Mapping) and bool(section.get("files"))
    return from_dict(values, where, check_filters=check_filters and (run_files or not has_files))


def from_dict(values: Table, where: str = "recipe", *, check_filters: bool = True) -> Recipe:
    """Build a recipe from plain values; `check_filters` checks filters and fills in their settings."""
    known = ["name", "summary", "base", "filters", "signals", *SECTIONS]
    refuse_odd(values, where)
    refuse_unknown(values, known, where, "")
    filters, files = _filters(values.get("filters", {}), where, check_filters)
    signals = _signals(values.get("signals", {}), where, check_filters)
    if check_filters:
        _in_recipe(where, lambda: _check_signals(filters, signals))
    recipe = Recipe(**decode_sections(values, SECTIONS, where), filters=filters, filter_files=files, signals=signals)
    _check_template(recipe.tokens.template, where)
    _check_format(recipe.input.format, where)
    _check_encoding(recipe.input.encoding, where)
    _check_columns(recipe.input.columns, where)
    _check_redaction(recipe, where)
    return recipe


def _check_format(name: str, where: str) -> None:
    """Raise RecipeError if a setting names a format that cannot be read."""
    from curate.schemas.formats import FORMATS

    readable = [form.name for form in FORMATS.values() if form.reads]
    if name and name not in readable:
        raise RecipeError(
            f"{where}: input.format = {name!r} is not a format that can be read{did_you_mean(name, readable)}; "
            f"use one of {', '.join(readable)}"
        )


def override(recipe: Recipe, **overrides: Unpack[Overrides]) -> Recipe:
    """Return the recipe with these settings changed; a value that is None or empty changes nothing.

    Raises TypeError for a name that is not in `Overrides`, RecipeError for an invalid value.
    """
    settings = read_declarations()
    changes: dict[str, dict[str, object]] = {}
    for name, value in overrides.items():
        if name not in settings:
            raise TypeError(f"unexpected keyword argument {name!r}{did_you_mean(name, settings)}")
        if value is None or value == ():
            continue
        section, _, key = settings[name][1].key.partition(".")
        changes.setdefault(section, {})[key] = value
    if "filters" in changes:
        changes["filters"] = _filter_changes(recipe, overrides.get("language", ()), overrides.get("filters", ()))
    return from_dict(merge(recipe.to_dict(), changes), where="flags")


def _filter_changes(recipe: Recipe, language: Sequence[str], files: Sequence[str | Path]) -> dict[str, object]:
    """Return changes to the filters: the languages to keep, and all filters of a user's files."""
    changes: dict[str, object] = {}
    if language:
        changes["languages"] = {"keep": split_commas(language)}
    if files:
        names = [str(path) for path in files]
        changes |= {"files": [*recipe.filter_files, *names], **dict.fromkeys(_names_in(names), True)}
    return changes


def split_commas(values: Sequence[str]) -> list[str]:
    """Split values such as `en,ko` at commas; return each part once, in order."""
    return list(dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip()))


def _read(name: str, bases_left: int) -> tuple[dict[str, object], str]:
    """Return a recipe's values, merged over those of its `base`, and the recipe's name in messages."""
    if bases_left == 0:
        raise RecipeError(f"recipe {name!r}: more than {MAX_BASES} nested bases; check `base` for a cycle")
    values, where, folder = RECIPES.read(name)
    base = values.pop("base", None)
    _absolute_files(values, folder)
    if base is None:
        return values, where
    if not isinstance(base, str):
        raise RecipeError(f"{where}: base = {base!r} must be the name of a recipe or the path of its file")
    if base not in RECIPES.names():
        base = str(folder / base)
    parent, parent_where = _read(base, bases_left - 1)
    from_dict(parent, parent_where, check_filters=False)  # errors in the base then name the base
    return merge(parent, {"name": Path(where).stem, "summary": "", **values}), where


def _absolute_files(values: dict[str, object], folder: Path) -> None:
    """Make paths of filter files and of fingerprints relative to the recipe's folder."""
    filters = values.get("filters")
    if isinstance(filters, dict) and isinstance(filters.get("files"), list):
        filters["files"] = [str(folder / file) if isinstance(file, str) else file for file in filters["files"]]
    for section, name in (("filters", "contamination"), ("signals", "benchmark_overlap")):
        rules = values.get(section)
        settings = rules.get(name) if isinstance(rules, dict) else None
        if isinstance(settings, dict) and isinstance(settings.get("benchmarks"), list):
            paths = (str(folder / each) if _is_path(each) else each for each in settings["benchmarks"])
            settings["benchmarks"] = list(paths)


def _is_path(benchmark: object) -> bool:
    return isinstance(benchmark, str) and ("/" in benchmark or benchmark.endswith(".fingerprint"))


def _check_template(name: str, where: str) -> None:
    from curate.schemas.chat_templates import CHAT_TEMPLATES
    from curate.schemas.prompts import TEMPLATES

    if name in CHAT_TEMPLATES:
        like = CHAT_TEMPLATES[name].like
        raise RecipeError(
            f"{where}: tokens.template {name!r} is for training and serving only; clean with {like!r}, and train with "
            f"--template {name}, for which the set is split again"
        )
    if name not in TEMPLATES:
        raise RecipeError(f"{where}: unknown tokens.template {name!r}{did_you_mean(name, TEMPLATES)}")


def _check_columns(columns: Sequence[str], where: str) -> None:
    try:
        parse_columns(columns)
    except RecipeError as error:
        raise RecipeError(f"{where}: input.columns: {error}") from None


def _check_redaction(recipe: Recipe, where: str) -> None:
    if not recipe.output.redact_rejects:
        return
    if recipe.output.originals:
        raise RecipeError(
            f"{where}: output.redact_rejects = true needs originals = false (--no-originals): the originals hold the "
            "records as they were"
        )
    if not any(recipe.filters.get(name, {}).get("action") == "redact" for name in ("privacy", "secrets")):
        raise RecipeError(
            f'{where}: output.redact_rejects = true needs a filter that redacts: privacy = {{ action = "redact" }}, or '
            "--recipe strict"
        )


def _check_encoding(name: str, where: str) -> None:
    from curate.ingest.text.encodings import check_encoding

    try:
        check_encoding(name)
    except RecipeError as error:
        raise RecipeError(f"{where}: input.encoding: {error}") from None


def _filters(values: object, where: str, check: bool) -> tuple[dict[str, Table], tuple[str, ...]]:
    """Return the filters that are on with their settings, and the user's filter files."""
    named = _check_switches(values, where, "filters", but="files")
    files = decode(
        tuple[str, ...], values.get("files", []) if isinstance(values, Mapping) else [], f"{where}: filters.files"
    )
    if check:
        named = _in_recipe(where, lambda: _add_user_filters(named, files))
    return _enabled(named, where, ("filter", "corpus", "repair") if check else ()), files


def _signals(values: object, where: str, check: bool) -> dict[str, Table]:
    """Return the signals that are measured in any case, with their settings."""
    return _enabled(_check_switches(values, where, "signals"), where, ("signal",) if check else ())


def _check_signals(filters: Mapping[str, Table], signals: Mapping[str, Table]) -> dict[str, Any]:
    """Raise RecipeError if two rules need a signal with other settings."""
    from curate.filters import verdicts

    return verdicts.needed_signals(filters, signals)


def _check_switches(values: object, where: str, section: str, but: str = "") -> dict[str, Any]:
    """Return a section's rules; raises RecipeError if one is not switched on, off, or given settings."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}: {section} = {values!r} must be a section, [{section}]")
    named = {key: value for key, value in values.items() if key != but}
    for key, value in named.items():
        if not isinstance(value, (bool, Mapping)):
            raise RecipeError(f"{where}: {section}.{key} = {value!r} must be true, false or a table of its settings")
    return named


def _enabled(named: Mapping[str, Any], where: str, kinds: Sequence[Kind]) -> dict[str, Table]:
    """Return the rules that are on; if `kinds` names their kinds, checked and with all settings."""
    if kinds:
        named = _in_recipe(where, lambda: {key: _check_rule(key, value, kinds) for key, value in named.items()})
    enabled = {key: value for key, value in named.items() if value is not False}
    return {key: {} if value is True else _freeze(value) for key, value in enabled.items()}


def _in_recipe(where: str, check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return check()
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _add_user_filters(named: dict[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """Turn on all filters of each user's file, unless the recipe names some of them."""
    added: dict[str, Any] = {}
    for file in files:
        names = _names_in([file])
        if not any(name in named for name in names):
            added |= dict.fromkeys(names, True)
    return {**named, **added}


def _names_in(files: Sequence[str]) -> list[str]:
    from curate.filters import registry

    names = [name for file in files for name in registry.load(file)]
    return [name for name in names if registry.get(name).kind in ("filter", "repair")]


def _check_rule(name: str, value: bool | Table, kinds: Sequence[Kind]) -> bool | Table:
    """Return a rule's settings with its defaults; False if it is off. Raises RecipeError."""
    from curate.filters import registry

    registry.get(name, *kinds)
    complete = registry.check(name, value if isinstance(value, Mapping) else {})
    return complete if value is not False else False


def _freeze(settings: Table) -> dict[str, object]:
    """Return settings with lists as tuples and without None, which TOML cannot express."""
    values = {key: value for key, value in settings.items() if value is not None}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
