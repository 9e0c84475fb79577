"""Model the time of `curate clean` for 2 to 128 workers from the CPU seconds of its phases.

    python benchmarks/scaling.py --megabytes 174

One process cleans the dump, so that its CPU seconds are those of the work. All workers make the parts, and write the
tables in sections of 20,000 rows; the decisions over the whole corpus and the page are serial. The model is for the
dump, and for one of 10 GB, where all but the page takes as many times as long.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import polars as pl
from common import MB, copies, parse, parser, remove, save, table, write_dump

from curate.api.clean import clean
from curate.pipeline.run import Progress
from curate.pipeline.tables.assemble import SECTION_ROWS

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128)
LARGE = 10_000  # MB


def phases(dump: Path, output: Path, shared: Path) -> dict[str, float]:
    """Return the CPU seconds of start and parts, decisions, tables, and the page, in one process."""
    marks: dict[str, float] = {}

    def note(state: Progress) -> None:
        marks.setdefault(state.stage, time.process_time())

    begin = time.process_time()
    clean(dump, output, tokenizer=str(shared / "tokenizers/llama2"), workers=1, progress=note)
    end = time.process_time()
    decided, written, page = (marks[stage] for stage in ("finding duplicates", "writing", "writing the page"))
    return {"parts": decided - begin, "decisions": written - decided, "tables": page - written, "page": end - page}


def count_sections(folder: Path) -> int:
    """Return the number of sections in which the tables of a set were written."""
    rows = (pl.scan_parquet(file).select(pl.len()).collect().item() for file in folder.glob("*.parquet"))
    return sum(max(1, -(-count // SECTION_ROWS)) for count in rows)


def model(seconds: Mapping[str, float], sections: int, workers: int) -> float:
    """Return the wall time in seconds."""
    shared = seconds["parts"] / workers + seconds["tables"] / min(workers, sections)
    return shared + seconds["decisions"] + seconds["page"]


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
    sections = count_sections(output)
    remove(output)
    megabytes = dump.stat().st_size / MB
    times = LARGE / megabytes
    scaled = {name: cpu * (1 if name == "page" else times) for name, cpu in seconds.items()}
    inputs = {megabytes: (seconds, sections), float(LARGE): (scaled, int(sections * times))}
    total = sum(seconds.values())
    print(table(["phase", "CPU s", "share %"], [[name, cpu, 100 * cpu / total] for name, cpu in seconds.items()]))
    models: dict[str, list[dict[str, float]]] = {}
    for size, measured in inputs.items():
        walls = [(workers, model(*measured, workers)) for workers in WORKERS]
        models[f"{size:.0f}"] = [
            {"workers": n, "wall_s": round(s, 2), "mb_per_s": round(size / s, 1)} for n, s in walls
        ]
        rows = [[str(workers), wall, size / wall, sum(measured[0].values()) / wall] for workers, wall in walls]
        print(f"\n{size:,.0f} MB\n" + table(["workers", "wall s", "MB/s", "times one"], rows))
    cpu = {name: round(each, 2) for name, each in seconds.items()}
    save("scaling", {"mb": round(megabytes, 1), "cpu_s": cpu, "sections": sections, "model": models}, options.no_save)


if __name__ == "__main__":
    main()
