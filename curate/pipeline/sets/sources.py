"""What signals and repairs depend on beside their settings: a user's code, and files that their settings name."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from curate.errors import SetError
from curate.filters import registry, repairs, verdicts
from curate.filters.registry import Rule, Settings
from curate.pipeline.recipe import Recipe

PATHS = ("model", "benchmarks")  # settings that may name a file by its name alone


def find_digests(recipe: Recipe) -> dict[str, str]:
    """Return, by name, a digest for each signal and repair that a recipe runs and that depends on files."""
    signals = verdicts.needed_signals(recipe.filters, recipe.signals).items()
    rules = [*((registry.get(name), settings) for name, settings in signals), *repairs.find_repairs(recipe.filters)]
    found = {rule.name: _digest(rule, settings) for rule, settings in rules}
    return {name: digest for name, digest in sorted(found.items()) if digest}


def _digest(rule: Rule, settings: Settings) -> str | None:
    parts = [_code(rule)] if rule.is_users else []
    for key, value in sorted(settings.items()):
        parts += [digest for path in _paths(key, value) for digest in _contents(path)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else None


def _code(rule: Rule) -> str:
    """Return the source of a user's file without its filters, which `refilter` applies again."""
    module = rule.function.__module__
    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_bytes())
    filters = {known.name for known in registry.rules("filter").values() if known.function.__module__ == module}
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name in filters)]
    return ast.unparse(tree)


def _paths(key: str, value: object) -> Iterator[Path]:
    """Yield the files and folders that a setting names."""
    for each in value if isinstance(value, tuple | list) else (value,):
        if isinstance(each, str) and (key in PATHS or "/" in each) and _exists(each):
            yield Path(each)


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def _contents(path: Path) -> Iterator[str]:
    """Yield the SHA-256 of a file, or of the files in a folder."""
    for file in sorted(path.iterdir()) if path.is_dir() else (path,):
        if file.is_file():
            with file.open("rb") as content:
                yield hashlib.file_digest(content, "sha256").hexdigest()


def find_changed(old: dict[str, str], new: dict[str, str]) -> str | None:
    """Return the first rule whose digest is known and differs, with its kind; a set of an earlier version has none."""
    changed = next((name for name in new if old.get(name, new[name]) != new[name]), None)
    return None if changed is None else f"the {registry.get(changed).kind} {changed!r}"


def check_same(first: dict[str, str], second: dict[str, str], path: Path) -> None:
    """Raise SetError if two sets were measured with other code or files; `path` is the second."""
    changed = find_changed(first, second)
    if changed:
        raise SetError(
            f"cannot combine with {str(path)!r}: {changed} had other code, or other files that its settings name; "
            "clean the second one's dump again"
        )
