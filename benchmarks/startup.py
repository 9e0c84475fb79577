"""Measure the start-up of the command, compared with a bare interpreter.

python benchmarks/startup.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import ROOT, best, measure, parse, parser, save, table

CURATE = Path(sys.executable).with_name("curate")
COMMANDS: dict[str, tuple[list[str], int | None]] = {  # with the limit in milliseconds
    "python -S -c pass": ([sys.executable, "-S", "-c", "pass"], None),
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "curate --help": ([str(CURATE), "--help"], 200),
    "curate filters": ([str(CURATE), "filters"], 600),
}


def main() -> None:
    """Measure each command, print the table, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--best-of", type=int, default=10, metavar="N", help="runs of each (default 10)")
    options = parse(command_line, needs_shared=False)
    rows, figures = [], {}
    for name, (command, limit) in COMMANDS.items():
        run = best([measure(command, ROOT) for _ in range(options.best_of)])
        rows.append([name, run.wall * 1000, run.cpu * 1000, limit])
        figures[name] = {"wall_ms": round(run.wall * 1000, 1), "cpu_ms": round(run.cpu * 1000, 1), "limit_ms": limit}
    print(table(["command", "wall ms", "CPU ms", "limit ms"], rows))
    save("startup", {"best_of": options.best_of, "commands": figures}, options.no_save)


if __name__ == "__main__":
    main()
