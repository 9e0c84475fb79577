"""The rules of the house in docs/architecture.md and CONTRIBUTING.md, held against the code itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from conftest import ROOT

MAPPED = ("schemas", "filters")  # folders at the top that are imported as curate.schemas and curate.filters

# What may be imported when a module is: the rooms below it. An import inside a function, as of a page that shows a
# result in a notebook, is no dependency of the module.
BELOW = {
    "curate.errors": (),
    "curate.schemas": ("curate.errors", "curate.schemas"),
    "curate.filters": ("curate.errors", "curate.schemas", "curate.filters"),
    "curate.markdown": ("curate.markdown",),
    "curate.engine": ("curate.errors",),
    "curate.repair": ("curate.errors", "curate.schemas"),
}
ABOVE = {  # and who alone may import these
    "curate.cli": ("curate.__main__", "curate.cli"),
    "curate.report": ("curate.cli", "curate.report", "curate.page"),
    "curate.train": ("curate.cli", "curate.train", "curate.report", "curate.page", "curate.rendered", "curate"),
    "curate.batch": ("curate.clean", "curate.corpus", "curate.assemble", "curate.dumps"),
    "curate.clean": ("curate.cli", "curate"),
}


def _imports() -> Iterator[tuple[str, str]]:
    """Yield each module with each module of ours that it imports at its top."""
    for top, name in (("curate", "curate"), *((folder, f"curate.{folder}") for folder in MAPPED)):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            if top == "curate" and parts[0] in MAPPED:
                continue
            module = ".".join((name, *(part for part in parts if part != "__init__")))
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                yield from ((module, found) for found in _named(node, package) if found.startswith("curate"))


def _named(node: ast.stmt, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
        source = ".".join(part for part in (base, node.module) if part)
        yield from (f"{source}.{alias.name}" for alias in node.names)


def _is_in(module: str, rooms: Sequence[str]) -> bool:
    return any(module == room or module.startswith((f"{room}.", f"{room}_")) for room in rooms if room != "curate") or (
        "curate" in rooms and module == "curate"
    )


def test_imports_point_down() -> None:
    found = list(_imports())
    assert len(found) > 300
    wrong = [
        (one, other)
        for room, below in BELOW.items()
        for one, other in found
        if _is_in(one, [room]) and not _is_in(other, below)
    ]
    wrong += [
        (one, other)
        for room, above in ABOVE.items()
        for one, other in found
        if _is_in(other, [room]) and not _is_in(one, above)
    ]
    assert wrong == []


def test_only_the_command_line_prints_or_exits() -> None:
    wrong = []
    for path in (path for top in ("curate", *MAPPED) for path in (ROOT / top).rglob("*.py")):
        if (ROOT / "curate/cli") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "click.echo"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []
