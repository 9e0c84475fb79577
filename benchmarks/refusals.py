"""Measure how well answers that decline are found, on labelled answers of the real dump, and the share of them there.

    python benchmarks/refusals.py

`data/refusal_labels.jsonl` has the labels: record, message, a hash of the text, the stratum that the answer was drawn
from (found by the rules, near them by other words, random), and the label by reading. The texts are not in it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
from common import ROOT, parse, parser, save, table

from curate.filters.refusals import CLASSES, classify

LABELS = ROOT / "benchmarks/data/refusal_labels.jsonl"
GROUPS: dict[str, set[str]] = {
    "any class": set(CLASSES),
    "refusal, capability, partial": {"refusal", "capability", "partial"},
    "refusal, capability": {"refusal", "capability"},
    **{name: {name} for name in CLASSES},
}
Key = tuple[str, int, str]


def answers(shared: Path) -> dict[Key, str]:
    """Return the dump's answers by record, message and hash of the text."""
    with gzip.open(shared / "data/source_markdown.json.gz") as file:
        records = json.load(file)
    return {
        (record["id"], index, hashlib.blake2b(turn["value"].encode(), digest_size=8).hexdigest()): turn["value"]
        for record in records
        for index, turn in enumerate(record["conversations"])
        if turn["from"] != "human" and isinstance(turn["value"], str)
    }


def read_labels() -> dict[Key, str]:
    """Return the label of each labelled answer."""
    rows = map(json.loads, LABELS.read_text("utf-8").splitlines())
    return {(row["id"], row["turn"], row["hash"]): row["label"] for row in rows}


def score(labels: Mapping[Key, str], found: Callable[[Key], str], classes: set[str]) -> dict[str, float]:
    """Return precision and recall of the answers in any of these classes."""
    right = {key for key, label in labels.items() if label in classes}
    predicted = {key for key in labels if found(key) in classes}
    both = len(right & predicted)
    return {
        "labelled": len(right),
        "found": len(predicted),
        "precision": both / max(1, len(predicted)),
        "recall": both / max(1, len(right)),
    }


def main() -> None:
    """Score the rules on the labels, count the classes in the whole dump, print both, write the result."""
    options = parse(parser(__doc__))
    texts, labels = answers(options.shared), read_labels()
    declining = classify(pl.Series(list(texts.values())))
    found = {key: each.kind if each else "none" for key, each in zip(texts, declining, strict=True)}
    missing = labels.keys() - texts.keys()
    if missing:
        raise SystemExit(f"{len(missing)} labelled answers are not in the dump, such as {min(missing)}")
    scores = {name: score(labels, found.__getitem__, classes) for name, classes in GROUPS.items()}
    print(table(["classes", "labelled", "found", "precision", "recall"], [[k, *v.values()] for k, v in scores.items()]))
    shares = {kind: count / len(found) for kind, count in Counter(found.values()).items()}
    print("\n" + table(["class", "per 1,000 answers"], [[kind, 1000 * shares.get(kind, 0.0)] for kind in CLASSES]))
    save("refusals", {"labels": len(labels), "scores": scores, "shares": shares}, options.no_save)


if __name__ == "__main__":
    main()
