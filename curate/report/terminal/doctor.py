"""The terminal report of `curate doctor`."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from curate.analysis.doctor import Doctor, Package
from curate.display import terminal
from curate.display.figures import number
from curate.display.text import safe


def render_doctor(report: Doctor) -> RenderableType:
    """Render versions, hardware and packages, with a command for each that is missing."""
    facts = terminal.label_grid()
    terminal.add_row(facts, "curate", f"{report.version}, Python {report.python}")
    terminal.add_row(facts, "executable", _fold(report.executable))
    machine = report.machine
    terminal.add_row(facts, "system", terminal.safe_text(machine.system))
    terminal.add_row(facts, "cores", str(machine.cores))
    if machine.memory_gib is not None:
        terminal.add_row(facts, "memory", f"{number(machine.memory_gib)} GiB, {number(machine.free_gib or 0.0)} free")
    for disk in machine.disks:
        room = f"{number(disk.free_gib)} of {number(disk.total_gib)} GiB free in {disk.path}"
        terminal.add_row(facts, f"disk, {disk.use}", terminal.safe_text(room))
    for gpu in report.gpus:
        text = f"{gpu.name}, {number(gpu.memory_gib)} GiB, driver {gpu.driver}, compute capability {gpu.compute}"
        terminal.add_row(facts, "GPU", terminal.safe_text(text))
    if report.gpu_note:
        terminal.add_row(facts, "GPU", terminal.safe_text(f"none: {report.gpu_note}"))
    for tokenizer in report.tokenizers:
        terminal.add_row(facts, "tokenizer", _fold(f"{tokenizer.name}: {tokenizer.path}"))
    for extra in (None, "llama3", "train"):
        packages = [package for package in report.packages if package.extra == extra]
        if packages:
            terminal.add_row(facts, f"[{extra}]" if extra else "packages", _packages(packages))
    return Group(facts, Text(), _advice(report))


def _fold(path: str) -> Text:
    """Return a path that wraps instead of being cut."""
    return Text(safe(path), overflow="fold")


def _packages(packages: list[Package]) -> Text:
    text = Text()
    for index, package in enumerate(packages):
        text.append(" · " if index else "")
        version = package.version or "missing"
        text.append(f"{package.name} {version}", "" if package.enough else "bold red")
        text.append("" if package.enough else f" (needs {package.wanted})", "red")
    return text


def _advice(report: Doctor) -> RenderableType:
    if not report.advice:
        return Text("no package is missing", "green")
    table = terminal.plain_table()
    table.add_column("missing", max_width=34)
    table.add_column("needed for")
    table.add_column("run", overflow="fold")
    for advice in report.advice:
        command = terminal.safe_text(advice.command, "bold cyan")
        table.add_row(terminal.safe_text(advice.missing, "bold"), advice.needed_for, command)
    return table
