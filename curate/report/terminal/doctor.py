"""How `curate doctor` looks in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from curate.analysis.doctor import Doctor, Package
from curate.display import terminal
from curate.display.figures import number
from curate.display.text import safe


def doctor_page(found: Doctor) -> RenderableType:
    """Render what a machine has, and what to type for what is missing."""
    facts = terminal.facts()
    terminal.add(facts, "curate", f"{found.version}, Python {found.python}")
    terminal.add(facts, "run by", _folded(found.executable))
    machine = found.machine
    terminal.add(facts, "system", terminal.text(machine.system))
    terminal.add(facts, "cores", str(machine.cores))
    if machine.memory_gib is not None:
        terminal.add(facts, "memory", f"{number(machine.memory_gib)} GiB, {number(machine.free_gib or 0.0)} free")
    for disk in machine.disks:
        room = f"{number(disk.free_gib)} of {number(disk.total_gib)} GiB free in {disk.path}"
        terminal.add(facts, f"disk, {disk.use}", terminal.text(room))
    for gpu in found.gpus:
        text = f"{gpu.name}, {number(gpu.memory_gib)} GiB, driver {gpu.driver}, compute capability {gpu.compute}"
        terminal.add(facts, "GPU", terminal.text(text))
    if found.gpu_note:
        terminal.add(facts, "GPU", terminal.text(f"none: {found.gpu_note}"))
    for one in found.tokenizers:
        terminal.add(facts, "tokenizer", _folded(f"{one.name}: {one.path}"))
    for extra in (None, "llama3", "train"):
        mine = [package for package in found.packages if package.extra == extra]
        if mine:
            terminal.add(facts, f"[{extra}]" if extra else "packages", _packages(mine))
    return Group(facts, Text(), _advice(found))


def _folded(path: str) -> Text:
    """Return a path that is folded where it is too long, not cut."""
    return Text(safe(path), overflow="fold")


def _packages(packages: list[Package]) -> Text:
    text = Text()
    for place, package in enumerate(packages):
        text.append(" · " if place else "")
        version = package.version or "missing"
        text.append(f"{package.name} {version}", "" if package.enough else "bold red")
        text.append("" if package.enough else f" (wanted {package.wanted})", "red")
    return text


def _advice(found: Doctor) -> RenderableType:
    if not found.advice:
        return Text("nothing is missing", "green")
    table = terminal.plain()
    table.add_column("missing", max_width=34)
    table.add_column("needed for")
    table.add_column("type", overflow="fold")
    for one in found.advice:
        table.add_row(terminal.text(one.missing, "bold"), one.needed_for, terminal.text(one.command, "bold cyan"))
    return table
