"""Compare `curate clean` with the incumbent's scripts on the same dump and cores, including start-up.

    python benchmarks/clean.py --incumbent-python .incumbent/bin/python
    python benchmarks/clean.py --incumbent-python .incumbent/bin/python --rows 400 --best-of 1    # a quick trial

There are two dumps of about 170 MB, each four copies of the real one. In the first, each copy has one word of its own
in every message, so the table of words is warm after the first copy; in the second (`cold`), most words are the copy's
own. curate runs `clean` with `--language en`, LLaMA-2's tokenizer and a window of 2048, and `stats`: with its defaults,
with the incumbent's rules alone (`--recipe fastchat`), and with every filter on (`data/all_filters.toml`), for most of
which the incumbent has no counterpart. The incumbent runs, in the order of its documentation: clean_sharegpt,
optional_clean, split_long_conversation, filter_wrong_format, get_stats. requirements/incumbent.txt describes its
environment; without one, only curate is measured.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from common import (
    MB,
    ROOT,
    Measured,
    best,
    copies,
    measure,
    parse,
    parser,
    reworded,
    run_ours,
    save,
    source_rows,
    table,
    total,
    with_own_words,
    write_dump,
)

SAMPLE_ROWS = 60
CHANGES = {"warm": reworded, "cold": with_own_words}  # of each copy, by dump
ALL_FILTERS = ROOT / "benchmarks/data/all_filters.toml"
Steps = dict[str, Measured]
RECIPES = {"curate": None, "curate, their rules": "fastchat", "curate, all filters": str(ALL_FILTERS)}
FSCHAT = "fschat 0.2.36"


def chain(python: Path, dump: Path, folder: Path, shared: Path) -> dict[str, list[str]]:
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
    return {name: [str(python), "-m", f"fastchat.data.{name}", *options] for name, options in arguments.items()}


def run_incumbent(python: Path, dump: Path, folder: Path, shared: Path) -> Steps:
    """Run the incumbent's scripts, offline: their files are on this machine."""
    folder.mkdir(exist_ok=True)
    steps = chain(python, dump, folder, shared)
    return {name: measure(step, folder, HF_HUB_OFFLINE="1") for name, step in steps.items()}


def alternate(count: int, programs: Mapping[str, Callable[[], Steps]]) -> dict[str, Steps]:
    """Run the programs alternately, `count` times each; return the fastest run of each, with the highest peaks."""
    runs: dict[str, list[Steps]] = {name: [] for name in programs}
    for number in range(1, count + 1):
        for name, run in programs.items():
            runs[name].append(run())
            print(f"{name}, run {number} of {count}: {total(list(runs[name][-1].values())).wall:.1f} s", flush=True)
    return {name: _best(steps) for name, steps in runs.items()}


def _best(runs: Sequence[Steps]) -> Steps:
    quickest = min(runs, key=lambda steps: total(list(steps.values())).wall)
    return {
        name: Measured(step.wall, step.cpu, best([run[name] for run in runs]).peak_mib, "")
        for name, step in quickest.items()
    }


def report(name: str, steps: Steps, megabytes: float) -> list[list[object]]:
    """Return the table's rows for one program: its steps and their total."""
    all_steps = total(list(steps.values()))
    rows: list[list[object]] = [[f"  {step}", run.wall, run.cpu, run.peak_mib, None] for step, run in steps.items()]
    return [*rows, [name, all_steps.wall, all_steps.cpu, all_steps.peak_mib, megabytes / all_steps.wall]]


def as_json(steps: Steps, megabytes: float) -> dict[str, object]:
    """Return the figures of one program for the result file."""
    all_steps = total(list(steps.values()))
    named = {
        name: {"wall_s": round(r.wall, 3), "cpu_s": round(r.cpu, 3), "peak_mib": round(r.peak_mib)}
        for name, r in steps.items()
    }
    return {
        "wall_s": round(all_steps.wall, 3),
        "cpu_s": round(all_steps.cpu, 3),
        "peak_mib": round(all_steps.peak_mib),
        "mb_per_s": round(megabytes / all_steps.wall, 3),
        "steps": named,
    }


def options() -> argparse.Namespace:
    """Read the command line."""
    command_line = parser(__doc__)
    command_line.add_argument("--dump", choices=[*CHANGES, "both"], default="both", help="which dump (default both)")
    command_line.add_argument("--copies", type=int, default=4, help="copies of the dump (default 4)")
    command_line.add_argument("--rows", type=int, help="number of rows for a quick trial; nothing is saved")
    command_line.add_argument(
        "--best-of", type=int, default=3, metavar="N", help="runs of each program, alternately (default 3)"
    )
    command_line.add_argument("--incumbent-python", type=Path, help="interpreter of an environment with fschat 0.2.36")
    chosen = parse(command_line)
    chosen.no_save = chosen.no_save or chosen.rows is not None
    if chosen.incumbent_python:  # not resolved: the link determines the environment
        chosen.incumbent_python = Path(os.path.abspath(chosen.incumbent_python))  # noqa: PTH100
    return chosen


def programs(chosen: argparse.Namespace) -> dict[str, Callable[[Path], Steps]]:
    """Return what each program does with a dump."""
    shared, scratch = chosen.shared, chosen.scratch

    def ours(recipe: str | None, source: Path) -> Steps:
        output = scratch / f"curated-{Path(recipe).stem}" if recipe else scratch / "curated"
        arguments = ("--recipe", recipe) if recipe else ()
        return dict(zip(("clean", "stats"), run_ours(source, output, shared, *arguments), strict=True))

    def theirs(source: Path) -> Steps:
        return run_incumbent(chosen.incumbent_python, source, scratch / "incumbent", shared)

    curate = {name: partial(ours, recipe) for name, recipe in RECIPES.items()}
    return {**curate, **({FSCHAT: theirs} if chosen.incumbent_python else {})}


def compare(name: str, chosen: argparse.Namespace) -> dict[str, object]:
    """Measure the programs with one dump, print the table, return the figures."""
    shared, scratch = chosen.shared, chosen.scratch
    rows = chosen.rows or len(source_rows(shared)) * chosen.copies
    dump = write_dump(scratch / f"{name}-{rows}.json", copies(shared, CHANGES[name]), count=rows)
    sample = write_dump(scratch / "sample.json", islice(copies(shared), SAMPLE_ROWS), count=SAMPLE_ROWS)
    megabytes = dump.stat().st_size / MB
    print(f"{name}: {dump}: {rows:,} records, {megabytes:.1f} MB")
    run = programs(chosen)
    for each in run.values():
        each(sample)  # warm up
    best_runs = alternate(chosen.best_of, {each: partial(function, dump) for each, function in run.items()})
    table_rows = [row for each, steps in best_runs.items() for row in report(each, steps, megabytes)]
    print("\n" + table(["", "wall s", "CPU s", "peak MiB", "MB/s"], table_rows))
    result = {each.removesuffix(" 0.2.36"): as_json(steps, megabytes) for each, steps in best_runs.items()}
    counts = json.loads((scratch / "curated/manifest.json").read_text())["counts"]
    figures: dict[str, object] = {"megabytes": round(megabytes, 2), "records": rows, "runs": result, "counts": counts}
    if FSCHAT in best_runs:
        result["fschat"]["pieces"] = len(json.loads((scratch / "incumbent/last.json").read_text()))
        walls = {each: total(list(steps.values())).wall for each, steps in best_runs.items()}
        times = {each: round(walls[FSCHAT] / walls[each], 2) for each in RECIPES}
        figures["times_faster"] = times
        print("\ntimes faster: " + " · ".join(f"{each} {factor}" for each, factor in times.items()) + "\n")
    return figures


def main() -> None:
    """Measure the programs with each dump and write the result."""
    chosen = options()
    dumps = {name: compare(name, chosen) for name in CHANGES if chosen.dump in (name, "both")}
    settings = {"best_of": chosen.best_of, "in_turn": True, "language": "en", "max_tokens": 2048}
    save("clean", {"settings": settings, "dumps": dumps}, chosen.no_save)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
