"""Model the time of `curate clean` for 2 to 128 workers from the CPU seconds of its phases.

    python benchmarks/scaling.py --megabytes 174

One process cleans the dump, so that its CPU seconds are those of the work. Parts are made by all workers; planning, the
decisions over the whole corpus and the page are serial; the three tables are written by three processes at most.
"""

from __future__ import annotations

import time
from pathlib import Path

from common import MB, copies, parse, parser, remove, save, table, write_dump

from curate.api.clean import clean
from curate.pipeline.run import Progress

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128)
TABLES = 3  # writers at a time


def phases(dump: Path, output: Path, shared: Path) -> dict[str, float]:
    """Return the CPU seconds of planning, parts, decisions and tables with the page, in one process."""
    marks: dict[str, float] = {}

    def note(state: Progress) -> None:
        marks.setdefault(state.stage, time.process_time())

    begin = time.process_time()
    clean(dump, output, tokenizer=str(shared / "tokenizers/llama2"), workers=1, progress=note)
    end = time.process_time()
    decided, written = marks["finding duplicates"], marks["writing"]
    return {"parts": decided - begin, "decisions": written - decided, "tables": end - written}


def main() -> None:
    """Measure the phases, print the model, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--megabytes", type=float, default=174, metavar="MB", help="size of the dump")
    options = parse(command_line)
    name = f"scaling-{options.megabytes:g}.json"
    dump = write_dump(options.scratch / name, copies(options.shared), megabytes=options.megabytes)
    output = options.scratch / "scaling-set"
    remove(output)
    seconds = phases(dump, output, options.shared)
    remove(output)
    total = sum(seconds.values())
    rows, model = [], []
    for workers in WORKERS:
        wall = seconds["parts"] / workers + seconds["decisions"] + seconds["tables"] / min(workers, TABLES)
        megabytes = dump.stat().st_size / MB / wall
        rows.append([workers, wall, megabytes, total / wall])
        model.append({"workers": workers, "wall_s": round(wall, 2), "mb_per_s": round(megabytes, 1)})
    print(table(["phase", "CPU s", "share %"], [[name, cpu, 100 * cpu / total] for name, cpu in seconds.items()]))
    print("\n" + table(["workers", "wall s", "MB/s", "times one"], [[str(row[0]), *row[1:]] for row in rows]))
    measured = {name: round(cpu, 2) for name, cpu in seconds.items()}
    save("scaling", {"mb": round(dump.stat().st_size / MB, 1), "cpu_s": measured, "model": model}, options.no_save)


if __name__ == "__main__":
    main()
