"""Model the time of `curate clean` for 2 to 128 workers from the CPU seconds of its phases.

    python benchmarks/scaling.py --megabytes 174

One process cleans the dump, so that its CPU seconds are those of the work. All workers make the parts, and write the
tables in sections of 20,000 rows. Serial are the decisions over the whole corpus, the measures of the tables, and the
page. The model is for the dump, and for one of 10 GB, where all but the page takes as many times as long. Beside it
stands the wall time of the command with as many workers as this machine has cores, and with fewer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import polars as pl
from common import MB, ROOT, Row, copies, measure, ours, parse, parser, remove, save, table, write_dump

from curate.api.clean import clean
from curate.pipeline.run import Progress
from curate.pipeline.tables.assemble import SECTION_ROWS

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128)
LARGE = 10_000  # MB
SERIAL = ("decisions", "measures", "page")


def phases(dump: Path, output: Path, shared: Path) -> dict[str, float]:
    """Return the CPU seconds of start and parts, decisions, tables, measures, and the page, in one process."""
    marks: dict[str, float] = {}

    def note(state: Progress) -> None:
        marks.setdefault(state.stage, time.process_time())

    begin = time.process_time()
    clean(dump, output, tokenizer=str(shared / "tokenizers/llama2"), workers=1, progress=note)
    end = time.process_time()
    starts = [
        begin,
        *(marks[stage] for stage in ("finding duplicates", "writing", "measuring", "writing the page")),
        end,
    ]
    spans = [stop - start for start, stop in pairwise(starts)]
    return dict(zip(("parts", "decisions", "tables", "measures", "page"), spans, strict=True))


def count_sections(folder: Path) -> int:
    """Return the number of sections in which the tables of a set were written."""
    rows = (pl.scan_parquet(file).select(pl.len()).collect().item() for file in folder.glob("*.parquet"))
    return sum(max(1, -(-count // SECTION_ROWS)) for count in rows)


def model(seconds: Mapping[str, float], sections: int, workers: int) -> float:
    """Return the wall time in seconds."""
    shared = seconds["parts"] / workers + seconds["tables"] / min(workers, sections)
    return shared + sum(seconds[name] for name in SERIAL)


def run(dump: Path, output: Path, shared: Path, workers: int) -> float:
    """Return the wall time of the command in seconds."""
    remove(output)
    return measure([*ours(dump, output, shared, language=None), "--workers", str(workers)], ROOT).wall


def models(seconds: Mapping[str, float], sections: int, megabytes: float) -> dict[float, list[Row]]:
    """Return the model's times for the dump and for one of 10 GB, by size in MB."""
    times = LARGE / megabytes
    scaled = {name: cpu * (1 if name == "page" else times) for name, cpu in seconds.items()}
    inputs = {megabytes: (seconds, sections), float(LARGE): (scaled, int(sections * times))}
    return {
        size: [{"workers": n, "wall_s": model(*phases, n), "mb_per_s": size / model(*phases, n)} for n in WORKERS]
        for size, phases in inputs.items()
    }


def main() -> None:
    """Measure the phases and the command, print the model, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--megabytes", type=float, default=174, metavar="MB", help="size of the dump")
    options = parse(command_line)
    name = f"scaling-{options.megabytes:g}.json"
    dump = write_dump(options.scratch / name, copies(options.shared), megabytes=options.megabytes)
    output = options.scratch / "scaling-set"
    remove(output)
    seconds = phases(dump, output, options.shared)
    sections = count_sections(output)
    cores = len(os.sched_getaffinity(0))
    walls = {n: run(dump, output, options.shared, n) for n in WORKERS if n <= cores}
    remove(output)
    megabytes, total = dump.stat().st_size / MB, sum(seconds.values())
    modelled = models(seconds, sections, megabytes)
    print(table(["phase", "CPU s", "share %"], [[name, cpu, 100 * cpu / total] for name, cpu in seconds.items()]))
    for size, rows in modelled.items():
        shown = [[row["workers"], row["wall_s"], row["mb_per_s"]] for row in rows]
        print(f"\n{size:,.0f} MB\n" + table(["workers", "wall s", "MB/s"], shown))
    print("\nmeasured\n" + table(["workers", "wall s"], [[str(n), wall] for n, wall in walls.items()]))
    result = {
        "mb": round(megabytes, 1),
        "cpu_s": {name: round(each, 2) for name, each in seconds.items()},
        "serial_share": round(sum(seconds[name] for name in SERIAL) / total, 4),
        "sections": sections,
        "measured_wall_s": {str(n): round(wall, 2) for n, wall in walls.items()},
        "model": {
            f"{size:.0f}": [{name: round(value, 2) for name, value in row.items()} for row in rows]
            for size, rows in modelled.items()
        },
    }
    save("scaling", result, options.no_save)


if __name__ == "__main__":
    main()
