"""Kill `curate clean` at random moments and run it again: does it give the same bytes, and what is lost?

    python benchmarks/resume.py --kills 20 --megabytes 44

What is lost are the CPU seconds of the killed run and of the one that goes on, less those of a run in one go. The
parent is killed; its workers end with it.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

from common import MB, copies, ours, parse, parser, remove, save, table, write_dump
from kills import digest
from tracked import Tracked

WHOLE_RUNS = 3


def clean(command: list[str], output: Path) -> tuple[float, float, str]:
    """Clean to the end; return the CPU and wall seconds, and the hash of the tables."""
    run = Tracked(command)
    wall = run.wait()
    found = digest(output)
    remove(output)
    return run.cpu, wall, found


def main() -> None:
    """Kill and resume runs, print what each lost, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--kills", type=int, default=20)
    command_line.add_argument("--megabytes", type=float, default=44, metavar="MB", help="size of the dump")
    command_line.add_argument("--seed", type=int, default=7)
    options = parse(command_line)
    chance = random.Random(options.seed)
    name = f"resume-{options.megabytes:g}.json"
    dump = write_dump(options.scratch / name, copies(options.shared), megabytes=options.megabytes)
    output = options.scratch / "resume-set"
    command = ours(dump, output, options.shared)
    remove(output)
    whole, walls, digests = zip(*(clean(command, output) for _ in range(WHOLE_RUNS)), strict=True)
    usual, lasts = statistics.median(whole), statistics.median(walls)
    same = len(set(digests)) == 1
    rows: list[list[object]] = []
    lost: list[float] = []
    while len(rows) < options.kills:
        run = Tracked(command)
        time.sleep(chance.uniform(0.05, 0.95) * lasts)
        run.kill()
        killed = run.wait()
        if output.exists():  # it was done before it was killed
            remove(output)
            continue
        rest, _, found = clean(command, output)
        same &= found == digests[0]
        lost.append(run.cpu + rest - usual)
        rows.append([f"{killed:.1f}", run.cpu, rest, lost[-1], f"{lost[-1] / usual:.0%}"])
        print(f"  {len(rows)} kills, same bytes: {same}", flush=True)
    print(table(["killed after s", "CPU s", "went on: CPU s", "lost CPU s", "of a run"], rows))
    middle = statistics.median(lost)
    print(f"in one go {usual:.1f} CPU s; lost {middle:.1f} ({middle / usual:.0%}, median); same bytes: {same}")
    figures = {"whole_cpu_s": round(usual, 2), "lost_cpu_s": [round(each, 2) for each in lost]}
    shares = {"median_lost_cpu_s": round(middle, 2), "median_lost_share": round(middle / usual, 3)}
    save("resume", {"mb": round(dump.stat().st_size / MB, 1), "same_bytes": same, **figures, **shares}, options.no_save)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
