"""Measure time and peak memory of `curate clean` on dumps of 64 MB to 2 GB, and on one of plain repeats.

    python benchmarks/memory.py --sizes 64 256 1024 2048 --repeats 256

Peak is the sum of PSS over all processes, sampled ten times a second. A straight line is fitted to the times;
its largest error shows how far they are from linear.
"""

from __future__ import annotations

from pathlib import Path

from common import MB, Measured, copies, measure, ours, parse, parser, remove, reworded, save, table, write_dump
from common import ROOT as TREE

LIMIT_MIB = 1536


def fit(sizes: list[float], walls: list[float]) -> tuple[float, float, float]:
    """Return start-up seconds, seconds per MB and the largest relative error of the least-squares line."""
    count = len(sizes)
    mean_size, mean_wall = sum(sizes) / count, sum(walls) / count
    spread = sum((size - mean_size) ** 2 for size in sizes)
    pairs = list(zip(sizes, walls, strict=True))
    slope = sum((size - mean_size) * (wall - mean_wall) for size, wall in pairs) / spread if spread else 0.0
    start = mean_wall - slope * mean_size
    return start, slope, max(abs(start + slope * size - wall) / wall for size, wall in pairs)


def clean(dump: Path, scratch: Path, shared: Path) -> Measured:
    """Clean one dump into a set that is removed afterwards."""
    output = scratch / "memory-set"
    remove(output)
    measured = measure(ours(dump, output, shared), TREE)
    remove(output)
    return measured


def main() -> None:
    """Measure each size, print the table, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 256, 1024, 2048], metavar="MB", help="sizes in MB"
    )
    command_line.add_argument(
        "--repeats", type=int, default=256, metavar="MB", help="size of the dump of plain repeats; 0: none"
    )
    command_line.add_argument("--keep", action="store_true", help="keep the dumps")
    options = parse(command_line)
    jobs = [(size, False) for size in sorted(options.sizes)] + ([(options.repeats, True)] if options.repeats else [])
    rows: list[list[object]] = []
    figures: list[dict[str, object]] = []
    sizes, walls = [], []
    for size, repeats in jobs:
        name = f"repeats-{size}.json" if repeats else f"size-{size}.json"
        dump = write_dump(options.scratch / name, copies(options.shared, None if repeats else reworded), megabytes=size)
        megabytes = dump.stat().st_size / MB
        run = clean(dump, options.scratch, options.shared)
        if not options.keep:
            dump.unlink()
        if not repeats:
            sizes.append(megabytes)
            walls.append(run.wall)
        kind = "plain repeats" if repeats else "distinct copies"
        rows.append([f"{megabytes:,.0f} MB, {kind}", run.wall, run.cpu, megabytes / run.wall, run.peak_mib])
        figures.append(
            {"mb": round(megabytes, 2), "kind": kind, "wall_s": round(run.wall, 2), "cpu_s": round(run.cpu, 2)}
        )
        figures[-1] |= {"mb_per_s": round(megabytes / run.wall, 2), "peak_mib": round(run.peak_mib)}
        print(f"  {rows[-1][0]}: {run.wall:.1f} s, {run.peak_mib:.0f} MiB", flush=True)
    start, slope, error = fit(sizes, walls)
    print("\n" + table(["dump", "wall s", "CPU s", "MB/s", "peak MiB"], rows))
    print(f"\nwall = {start:.2f} s + {slope * 1000:.2f} ms/MB; largest error {error:.1%}; limit {LIMIT_MIB} MiB")
    line = {"start_s": round(start, 3), "ms_per_mb": round(slope * 1000, 3), "largest_miss": round(error, 4)}
    save("memory", {"limit_mib": LIMIT_MIB, "dumps": figures, "line": line}, options.no_save)


if __name__ == "__main__":
    main()
