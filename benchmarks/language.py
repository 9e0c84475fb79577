"""Measure speed and accuracy of the language signal on one core, compared with langdetect on a sample.

python benchmarks/language.py
"""

from __future__ import annotations

import os

os.environ["POLARS_MAX_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import gzip
import json
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import langdetect  # type: ignore[import-untyped]
import polars as pl
from common import parse, parser, save

from curate.filters.language import language
from curate.filters.language_id import UNKNOWN, profiles
from curate.filters.language_id.decision import detect

SAME = {"nb": "no", "zh-cn": "zh", "zh-tw": "zh"}  # labels that are treated as equal
BATCH = 1000  # conversations in a frame, as in a worker
LISTS = {"prompts": pl.List(pl.String), "answers": pl.List(pl.String)}
Row = dict[str, Any]


def fold(code: str) -> str:
    """Return the code that a label is compared as."""
    return SAME.get(code, code)


def cpu_seconds(work: Callable[[], object], runs: int) -> float:
    """Return the least CPU time of several runs."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def sentences(path: Path) -> list[Row]:
    """Read the labelled sentences in the languages that langdetect knows."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    known = {fold(code) for code in profiles.codes()}
    return [row for row in rows if fold(row["language"]) in known]


def conversations(path: Path) -> pl.DataFrame:
    """Read the dump's conversations as the frame that filters get."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        dump = json.load(file)
    rows = []
    for record in dump:
        turns = [turn for turn in record["conversations"] if isinstance(turn["value"], str)]
        prompts = [turn["value"] for turn in turns if turn["from"] == "human"]
        rows.append({"prompts": prompts, "answers": [turn["value"] for turn in turns if turn["from"] != "human"]})
    return pl.DataFrame(rows, schema=LISTS)


def accuracy(codes: Sequence[str], rows: Sequence[Row]) -> float:
    """Return the share of sentences with the right language."""
    return sum(fold(code) == fold(row["language"]) for code, row in zip(codes, rows, strict=True)) / len(rows)


def in_batches(frame: pl.DataFrame) -> None:
    """Run the signal on a frame in batches, as a worker does."""
    for batch in frame.iter_slices(BATCH):
        language(batch)


def langdetect_code(text: str) -> str:
    """Return the language that langdetect detects."""
    try:
        code: str = langdetect.detect(text)
    except langdetect.LangDetectException:
        code = UNKNOWN
    return code


def load_seconds() -> tuple[float, float]:
    """Return the CPU time to build the profiles, and to map them from the cache."""
    profiles.load()
    profiles.load.cache_clear()
    cached = cpu_seconds(profiles.load, 1)
    return cpu_seconds(profiles.build, 1), cached


def measure(shared: Path, runs: int, sample: int) -> list[Row]:
    """Return one row of figures for each text and detector."""
    labelled = sentences(shared / "data" / "languages.jsonl.gz")
    chats = conversations(shared / "data" / "source_markdown.json.gz")
    short = pl.DataFrame(
        {"prompts": [[row["text"]] for row in labelled], "answers": [[]] * len(labelled)}, schema=LISTS
    )
    rng = random.Random(0)
    sampled = rng.sample(labelled, sample)
    joined = ["\n".join([*row["prompts"], *row["answers"]]) for row in chats.sample(sample, seed=0).to_dicts()]
    langdetect.DetectorFactory.seed = 0
    langdetect_code(sampled[0]["text"])  # loads its profiles
    detected = [langdetect_code(row["text"]) for row in sampled]
    rows = []
    for name, frame in (("sentences", short), ("conversations", chats)):
        seconds = cpu_seconds(partial(in_batches, frame), runs)
        rows.append({"detector": "curate", "texts": name, "n": frame.height, "per_second": frame.height / seconds})
    rows[0]["right"] = accuracy(language(short)["language"].to_list(), labelled)
    rows[0]["right_on_sample"] = accuracy(detect([row["text"] for row in sampled])[0], sampled)
    seconds = cpu_seconds(lambda: [langdetect_code(row["text"]) for row in sampled], 1)
    langdetect_accuracy = accuracy(detected, sampled)
    rows.append({"detector": "langdetect", "texts": "sentences", "n": sample, "per_second": sample / seconds})
    rows[-1]["right_on_sample"] = langdetect_accuracy
    seconds = cpu_seconds(lambda: [langdetect_code(text) for text in joined], 1)
    rows.append({"detector": "langdetect", "texts": "conversations", "n": sample, "per_second": sample / seconds})
    return rows


def main() -> None:
    """Print the table, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--best-of", type=int, default=3, metavar="N")
    command_line.add_argument("--sample", type=int, default=1000, metavar="N", help="texts for langdetect")
    options = parse(command_line)
    rows = measure(options.shared, options.best_of, options.sample)
    built, cached = load_seconds()
    for row in rows:
        shares = "".join(f"  {key} {row[key]:.2%}" for key in ("right", "right_on_sample") if key in row)
        print(f"{row['detector']:<11}{row['texts']:<14}{row['n']:>7,}{row['per_second']:>10,.0f}/s{shares}")
    print(f"profiles: {built:.2f} s to build, {cached * 1000:.1f} ms from the cache")
    figures = {"rows": rows, "build_seconds": built, "cached_seconds": cached}
    save("language", {"best_of": options.best_of, **figures}, options.no_save)


if __name__ == "__main__":
    main()
