"""Shared by the benchmarks: dumps of any size, time and memory of a command, the machine, tables and results."""

from __future__ import annotations

import argparse
import datetime
import gzip
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
SAMPLE_SECONDS = 0.1
MB = 1_000_000
MIB = 1 << 20
PACKAGES = ("polars", "msgspec", "numpy", "fastokens", "tokenizers", "sentencepiece", "tiktoken", "langdetect")
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One run of a command: wall and CPU seconds of the whole process tree, and the peak of its summed PSS."""

    wall: float
    cpu: float
    peak_mib: float
    output: str


@dataclass
class _Peak:
    """The largest sum of PSS over all processes of one session, sampled while it runs."""

    session: int
    kib: int = 0
    stop: bool = False

    def watch(self) -> None:
        while not self.stop:
            self.kib = max(self.kib, sum(map(_pss_kib, _processes(self.session))))
            time.sleep(SAMPLE_SECONDS)


def _processes(session: int) -> Iterator[int]:
    """Yield the ids of the processes of a session: children of any depth, including orphans."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # the process has ended
            if int(fields[3]) == session:
                yield int(entry.name)


def _pss_kib(process: int) -> int:
    """Return a process's proportional set size (PSS): a page shared by n processes counts 1/n for each."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass  # the process has ended
    return 0


def measure(command: Sequence[str | Path], cwd: Path, **environment: str) -> Measured:
    """Run a command and measure it, including start-up; exit if the command fails."""
    parts = [str(part) for part in command]
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}  # as for a user
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            parts,
            cwd=cwd,
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        peak = _Peak(process.pid)
        watcher = threading.Thread(target=peak.watch, daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)  # its CPU time includes that of all children it waited for
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        peak.stop = True
        watcher.join()
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"exit code {process.returncode} from: {' '.join(parts)}\n{text[-3000:]}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, peak.kib / 1024, text)


def best(runs: Sequence[Measured]) -> Measured:
    """Return the least wall and CPU time and the highest peak of several runs."""
    quickest = min(runs, key=lambda run: run.wall)
    return Measured(quickest.wall, min(run.cpu for run in runs), max(run.peak_mib for run in runs), quickest.output)


def total(runs: Sequence[Measured]) -> Measured:
    """Return the summed times and the highest peak of commands that ran one after the other."""
    return Measured(sum(run.wall for run in runs), sum(run.cpu for run in runs), max(run.peak_mib for run in runs), "")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    command_line = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command_line.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/ and tokenizers/"
    )
    scratch = Path(tempfile.gettempdir()) / "curate-bench"
    command_line.add_argument(
        "--scratch", type=Path, default=scratch, help=f"folder for dumps and sets (default {scratch})"
    )
    command_line.add_argument("--no-save", action="store_true", help="print only; leave benchmarks/results as it is")
    return command_line


def parse(command_line: argparse.ArgumentParser, needs_shared: bool = True) -> argparse.Namespace:
    """Parse the command line and create the scratch folder; exit if the real dump is missing."""
    options = command_line.parse_args()
    options.shared, options.scratch = options.shared.resolve(), options.scratch.resolve()
    if needs_shared and not (options.shared / "data/sharegpt_dirty.json.gz").is_file():
        sys.exit(f"no dump at {str(options.shared / 'data')!r}; name the folder that contains it: --shared FOLDER")
    options.scratch.mkdir(parents=True, exist_ok=True)
    return options


def ours(dump: Path, output: Path, shared: Path, language: str | None = "en") -> list[str]:
    """Return curate's command for a dump: LLaMA-2's tokenizer, window 2048, all cores."""
    command = [sys.executable, "-m", "curate", "clean", str(dump), "-o", str(output), "--quiet"]
    command += ["--tokenizer", str(shared / "tokenizers/llama2"), "--max-tokens", "2048"]
    return [*command, "--language", language] if language else command


def run_ours(dump: Path, output: Path, shared: Path, *more: str) -> tuple[Measured, Measured]:
    """Clean a dump into a set, with more arguments if given, and write its statistics; return both measurements."""
    remove(output)
    cleaned = measure([*ours(dump, output, shared), *more], ROOT)
    counted = measure([sys.executable, "-m", "curate", "stats", str(output), "--json"], ROOT)
    (output.parent / f"{output.name}.stats.json").write_text(counted.output)
    return cleaned, counted


def remove(output: Path) -> None:
    """Remove a set of an earlier run, so that no run pays for swapping."""
    for folder in (output, output.with_name(output.name + ".previous")):
        shutil.rmtree(folder, ignore_errors=True)


# Dumps


def source_rows(shared: Path) -> list[Row]:
    """Return the rows of the real dump without the malformed ones, which make the incumbent fail."""
    kinds = json.loads((shared / "data/injected.json").read_text())["rows"]
    broken = {str(row) for kind, rows in kinds.items() if kind.startswith("FATAL_") for row in rows}
    with gzip.open(shared / "data/sharegpt_dirty.json.gz") as file:
        rows = json.load(file)
    return [row for row in rows if _is_well_formed(row) and str(row["id"]) not in broken]


def _is_well_formed(row: Any) -> bool:
    if (
        not isinstance(row, dict)
        or not isinstance(row.get("id"), str)
        or not isinstance(row.get("conversations"), list)
    ):
        return False
    texts = (
        turn.get(key) if isinstance(turn, dict) else None for turn in row["conversations"] for key in ("from", "value")
    )
    return all(_encodes(text) for text in texts)


def _encodes(text: object) -> bool:
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def word(number: int) -> str:
    """Return a pronounceable word that only this number has."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return "zu" + "".join(syllables[number // len(syllables) ** digit % len(syllables)] for digit in range(2))


def reworded(row: Row, number: int) -> Row:
    """Return a copy of a row that differs in its id and in one word at the start of each message with text."""
    turns = [{**turn, "value": _with_word(turn["value"], word(number))} for turn in row["conversations"]]
    return {**row, "id": f"{row['id']}-{number}", "conversations": turns}


def _with_word(value: str, extra: str) -> str:
    """Put a word before the text, in the first paragraph of an HTML answer, so that it ends as it did."""
    if not value.startswith("<div"):
        return f"{extra} {value}" if value else value
    head, separator, tail = value.partition("<p>")
    return f"{head}{separator}{extra} {tail}" if separator and not tail.startswith("</p>") else value


WORD_OR_MARKUP = re.compile(r"<[^>]*>|&\w+;|\b[A-Za-z]{4,}\b")


def with_own_words(row: Row, number: int) -> Row:
    """Return a copy of a row in which most words are this copy's own: "word" becomes "word-2"."""

    def own(match: re.Match[str]) -> str:
        return match[0] if match[0][0] in "<&" else f"{match[0]}-{number}"

    turns = [{**turn, "value": WORD_OR_MARKUP.sub(own, turn["value"])} for turn in row["conversations"]]
    return {**row, "id": f"{row['id']}-{number}", "conversations": turns}


def copies(shared: Path, change: Callable[[Row, int], Row] | None = reworded) -> Iterator[Row]:
    """Yield the rows of the real dump repeatedly, without end, each time changed by `change` if there is one."""
    rows, number = source_rows(shared), 0
    while True:
        yield from rows if change is None else (change(row, number) for row in rows)
        number += 1


def write_dump(path: Path, rows: Iterable[Row], megabytes: float = 0, count: int = 0) -> Path:
    """Stream rows into a JSON array until a size (10^6 bytes) or a count is reached; an existing file is kept."""
    if path.exists():
        return path
    partial, written = path.with_suffix(".partial"), 0
    with partial.open("wb") as file:
        for index, row in enumerate(rows):
            if (count and index >= count) or (megabytes and written >= megabytes * MB):
                break
            written += file.write((b", " if index else b"[") + json.dumps(row).encode())
        file.write(b"]\n")
    return partial.rename(path)


# Results


def machine() -> dict[str, object]:
    """Describe the machine: date, processor, cores, memory, versions."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "python_build": _python_build(),
        "packages": {name: _version(name) for name in ("curate-chat", *PACKAGES)},
    }


def _python_build() -> dict[str, object]:
    """Return how the interpreter was compiled: its optimizations change every figure of a Python program."""
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = (sysconfig.get_config_var("PY_CFLAGS") or "").split()
    return {
        "compiler": platform.python_compiler(),
        "optimization": next((flag for flag in reversed(flags) if re.fullmatch("-O.+", flag)), None),
        "profile_guided": "--enable-optimizations" in options,
        "link_time": "--with-lto" in options,
        "shared_library": bool(sysconfig.get_config_var("Py_ENABLE_SHARED")),
        "debug": bool(sysconfig.get_config_var("Py_DEBUG")),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a plain table: the first column to the left, numbers to the right."""
    cells = [list(headers), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _shown(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:,.2f}" if isinstance(cell, float) else str(cell)


def save(name: str, result: dict[str, object], skip: bool = False) -> None:
    """Write a benchmark's result with date and machine to `benchmarks/results/<name>.json`."""
    if skip:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, "machine": machine(), **result}, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(ROOT)}")
