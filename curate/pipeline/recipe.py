"""Recipes: every setting, its default and its check, between TOML and frozen dataclasses."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack

from curate.errors import RecipeError, did_you_mean
from curate.pipeline.overrides import Overrides, declared
from curate.pipeline.repair_turns import RepairSettings as RepairSettings  # the section [repair], by this name too
from curate.settings import (
    Catalogue,
    Table,
    decode,
    decode_sections,
    limits,
    merge,
    plain_values,
    refuse_unknown,
    toml_assignment,
    toml_key,
    toml_tables,
)

RECIPES = Catalogue("curate.pipeline", "recipes", "recipe", "vicuna")
MAX_BASES = 8  # recipes that build on recipes, before it must be a circle


@dataclass(frozen=True)
class InputSettings:
    """What is read, and where reading stops."""

    limit: int = limits(0, 0)  # records; 0 reads all
    max_record_bytes: int = limits(256 << 20, 1)
    max_expanded_bytes: int = limits(1 << 40, 1)  # of one compressed file
    max_expansion: int = limits(1000, 1)  # bytes out per byte in, past the first 64 MiB


@dataclass(frozen=True)
class TokenSettings:
    """How pieces are counted and how long one may be."""

    tokenizer: str = "llama3"
    template: str = "vicuna"
    max_tokens: int = limits(2048, 1)  # of the rendered prompt
    overlong: Literal["reject", "cut"] = "reject"


@dataclass(frozen=True)
class EvalSettings:
    """Which share of the conversations is held out."""

    fraction: float = limits(0.01, 0.0, 1.0)
    minimum: int = limits(200, 0)  # conversations; a smaller set holds none out
    seed: str = "curate"


@dataclass(frozen=True)
class OutputSettings:
    """What is written beside the conversations."""

    originals: bool = True


@dataclass(frozen=True)
class Recipe:
    """Which repairs and filters run, and with which settings; `filters` holds those that are on, in order."""

    name: str = "custom"
    summary: str = ""
    input: InputSettings = field(default_factory=InputSettings)
    repair: RepairSettings = field(default_factory=RepairSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    filters: Mapping[str, Table] = field(default_factory=dict)
    filter_files: tuple[str, ...] = ()  # a user's own files of filters
    eval: EvalSettings = field(default_factory=EvalSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def to_dict(self) -> dict[str, object]:
        """Return the recipe as plain JSON values, in the shape of the TOML file."""
        filters: dict[str, object] = {"files": list(self.filter_files)} if self.filter_files else {}
        filters |= {name: plain_values(settings) if settings else True for name, settings in self.filters.items()}
        sections = {name: plain_values(dataclasses.asdict(getattr(self, name))) for name in SECTIONS}
        return {"name": self.name, "summary": self.summary, **sections, "filters": filters}

    def to_toml(self) -> str:
        """Return the recipe as a TOML file that `load` reads back to an equal recipe."""
        values = self.to_dict()
        filters = typing.cast("dict[str, object]", values.pop("filters"))
        flat = {key: value for key, value in filters.items() if not isinstance(value, dict)}
        nested = {f"filters.{toml_key(key)}": value for key, value in filters.items() if isinstance(value, dict)}
        tables = {key: value for key, value in values.items() if isinstance(value, dict)}
        top = [toml_assignment(key, value) for key, value in values.items() if not isinstance(value, dict)]
        return "\n".join([*top, *toml_tables({**tables, "filters": flat, **nested})]) + "\n"


SECTIONS: dict[str, type] = {
    "input": InputSettings,
    "repair": RepairSettings,
    "tokens": TokenSettings,
    "eval": EvalSettings,
    "output": OutputSettings,
}


def load(recipe: str | Path | Recipe, *, filters_too: bool = True) -> Recipe:
    """Return a built-in recipe by name, or the one in a TOML file, with every setting filled in and checked.

    Without `filters_too` the filters are taken as they stand, and neither polars nor a user's file is loaded.
    Raises RecipeError that names the file, the key, the value and the nearest right name.
    """
    if isinstance(recipe, Recipe):
        return from_dict(recipe.to_dict(), where=f"recipe {recipe.name!r}", filters_too=filters_too)
    values, where = _read(str(recipe), MAX_BASES)
    return from_dict(values, where, filters_too=filters_too)


def from_dict(values: Table, where: str = "recipe", *, filters_too: bool = True) -> Recipe:
    """Build a recipe from plain values; `filters_too` checks the filters and fills in their settings."""
    known = ["name", "summary", "base", "filters", *SECTIONS]
    refuse_unknown(values, known, where, "")
    filters, files = _filters(values.get("filters", {}), where, filters_too)
    recipe = Recipe(**decode_sections(values, SECTIONS, where), filters=filters, filter_files=files)
    _check_template(recipe.tokens.template, where)
    return recipe


def override(recipe: Recipe, **overrides: Unpack[Overrides]) -> Recipe:
    """Return the recipe with the caller's settings; one that is None or empty changes nothing.

    Raises TypeError for a name that is not declared in `Overrides`, RecipeError for a value that is not allowed.
    """
    settings = declared()
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
    """Return changes to the filters: languages to keep, and the filters of a user's own files, turned on."""
    changes: dict[str, object] = {}
    if language:
        changes["languages"] = {"keep": split_commas(language)}
    if files:
        names = [str(path) for path in files]
        changes |= {"files": [*recipe.filter_files, *names], **dict.fromkeys(_names_in(names), True)}
    return changes


def split_commas(words: Sequence[str]) -> list[str]:
    """Split `en,ko` and repeated values into single ones, in order, each once."""
    return list(dict.fromkeys(part.strip() for word in words for part in word.split(",") if part.strip()))


def _read(name: str, bases_left: int) -> tuple[dict[str, object], str]:
    """Read a recipe's values over those of the recipe it names as its `base`."""
    if bases_left == 0:
        raise RecipeError(f"recipe {name!r}: more than {MAX_BASES} bases, each the base of the next; is it a circle?")
    values, where, folder = RECIPES.read(name)
    base = values.pop("base", None)
    _absolute_files(values, folder)
    if base is None:
        return values, where
    if not isinstance(base, str):
        raise RecipeError(f"{where}: base = {base!r} must be the name of a recipe or the path of its file")
    if base not in RECIPES.summaries():
        base = str(folder / base)
    parent, parent_where = _read(base, bases_left - 1)
    from_dict(parent, parent_where, filters_too=False)  # so that its own mistakes carry its own name
    return merge(parent, {"name": Path(where).stem, "summary": "", **values}), where


def _absolute_files(values: dict[str, object], folder: Path) -> None:
    """Let the files of filters that a recipe names start from the recipe's own folder."""
    filters = values.get("filters")
    if isinstance(filters, dict) and isinstance(filters.get("files"), list):
        filters["files"] = [str(folder / file) if isinstance(file, str) else file for file in filters["files"]]


def _check_template(name: str, where: str) -> None:
    from curate.schemas.prompts import TEMPLATES

    if name not in TEMPLATES:
        raise RecipeError(f"{where}: unknown tokens.template {name!r}{did_you_mean(name, TEMPLATES)}")


def _filters(values: object, where: str, check: bool) -> tuple[dict[str, Table], tuple[str, ...]]:
    """Return the filters that are on with their settings, and the user's files of filters."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}: filters = {values!r} must be a section, [filters]")
    files = decode(tuple[str, ...], values.get("files", []), f"{where}: filters.files")
    named = {key: value for key, value in values.items() if key != "files"}
    for key, value in named.items():
        if not isinstance(value, (bool, Mapping)):
            raise RecipeError(f"{where}: filters.{key} = {value!r} must be true, false or a table of its settings")
    if check:
        try:
            named = {key: _checked(key, value) for key, value in _with_own(named, files).items()}
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
    on = {key: value for key, value in named.items() if value is not False}
    return {key: {} if value is True else _frozen(value) for key, value in on.items()}, files


def _with_own(named: dict[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """Turn on all filters of a user's file, unless the recipe names some of them: then only those."""
    added: dict[str, Any] = {}
    for file in files:
        own = _names_in([file])
        if not any(name in named for name in own):
            added |= dict.fromkeys(own, True)
    return {**named, **added}


def _names_in(files: Sequence[str]) -> list[str]:
    from curate.filters import registry

    found = [name for file in files for name in registry.load(file)]
    return [name for name in found if registry.get(name).kind == "filter"]


def _checked(name: str, value: bool | Table) -> bool | Table:
    """Check one filter's name and settings against its function, and fill in its defaults."""
    from curate.filters import registry

    registry.get(name, "filter", "corpus")
    full = registry.check(name, value if isinstance(value, Mapping) else {})
    return full if value is not False else False


def _frozen(settings: Table) -> dict[str, object]:
    """Return settings with lists as tuples and without those that are null, which TOML cannot say."""
    values = {key: value for key, value in settings.items() if value is not None}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
