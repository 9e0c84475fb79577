"""Compare the decisions of recipe `fastchat` with those of FastChat's scripts, record by record on the same dump.

    python benchmarks/decisions.py --incumbent-python .incumbent/bin/python

The dump is the real one without the malformed rows, which make the scripts fail. Each record has its number in `model`,
the only key that the scripts' splitter preserves. The scripts are clean_sharegpt, split_long_conversation at 2048 with
LLaMA-2's tokenizer, and filter_wrong_format; optional_clean is also run, and only its language is compared. The table
has a row for each pair of decisions; docs/recipes.md explains the differences.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clean import chain
from common import ROOT, Row, measure, parse, parser, remove, save, source_rows, table, write_dump

import curate

KEPT = "kept"
LATER = ("no piece fits", "wrong list indices")  # rejected by the later scripts
REASON = re.compile(  # printed by clean_sharegpt for each record it drops, in the order of the records
    r"^id .*? (?:is|has|contains) (?:an? )?"
    r"(too short|wrong format|blocked words|parser errors|id duplication|plugin|value duplication)\b",
    re.MULTILINE,
)
EXAMPLES = 4  # ids shown of each pair


@dataclass(frozen=True)
class Decisions:
    """For each record: whether it was kept, or which rule dropped it; its turns before and after the split."""

    rules: list[str]  # `KEPT`, or the rule that dropped the record
    turns_before: list[int]
    turns: list[int]
    english: list[bool]


def theirs(python: Path, dump: Path, folder: Path, shared: Path, count: int) -> Decisions:
    """Run FastChat's scripts and read their files and output."""
    folder.mkdir(exist_ok=True)
    steps = chain(python, dump, folder, shared)
    steps["split_long_conversation"][steps["split_long_conversation"].index(str(folder / "en.json"))] = str(
        folder / "clean.json"
    )
    del steps["get_stats"]
    output = {name: measure(step, folder, HF_HUB_OFFLINE="1").output for name, step in steps.items()}
    clean, english, pieces, last = (_turns(folder / f"{name}.json") for name in ("clean", "en", "split", "last"))
    dropped = REASON.findall(output["clean_sharegpt"])
    if len(dropped) + len(clean) != count:
        sys.exit(f"clean_sharegpt named {len(dropped)} records and wrote {len(clean)}, of {count}")
    reasons = iter(dropped)
    rules = [KEPT if at in last else _later(at in pieces) if at in clean else next(reasons) for at in range(count)]
    positions = range(count)
    return Decisions(
        rules, [clean[at] for at in positions], [last[at] for at in positions], [at in english for at in positions]
    )


def _later(split: bool) -> str:
    return LATER[split]


def _turns(path: Path) -> Counter[int]:
    """Return the number of turns, over all pieces, of each record in a file of the scripts."""
    turns: Counter[int] = Counter()
    for row in json.loads(path.read_text()):
        turns[int(row["model"])] += len(row["conversations"])
    return turns


def ours(dump: Path, output: Path, shared: Path, count: int) -> Decisions:
    """Clean the dump with the recipe and read the set."""
    remove(output)
    curate.clean(dump, output, recipe="fastchat", max_tokens=2048, tokenizer=str(shared / "tokenizers/llama2"))
    curated = curate.open_set(output)
    rules, turns, english = [KEPT] * count, [0] * count, [False] * count
    kept = curated.conversations().select("source_index", "messages", "language").collect()
    for at, messages, language in kept.iter_rows():
        turns[at] += sum(message["role"] != "system" for message in messages)
        english[at] = language == "en"
    turns_before = list(turns)
    rejected = curated.rejected().select("source_index", "scope", "rule", "language").collect()
    for at, scope, rule, language in rejected.iter_rows():
        if scope == "record":
            rules[at], english[at] = rule, language == "en"
        elif rule == "too_long":
            turns_before[at] += 2
    return Decisions(rules, turns_before, turns, english)


def pairs(first: Sequence[object], second: Sequence[object], names: Sequence[str]) -> list[list[object]]:
    """Return a row for each pair of decisions, the most frequent first: both decisions, their number, some ids."""
    ids_by_pair: defaultdict[tuple[object, object], list[str]] = defaultdict(list)
    for first_rule, second_rule, name in zip(first, second, names, strict=True):
        ids_by_pair[first_rule, second_rule].append(name)
    ordered = sorted(ids_by_pair.items(), key=lambda item: -len(item[1]))
    return [[*pair, len(ids), " ".join(ids[:EXAMPLES])] for pair, ids in ordered]


def share(first: Sequence[object], second: Sequence[object]) -> float:
    """Return the share of equal pairs, in percent."""
    return round(100 * sum(map(lambda a, b: a == b, first, second)) / len(first), 2)


def main() -> None:
    """Run both programs, print the tables, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--incumbent-python", type=Path, required=True, help="interpreter with fschat 0.2.36")
    options: argparse.Namespace = parse(command_line)
    python = Path(os.path.abspath(options.incumbent_python))  # noqa: PTH100  # not resolved: the link determines the environment
    rows: list[Row] = [{**row, "model": str(at)} for at, row in enumerate(source_rows(options.shared))]
    names = [row["id"] for row in rows]
    dump = write_dump(options.scratch / "decisions.json", rows)
    fschat = theirs(python, dump, options.scratch / "decisions", options.shared, len(rows))
    curated = ours(dump, options.scratch / "decisions-curated", options.shared, len(rows))
    rows_by_decision = pairs(fschat.rules, curated.rules, names)
    print(table(["fschat", "curate --recipe fastchat", "records", "such as"], rows_by_decision))
    runs, positions = (fschat, curated), range(len(rows))
    kept = [[rule == KEPT for rule in run.rules] for run in runs]
    both = [at for at in positions if kept[0][at] and kept[1][at]]
    with_language = [
        at for at in positions if fschat.turns_before[at] and curated.rules[at] in (KEPT, "too_long", "list_indices")
    ]
    result: dict[str, object] = {
        "records": len(rows),
        "kept": {"fschat": sum(kept[0]), "curate": sum(kept[1])},
        "kept_or_dropped_alike_percent": share(*kept),
        "kept_by_both": len(both),
        "turns_before_the_split_alike_percent": share(*([run.turns_before[at] for at in both] for run in runs)),
        "conversations_in_which_the_split_lost_exchanges": {
            name: sum(run.turns[at] < run.turns_before[at] for at in both)
            for name, run in zip(("fschat", "curate"), runs, strict=True)
        },
        "english_alike_percent": share(*([run.english[at] for at in with_language] for run in runs)),
        "decisions": [
            dict(zip(("fschat", "curate", "records", "such_as"), row, strict=True)) for row in rows_by_decision
        ],
    }
    print("\n" + "\n".join(f"{name}: {value}" for name, value in result.items() if name != "decisions"))
    save("decisions", result, options.no_save)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
