"""Our `curate clean` beside the incumbent's chain over the same dump, on the same cores, start-up included.

    python benchmarks/clean.py --incumbent-python .incumbent/bin/python

The dump is the real one four times over, each copy with its own word in every message, about 170 MB. Ours:
clean with `--language en`, LLaMA-2's tokenizer and a window of 2048, and the statistics. The incumbent's, as its
own documentation chains them: clean_sharegpt, optional_clean, split_long_conversation, filter_wrong_format,
get_stats. requirements/incumbent.txt says how to make its environment; without one, ours alone is measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from common import MB, ROOT, Measured, best, copies, measure, parse, parser, run_ours, save, source_rows, table, total
from common import write_dump as write

SAMPLE_ROWS = 60
Steps = dict[str, list[str]]


def chain(python: Path, dump: Path, folder: Path, shared: Path) -> Steps:
    """Return the incumbent's commands, in order."""
    model = ["--model-name-or-path", str(shared / "tokenizers/llama2")]
    clean, english, split, last = (str(folder / name) for name in ("clean.json", "en.json", "split.json", "last.json"))
    arguments = {
        "clean_sharegpt": ["--in-file", str(dump), "--out-file", clean],
        "optional_clean": ["--in-file", clean, "--out-file", english, "--keep-lang", "en"],
        "split_long_conversation": ["--in-file", english, "--out-file", split, *model, "--max-length", "2048"],
        "filter_wrong_format": ["--in-file", split, "--out-file", last],
        "get_stats": ["--in-file", last, *model],
    }
    return {name: [str(python), "-m", f"fastchat.data.{name}", *rest] for name, rest in arguments.items()}


def run_incumbent(python: Path, dump: Path, folder: Path, shared: Path) -> dict[str, Measured]:
    """Run the incumbent's chain; what it needs lies on this machine, so it may not go to the net."""
    folder.mkdir(exist_ok=True)
    steps = chain(python, dump, folder, shared)
    return {name: measure(step, folder, HF_HUB_OFFLINE="1") for name, step in steps.items()}


def best_of(count: int, run: Callable[[], dict[str, Measured]]) -> dict[str, Measured]:
    """Repeat a chain of commands; return the run with the least total wall, peaks the highest of all."""
    runs = []
    for number in range(1, count + 1):
        runs.append(run())
        print(f"  run {number} of {count}: {total(list(runs[-1].values())).wall:.1f} s", flush=True)
    quickest = min(runs, key=lambda steps: total(list(steps.values())).wall)
    return {
        name: Measured(step.wall, step.cpu, best([r[name] for r in runs]).peak_mib, "")
        for name, step in quickest.items()
    }


def report(name: str, steps: dict[str, Measured], megabytes: float) -> list[list[object]]:
    """Return the table's rows for one program: its steps and their total."""
    whole = total(list(steps.values()))
    rows: list[list[object]] = [[f"  {step}", run.wall, run.cpu, run.peak_mib, None] for step, run in steps.items()]
    return [*rows, [name, whole.wall, whole.cpu, whole.peak_mib, megabytes / whole.wall]]


def as_json(steps: dict[str, Measured], megabytes: float) -> dict[str, object]:
    """Return the figures of one program for the result file."""
    whole = total(list(steps.values()))
    named = {
        name: {"wall_s": round(r.wall, 3), "cpu_s": round(r.cpu, 3), "peak_mib": round(r.peak_mib)}
        for name, r in steps.items()
    }
    return {
        "wall_s": round(whole.wall, 3),
        "cpu_s": round(whole.cpu, 3),
        "peak_mib": round(whole.peak_mib),
        "mb_per_s": round(megabytes / whole.wall, 3),
        "steps": named,
    }


def main() -> None:
    """Measure both, print the table, write the result."""
    made = parser(__doc__)
    made.add_argument("--copies", type=int, default=4, help="how many times over the dump is taken (default 4)")
    made.add_argument("--best-of", type=int, default=3, metavar="N", help="runs of ours (default 3)")
    made.add_argument("--incumbent-python", type=Path, help="interpreter of an environment with fschat 0.2.36")
    made.add_argument("--incumbent-runs", type=int, default=1, metavar="N", help="runs of the incumbent (default 1)")
    options = parse(made)
    shared, scratch = options.shared, options.scratch
    if options.incumbent_python:  # a link to an interpreter must stay a link, or it forgets its environment
        options.incumbent_python = Path(os.path.abspath(options.incumbent_python))  # noqa: PTH100
    rows = len(source_rows(shared)) * options.copies
    dump = write(scratch / f"copies-{options.copies}.json", copies(shared), count=rows)
    sample = write(scratch / "sample.json", islice(copies(shared), SAMPLE_ROWS), count=SAMPLE_ROWS)
    megabytes = dump.stat().st_size / MB
    print(f"{dump}: {rows:,} records, {megabytes:.1f} MB")

    def clean_and_count() -> dict[str, Measured]:
        return dict(zip(("clean", "stats"), run_ours(dump, scratch / "curated", shared), strict=True))

    run_ours(sample, scratch / "warm", shared)  # both are warm when they start
    print("curate")
    mine = best_of(options.best_of, clean_and_count)
    counts = json.loads((scratch / "curated/manifest.json").read_text())["counts"]
    lines, result = report("curate", mine, megabytes), {"curate": as_json(mine, megabytes)}
    if options.incumbent_python:
        folder = scratch / "incumbent"
        run_incumbent(options.incumbent_python, sample, folder, shared)
        print("fschat")
        theirs = best_of(options.incumbent_runs, lambda: run_incumbent(options.incumbent_python, dump, folder, shared))
        lines += report("fschat 0.2.36", theirs, megabytes)
        result["fschat"] = as_json(theirs, megabytes)
        result["fschat"]["pieces"] = len(json.loads((folder / "last.json").read_text()))
    print("\n" + table(["", "wall s", "CPU s", "peak MiB", "MB/s"], lines))
    summary: dict[str, object] = {"megabytes": round(megabytes, 2), "records": rows, "runs": result, "counts": counts}
    if options.incumbent_python:
        ratio = total(list(theirs.values())).wall / total(list(mine.values())).wall
        summary["times_faster"] = round(ratio, 2)
        print(f"\ncurate is {ratio:.1f} times faster")
    settings = {
        "best_of": options.best_of,
        "incumbent_runs": options.incumbent_runs,
        "language": "en",
        "max_tokens": 2048,
    }
    save("clean", {"settings": settings, **summary}, options.no_save)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
