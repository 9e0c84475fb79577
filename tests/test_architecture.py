"""The rules of docs/architecture.md, checked against the code itself."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

# A module may import modules of its own package and of lower levels; packages of one level are independent.
# docs/architecture.md shows the same table.
LEVELS = (
    ("errors", "_version"),
    ("settings", "files", "pattern_cache", "progress"),
    ("display", "engine", "schemas", "markdown", "client", "results"),
    ("tokenization", "ingest", "filters", "dataset"),
    ("rendering", "remote"),
    ("pipeline",),
    ("analysis", "conversion", "model"),
    ("inference",),
    ("train", "serving"),
    ("arena",),
    ("judging",),
    ("report", "scoring", "generation", "evaluation"),
    ("api",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}
TOPS = {"curate": "curate", "schemas": "curate.schemas", "filters": "curate.filters"}  # folder to package
AT_THE_TOP = {"__init__", "__main__", "_version", "errors", "files", "pattern_cache", "progress", "settings"}
MAX_MODULES = 16  # in one folder
Imports = Mapping[str, frozenset[str]]
DYNAMIC_IMPORTS = {  # the imports by name that may load a module of curate, or whose name is a variable
    "curate": {"_MODULES[name]"},  # the public names
    "curate.cli": {"f'curate.cli.{COMMANDS[cmd_name]}'"},  # the commands
    "curate.display.displayed": {"'curate.report.notebook'"},  # how results display in a notebook
    "curate.filters.registry": {"f'curate.filters.{module.name}'"},  # the modules of its own package
    "curate.model.attention.kernels": {"module"},  # names of other libraries
    "curate.train.run.loggers": {"module"},
}


@cache
def modules() -> dict[str, Path]:
    """Return the path of each module, by its dotted name; a package is named like its folder."""
    paths = {}
    for folder, package in TOPS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "curate" and parts[0] in ("schemas", "filters"):
                continue  # links to the two folders at the top
            paths[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return paths


def imported(module: str, path: Path) -> Iterator[str]:
    """Yield every module of curate that a module imports: at its top, in functions, and under TYPE_CHECKING."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "curate")
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            if source.split(".")[0] == "curate":
                for alias in node.names:
                    name = f"{source}.{alias.name}"
                    yield name if name in modules() else source


def dynamically_imported(source: str) -> Iterator[str]:
    """Yield the argument of every import by name, as source, except a constant that names another library."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            name = (
                node.args[0] if node.args else next((word.value for word in node.keywords if word.arg == "name"), node)
            )
            value = name.value if isinstance(name, ast.Constant) else None
            if not isinstance(value, str) or value.split(".")[0] in ("curate", ""):
                yield ast.unparse(name)


@cache
def imports() -> Imports:
    return {module: frozenset(imported(module, path)) for module, path in modules().items()}


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_package_has_a_level() -> None:
    assert {package_of(module) for module in modules()} | {"files"} == set(LEVEL) | {"files"}


def test_imports_point_down() -> None:
    assert sum(map(len, imports().values())) > 500
    wrong = [
        f"{module} imports {imported_module}"
        for module, imported_modules in imports().items()
        for imported_module in imported_modules
        if package_of(module) != package_of(imported_module)
        and LEVEL[package_of(imported_module)] >= LEVEL[package_of(module)]
        if module != "curate"  # which names the public functions of all
    ]
    assert wrong == []


def test_imports_by_name_are_those_that_are_documented() -> None:
    found = {module: set(dynamically_imported(path.read_text("utf-8"))) for module, path in modules().items()}
    assert {module: names for module, names in found.items() if names} == DYNAMIC_IMPORTS


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("importlib.import_module('curate.train.run')", ["'curate.train.run'"]),
        ("import_module('curate')", ["'curate'"]),
        ("import_module(name='curate.cli')", ["'curate.cli'"]),
        ("def load():\n    return __import__('curate.cli')", ["'curate.cli'"]),
        ("import_module(f'curate.{name}')", ["f'curate.{name}'"]),
        ("import_module('.run', package='curate.train')", ["'.run'"]),
        ("import_module(TABLE[name])", ["TABLE[name]"]),
        ("import_module('torch.utils.tensorboard'); import_module('curated')", []),
        ("print('curate.train')", []),
    ],
)
def test_an_import_by_name_is_found(source: str, expected: list[str]) -> None:
    assert list(dynamically_imported(source)) == expected


def test_there_are_no_import_cycles() -> None:
    waiting = dict(imports())
    while free := [
        module for module, imported_modules in waiting.items() if not (imported_modules - {module}) & waiting.keys()
    ]:
        for module in free:
            del waiting[module]
    assert sorted(waiting) == []  # those in a ring, and those that import one of them


def test_packages_have_few_modules() -> None:
    counts = {
        folder: len(list(paths))
        for folder, paths in itertools.groupby(sorted(modules().values()), key=lambda path: path.parent)
    }
    assert {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n - 1 > MAX_MODULES} == {}
    assert {path.stem for path in (ROOT / "curate").glob("*.py")} <= AT_THE_TOP


def test_the_documented_levels_match() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.M)
    assert [(int(level), tuple(re.findall(r"`(\w+)`", packages))) for level, packages in rows] == list(
        enumerate(LEVELS)
    )


def test_rendering_needs_no_torch() -> None:
    for module, path in modules().items():
        if module.startswith("curate.rendering"):
            names = re.findall(r"^\s*(?:import|from) (\w+)", path.read_text("utf-8"), re.M)
            assert not {"torch", "transformers"} & set(names), module


def test_only_the_command_line_prints_or_exits() -> None:
    wrong = []
    for path in modules().values():
        if (ROOT / "curate/cli") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "click.echo"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []
