"""What recipe `fastchat` decides beside what FastChat's scripts decide, record by record over the same dump.

    python benchmarks/decisions.py --incumbent-python .incumbent/bin/python

The dump is the real one without the malformed rows, which end the scripts' run. Each record carries its number in
`model`, the one key that their splitter hands on. Theirs: clean_sharegpt, split_long_conversation at 2048 with
LLaMA-2's tokenizer, filter_wrong_format, each as they are run; and optional_clean beside them, whose language is
compared alone. The table has a line for each pair of decisions; docs/recipes.md says why those that differ do.
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
LATER = ("no piece fits", "wrong list indices")  # what their later steps take
SAID = re.compile(  # what clean_sharegpt prints of each record it drops, in the order of the records
    r"^id .*? (?:is|has|contains) (?:an? )?"
    r"(too short|wrong format|blocked words|parser errors|id duplication|plugin|value duplication)\b",
    re.MULTILINE,
)
EXAMPLES = 4  # ids shown of each pair


@dataclass(frozen=True)
class Decided:
    """For each record: the decision (kept, or the rule that dropped it), the turns before and after it was split.

    And whether it is told to be English.
    """

    rules: list[str]
    whole: list[int]
    turns: list[int]
    english: list[bool]


def theirs(python: Path, dump: Path, folder: Path, shared: Path, count: int) -> Decided:
    """Run their scripts and read what they wrote and printed."""
    folder.mkdir(exist_ok=True)
    steps = chain(python, dump, folder, shared)
    steps["split_long_conversation"][steps["split_long_conversation"].index(str(folder / "en.json"))] = str(
        folder / "clean.json"
    )
    del steps["get_stats"]
    printed = {name: measure(step, folder, HF_HUB_OFFLINE="1").output for name, step in steps.items()}
    clean, english, pieces, last = (_turns(folder / f"{name}.json") for name in ("clean", "en", "split", "last"))
    said = SAID.findall(printed["clean_sharegpt"])
    if len(said) + len(clean) != count:
        sys.exit(f"clean_sharegpt named {len(said)} records and wrote {len(clean)}, of {count}")
    reasons = iter(said)
    rules = [KEPT if at in last else _later(at in pieces) if at in clean else next(reasons) for at in range(count)]
    every = range(count)
    return Decided(rules, [clean[at] for at in every], [last[at] for at in every], [at in english for at in every])


def _later(split: bool) -> str:
    return LATER[split]


def _turns(path: Path) -> Counter[int]:
    """Return the number of turns, over all pieces, of each record that stands in a file of theirs."""
    turns: Counter[int] = Counter()
    for row in json.loads(path.read_text()):
        turns[int(row["model"])] += len(row["conversations"])
    return turns


def ours(dump: Path, output: Path, shared: Path, count: int) -> Decided:
    """Clean the dump with the recipe and read the set."""
    remove(output)
    curate.clean(dump, output, recipe="fastchat", max_tokens=2048, tokenizer=str(shared / "tokenizers/llama2"))
    found = curate.open_set(output)
    rules, turns, english = [KEPT] * count, [0] * count, [False] * count
    kept = found.conversations().select("source_index", "messages", "language").collect()
    for at, messages, language in kept.iter_rows():
        turns[at] += sum(message["role"] != "system" for message in messages)
        english[at] = language == "en"
    whole = list(turns)
    rejected = found.rejected().select("source_index", "scope", "rule", "language").collect()
    for at, scope, rule, language in rejected.iter_rows():
        if scope == "record":
            rules[at], english[at] = rule, language == "en"
        elif rule == "too_long":
            whole[at] += 2
    return Decided(rules, whole, turns, english)


def pairs(one: Sequence[object], other: Sequence[object], names: Sequence[str]) -> list[list[object]]:
    """Return a line for each pair of decisions, the most frequent first: both, how many, some ids."""
    places: defaultdict[tuple[object, object], list[str]] = defaultdict(list)
    for mine, yours, name in zip(one, other, names, strict=True):
        places[mine, yours].append(name)
    ordered = sorted(places.items(), key=lambda item: -len(item[1]))
    return [[*pair, len(found), " ".join(found[:EXAMPLES])] for pair, found in ordered]


def share(one: Sequence[object], other: Sequence[object]) -> float:
    """Return how many of the pairs are equal, in percent."""
    return round(100 * sum(map(lambda a, b: a == b, one, other)) / len(one), 2)


def main() -> None:
    """Decide both ways, print the tables, write the result."""
    made = parser(__doc__)
    made.add_argument("--incumbent-python", type=Path, required=True, help="interpreter with fschat 0.2.36")
    chosen: argparse.Namespace = parse(made)
    python = Path(os.path.abspath(chosen.incumbent_python))  # noqa: PTH100  # a link must stay a link
    rows: list[Row] = [{**row, "model": str(at)} for at, row in enumerate(source_rows(chosen.shared))]
    names = [row["id"] for row in rows]
    dump = write_dump(chosen.scratch / "decisions.json", rows)
    other = theirs(python, dump, chosen.scratch / "decisions", chosen.shared, len(rows))
    mine = ours(dump, chosen.scratch / "decisions-curated", chosen.shared, len(rows))
    decided = pairs(other.rules, mine.rules, names)
    print(table(["fschat", "curate --recipe fastchat", "records", "such as"], decided))
    runs, every = (other, mine), range(len(rows))
    kept = [[rule == KEPT for rule in run.rules] for run in runs]
    both = [at for at in every if kept[0][at] and kept[1][at]]
    spoken = [at for at in every if other.whole[at] and mine.rules[at] in (KEPT, "too_long", "list_indices")]
    result: dict[str, object] = {
        "records": len(rows),
        "kept": {"fschat": sum(kept[0]), "curate": sum(kept[1])},
        "kept_or_dropped_alike_percent": share(*kept),
        "kept_by_both": len(both),
        "turns_before_the_split_alike_percent": share(*([run.whole[at] for at in both] for run in runs)),
        "conversations_in_which_the_split_lost_exchanges": {
            name: sum(run.turns[at] < run.whole[at] for at in both)
            for name, run in zip(("fschat", "curate"), runs, strict=True)
        },
        "english_alike_percent": share(*([run.english[at] for at in spoken] for run in runs)),
        "decisions": [dict(zip(("fschat", "curate", "records", "such_as"), line, strict=True)) for line in decided],
    }
    print("\n" + "\n".join(f"{name}: {value}" for name, value in result.items() if name != "decisions"))
    save("decisions", result, chosen.no_save)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
