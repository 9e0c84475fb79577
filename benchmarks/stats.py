"""Measure statistics of a set, of a dump and of a million conversations, compared with the incumbent's get_stats.

    python benchmarks/stats.py --incumbent-python .incumbent/bin/python
    python benchmarks/stats.py --incumbent-python .incumbent/bin/python --rows 400 --conversations 20000  # a trial

A dump (four reworded copies of the real one) is cleaned with LLaMA-2's tokenizer, and the set is written as the JSON
that get_stats reads. Then alternately: `curate stats` of the set, whose tokens are already counted; `curate stats` of
that JSON, which counts tokens, including those of the template; and get_stats of it, with the same tokenizer. The
million conversations are copies of that set, each with its own ids and clusters.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from common import MB, ROOT, Measured, best, copies, measure, ours, parse, parser, remove, save, table
from common import write_dump as write

from curate.analysis import recorded, set_stats
from curate.dataset import curated_set, manifest, transaction

CURATE = [sys.executable, "-m", "curate"]


def prepare(chosen: argparse.Namespace) -> tuple[Path, Path]:
    """Return a set and the JSON of its conversations; existing files are kept."""
    rows = chosen.rows or 31_564
    name = f"stats-{rows}"
    folder, dialogues = chosen.scratch / name, chosen.scratch / f"{name}.json"
    if not dialogues.exists():
        dump = write(chosen.scratch / f"{name}-dump.json", copies(chosen.shared), count=rows)
        remove(folder)
        measure(ours(dump, folder, chosen.shared, language=None), ROOT)
        measure([*CURATE, "convert", folder, dialogues, "--to", "vicuna"], ROOT)
    return folder, dialogues


def million(source: Path, count: int) -> Path:
    """Return a set of at least `count` conversations, made by repeating another set."""
    target = source.with_name(f"{source.name}-{count}")
    if (target / curated_set.MANIFEST).exists():
        return target
    remove(target)
    target.mkdir()
    original = curated_set.open_set(source)
    kept = original.manifest.counts.kept
    times = -(-count // kept)
    for name, frame in (
        (curated_set.CONVERSATIONS, original.conversations()),
        (curated_set.REJECTED, original.rejected()),
    ):
        transaction.sink(target / name, pl.concat([_copy(frame, number) for number in range(times)]))
    values = original.manifest.to_dict()
    facts = manifest.decode({**values, "counts": _times(values["counts"], times)})
    repeated = curated_set.CuratedSet(target, facts)
    manifest.write(target, recorded.record(target, facts, lambda: set_stats.measure_tables(repeated)))
    return target


def _copy(frame: pl.LazyFrame, number: int) -> pl.LazyFrame:
    named = [name for name in ("id", "source_id", "cluster", "twin") if name in frame.collect_schema()]
    return frame.with_columns(pl.col(name) + f"-{number}" for name in named)


def _times(value: object, times: int) -> object:
    if isinstance(value, Mapping):
        return {key: _times(part, times) for key, part in value.items()}
    return value * times if isinstance(value, int) else value


def alternate(count: int, commands: Mapping[str, tuple[Sequence[str | Path], dict[str, str]]]) -> dict[str, Measured]:
    """Run the commands alternately, `count` times each; return the best run of each."""
    runs: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in range(count):
        for name, (command, environment) in commands.items():
            runs[name].append(measure(command, ROOT, **environment))
            print(f"{name}: {runs[name][-1].wall:.2f} s", flush=True)
    return {name: best(measurements) for name, measurements in runs.items()}


def options() -> argparse.Namespace:
    """Read the command line."""
    command_line = parser(__doc__)
    command_line.add_argument("--rows", type=int, help="number of rows for a quick trial; nothing is saved")
    command_line.add_argument(
        "--conversations", type=int, default=1_000_000, help="of the large set (default 1,000,000)"
    )
    command_line.add_argument(
        "--best-of", type=int, default=2, metavar="N", help="runs of each, alternately (default 2)"
    )
    command_line.add_argument("--incumbent-python", type=Path, help="interpreter of an environment with fschat 0.2.36")
    chosen = parse(command_line)
    chosen.no_save = chosen.no_save or chosen.rows is not None
    if chosen.incumbent_python:  # not resolved: the link determines the environment
        chosen.incumbent_python = Path(os.path.abspath(chosen.incumbent_python))  # noqa: PTH100
    return chosen


def main() -> None:
    """Measure, print the table, write the result."""
    chosen = options()
    folder, dialogues = prepare(chosen)
    large = million(folder, chosen.conversations)
    model = chosen.shared / "tokenizers/llama2"
    pieces = json.loads((folder / curated_set.MANIFEST).read_text("utf-8"))["counts"]["pieces"]
    print(f"{dialogues}: {pieces:,} conversations, {dialogues.stat().st_size / MB:.1f} MB; {large}")
    commands: dict[str, tuple[Sequence[str | Path], dict[str, str]]] = {
        "curate stats SET": ([*CURATE, "stats", folder, "--json"], {}),
        "curate stats SET --html": ([*CURATE, "stats", folder, "--html", chosen.scratch / "page.html"], {}),
        "curate stats DUMP": ([*CURATE, "stats", dialogues, "--json", "--tokenizer", model], {}),
        "curate stats SET, large": ([*CURATE, "stats", large, "--json"], {}),
        "curate stats SET --html, large": ([*CURATE, "stats", large, "--html", chosen.scratch / "large.html"], {}),
    }
    if chosen.incumbent_python:
        get_stats = [chosen.incumbent_python, "-m", "fastchat.data.get_stats", "--in-file", dialogues]
        commands["get_stats"] = ([*get_stats, "--model-name-or-path", model], {"HF_HUB_OFFLINE": "1"})
    measured = alternate(chosen.best_of, commands)
    print(
        "\n" + table(["", "wall s", "CPU s", "peak MiB"], [[n, r.wall, r.cpu, r.peak_mib] for n, r in measured.items()])
    )
    runs = {
        name: {"wall_s": round(run.wall, 3), "cpu_s": round(run.cpu, 3), "peak_mib": round(run.peak_mib)}
        for name, run in measured.items()
    }
    summary: dict[str, object] = {"conversations": pieces, "large": chosen.conversations, "runs": runs}
    if "get_stats" in measured:
        reported = re.search(r"#sequence: ([\d.]+) K", measured["get_stats"].output)
        summary["get_stats_sequences_k"] = float(reported[1]) if reported else None
        for name in ("curate stats SET", "curate stats DUMP"):
            times = measured["get_stats"].wall / measured[name].wall
            summary[f"{name}, times faster"] = round(times, 1)
            print(f"{name} is {times:.1f} times as fast as get_stats")
    save("stats", {"settings": {"best_of": chosen.best_of, "in_turn": True}, **summary}, chosen.no_save)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
