"""Decode settings from TOML into frozen dataclasses, with types and limits checked, and write them back as TOML."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from curate.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

Table = Mapping[str, object]
T = TypeVar("T")
MAX_DEPTH = 16  # of tables and lists in a file
MAX_INT = 1 << 63  # as in the specification of TOML
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def limits(default: T, minimum: float, below: float | None = None) -> T:
    """Declare a number that must be at least `minimum` and, if given, less than `below`."""
    return field(default=default, metadata={"minimum": minimum, "below": below})


def merge(under: Table, over: Table) -> dict[str, object]:
    """Override one table with another, key by key; `true` in place of a table keeps its settings."""
    merged = dict(under)
    for key, value in over.items():
        current = merged.get(key)
        if isinstance(value, Mapping) and isinstance(current, Mapping):
            merged[key] = merge(current, value)
        elif not (value is True and isinstance(current, Mapping)):
            merged[key] = value
    return merged


@dataclass(frozen=True)
class Catalogue:
    """The built-in TOML files of one kind in a package: `noun` names the kind in errors, `default` is listed first."""

    package: str
    folder: str
    noun: str
    default: str

    def _path(self) -> Traversable:
        from importlib import resources  # in functions, like tomllib: listing the commands imports this module

        return resources.files(self.package) / self.folder

    def _text(self, name: str) -> str:
        return (self._path() / f"{name}.toml").read_text("utf-8")

    def names(self) -> list[str]:
        """Return the names of the files, the default first."""
        files = (entry.name for entry in self._path().iterdir())
        names = [file.removesuffix(".toml") for file in files if file.endswith(".toml")]
        return sorted(names, key=lambda name: (name != self.default, name))

    def summaries(self) -> dict[str, str]:
        """Return the names of the files with their one-line summaries, the default first."""
        import tomllib

        return {name: str(tomllib.loads(self._text(name))["summary"]) for name in self.names()}

    def source(self, name: str) -> str:
        """Return the text of a built-in file, with its comments; raises RecipeError for an unknown name."""
        if name not in self.names():
            raise RecipeError(f"no built-in {self.noun} {name!r}{did_you_mean(name, self.names())}")
        return self._text(name)

    def read(self, name: str) -> tuple[dict[str, object], str, Path]:
        """Return a file's values, its name in errors, and the folder that its paths are relative to.

        `name` is a built-in name or a path. Raises RecipeError for any other name, and for a file that cannot be read
        or is not TOML.
        """
        import tomllib

        known = self.names()
        if name in known:
            return tomllib.loads(self._text(name)), name, Path()
        path = Path(name)
        try:
            if path.suffix != ".toml" and not path.exists():
                hint = f"{did_you_mean(name, known)} (or give the path of a .toml file)"
                raise RecipeError(f"no {self.noun} {name!r}{hint}")
            values = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise RecipeError(f"cannot read {self.noun} {name!r}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:  # also a number of too many digits, a name with a NUL
            raise RecipeError(f"{name}: not valid TOML: {error}") from error
        refuse_odd(values, name)
        return values, name, path.parent


def refuse_odd(values: Table, where: str) -> None:
    """Raise RecipeError for tables of more than MAX_DEPTH levels, and for whole numbers of more than 64 bits."""
    level: list[object] = [values]
    for _ in range(MAX_DEPTH):
        level = [each for item in level for each in _inside(item)]
        if any(isinstance(each, int) and not -MAX_INT <= each < MAX_INT for each in level):
            raise RecipeError(f"{where}: a whole number in it has more than 64 bits; give a smaller one")
    if level:
        raise RecipeError(f"{where}: its tables are nested more than {MAX_DEPTH} deep")


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


def decode_sections(values: Table, sections: Mapping[str, type], where: str) -> dict[str, Any]:
    """Decode every section into its dataclass, and the name and summary of the file."""
    decoded: dict[str, Any] = {
        name: decode_section(kind, name, values.get(name, {}), where) for name, kind in sections.items()
    }
    return {
        "name": decode_text(values, "name", where, Path(where).stem or "custom"),
        "summary": decode_text(values, "summary", where, ""),
        **decoded,
    }


# ---- decoding; `where` names the file and key, at the start of each error


def decode_section(kind: type[T], name: str, values: object, where: str) -> T:
    """Decode one section into its dataclass; raises RecipeError for an unknown key or a wrong value."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}: {name} = {values!r} must be a section, [{name}]")
    fields = {item.name: item for item in dataclasses.fields(typing.cast(Any, kind))}
    refuse_unknown(values, fields, where, f"{name}.")
    hints = typing.get_type_hints(kind)
    decoded = {key: decode(hints[key], value, f"{where}: {name}.{key}") for key, value in values.items()}
    for key, value in decoded.items():
        _check_limits(fields[key].metadata, value, f"{where}: {name}.{key}")
    return kind(**decoded)


def decode(hint: Any, value: object, where: str) -> Any:
    """Return the value as the declared type of its field; raises RecipeError if it has another."""
    if typing.get_origin(hint) is Literal:
        return _choice(typing.get_args(hint), value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{where} = {value!r} must be a list")
        return tuple(decode(typing.get_args(hint)[0], item, where) for item in value)
    if typing.get_origin(hint) is Mapping:
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} = {value!r} must be a table")
        return dict(value)
    if isinstance(hint, types.UnionType):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
        return decode(hint, value, where)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise RecipeError(f"{where} = {value!r} must be {TYPE_NAMES[hint]}")
    return value


def decode_text(values: Table, key: str, where: str, default: str) -> str:
    """Return the text under a key, or the default."""
    return str(decode(str, values.get(key, default), f"{where}: {key}"))


def refuse_unknown(values: Table, known: Iterable[str], where: str, prefix: str) -> None:
    """Raise RecipeError for the first unknown key, with the nearest known one."""
    names = list(known)
    for key in values:
        if key not in names:
            kind = "setting" if prefix else "section"
            raise RecipeError(f"{where}: unknown {kind} {prefix + key!r}{did_you_mean(key, names)}")


def _choice(choices: Sequence[str], value: object, where: str) -> object:
    if value in choices:
        return value
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    raise RecipeError(f"{where} = {value!r} must be one of {', '.join(map(repr, choices))}{hint}")


def _check_limits(declared: Mapping[Any, Any], value: object, where: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where} = {value!r} must be a finite number")
    minimum, below = declared.get("minimum"), declared.get("below")
    if minimum is not None and not value >= minimum:  # written so that NaN fails too
        raise RecipeError(f"{where} = {value!r} must be at least {minimum}")
    if below is not None and not value < below:
        raise RecipeError(f"{where} = {value!r} must be less than {below}")


# ---- writing


def flatten(values: Table, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of nested tables, by names such as tokens.max_tokens."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def plain_values(values: Table) -> dict[str, object]:
    """Return JSON values, without those that are None, which TOML cannot express."""
    set_values = {key: value for key, value in values.items() if value is not None}
    sequences = (tuple, set, frozenset)
    return {key: list(value) if isinstance(value, sequences) else value for key, value in set_values.items()}


def toml_tables(tables: Table) -> list[str]:
    """Return the lines of all tables that are not empty, with a blank line before each."""
    lines = []
    for name, values in tables.items():
        if isinstance(values, Mapping) and values:
            lines += ["", f"[{name}]", *(toml_assignment(key, value) for key, value in values.items())]
    return lines


def toml_assignment(key: str, value: object) -> str:
    """Return `key = value`."""
    return f"{toml_key(key)} = {_toml(value)}"


def toml_key(key: str) -> str:
    """Return a key bare where TOML allows it, else in quotes."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(toml_assignment(key, item) for key, item in value.items()) + "}"
    if isinstance(value, str):  # JSON's escapes are valid in TOML, which also escapes DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)


# ---- JSON files of curate's own, decoded without msgspec: training runs where only the packages for it are installed

JSON_TYPES = {
    bool: "true or false",
    int: "a whole number, 0 or more",
    float: "a number",
    str: "text",
    dict: "a table",
    list: "a list",
}


def decode_json(kind: type[T], values: object) -> T:
    """Return JSON values as a dataclass; unknown keys are ignored. Raises ValueError that names the key."""
    decoded: T = _json(kind, values, "")
    return decoded


def _json(kind: Any, value: object, where: str) -> Any:
    """Return a JSON value as the type that its field declares; `where` is its key, such as `counts.kept`."""
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):  # `X | None`
        return None if value is None else _json(typing.get_args(kind)[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _json_fields(typing.cast(Any, kind), _check_type(dict, value, where), where)
    container, arguments = typing.get_origin(kind), typing.get_args(kind)
    if container in (list, tuple):
        items = enumerate(_check_type(list, value, where))
        return container(_json(arguments[0], item, f"{where}[{index}]") for index, item in items)
    if container is dict:
        return {
            key: _json(arguments[1], item, f"{where}.{key}") for key, item in _check_type(dict, value, where).items()
        }
    return _check_type(kind, value, where)


def _json_fields(kind: Any, values: Mapping[str, object], where: str) -> Any:
    hints = _hints(kind)
    prefix = f"{where}." if where else ""
    for item in dataclasses.fields(kind):
        if (
            item.name not in values
            and item.default is dataclasses.MISSING
            and item.default_factory is dataclasses.MISSING
        ):
            raise ValueError(f"`{prefix}{item.name}` is missing")
    return kind(**{name: _json(hint, values[name], prefix + name) for name, hint in hints.items() if name in values})


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def _check_type(kind: type, value: object, where: str) -> Any:
    """Return a value of exactly this type; integers must not be negative, and count as floats too."""
    if kind is float and type(value) is int:
        return value
    if type(value) is not kind or (kind is int and typing.cast(int, value) < 0):
        raise ValueError(f"`{where or 'the file'}` must be {JSON_TYPES[kind]}")
    return value
