"""A small curated set written directly to disk, for tests of readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from curate.dataset import columns as dataset_columns
from curate.dataset import curated_set, manifest

MANIFEST: dict[str, Any] = {
    "version": "0.1.0",
    "inputs": [{"name": "dump.json", "bytes": 2_000_000, "sha256": "0" * 64}],
    "recipe": {"name": "vicuna"},
    "tokenizer": {"name": "llama3", "kind": "tiktoken", "hash": "0" * 64},
    "template": "vicuna",
    "window": 2048,
    "counts": {
        "read": 6,
        "kept": 3,
        "rejected": 3,
        "rejected_exchanges": 1,
        "pieces": 4,
        "tokens": 1180,
        "rules": {
            "exact_duplicates": {"first": 1, "alone": 2},
            "min_messages": {"first": 1, "alone": 1},
            "unreadable": {"first": 1, "alone": 1},
        },
        "exchanges": {"overlong": 1},
        "edits": {"html_to_markdown": 2, "chrome": 1},
    },
    "warnings": [],
    "run": {"seconds": 1.5, "workers": 2, "mb_per_s": 1.3},
}


def kept(index: int, name: str, **columns: Any) -> dict[str, Any]:
    """Return a row of conversations.parquet, with defaults for the columns that a test does not name."""
    message = {"role": "user", "content": "hi", "name": None, "tool_calls": None, "train": True, "stop": True}
    row: dict[str, Any] = {
        **dict.fromkeys(dataset_columns.conversations_schema({})),
        "id": name,
        "source_id": name,
        "piece": 0,
        "messages": [message, {**message, "role": "assistant", "content": "hello"}],
        "language": "en",
        "tokens": 100,
        "turns": 2,
        "prompt_tokens": 60,
        "answer_tokens": 40,
        "characters": 7,
        "edits": [],
        "edit_names": [],
        "cluster": name,
        "split": "train",
        "source_file": "dump.json",
        "source_index": index,
        "branch": 0,
    }
    return {**row, **columns}


def lost(index: int, rule: str, **columns: Any) -> dict[str, Any]:
    """Return a row of rejected.parquet."""
    row: dict[str, Any] = {
        **dict.fromkeys(dataset_columns.rejected_schema({})),
        "source_file": "dump.json",
        "source_index": index,
        "branch": 0,
        "scope": "record",
        "rule": rule,
        "reason": f"the reason of {rule}",
        "record": b'{"id": "x"}',
    }
    return {**row, **columns}


EDIT = {
    "rule": "html_to_markdown",
    "message": 1,
    "count": 2,
    "before": "<p>hello</p>\n<p>you</p>",
    "after": "hello\n\nyou",
}
KEPT = [
    kept(0, "abc_0", source_id="abc", tokens=600, answer_tokens=500, turns=4, edits=[EDIT], edit_names=[EDIT["rule"]]),
    kept(0, "abc_1", source_id="abc", piece=1, tokens=300, edits=[EDIT], edit_names=[EDIT["rule"]], split="eval"),
    kept(1, "deadbeef", language="ko", model="gpt-4", tokens=200),
    kept(2, "twice", language=None, tokens=80),
]
LOST = [
    lost(0, "overlong", source_id="abc", scope="exchange", message_range=[4, 6], evidence="a very long answer"),
    lost(3, "exact_duplicates", source_id="copy", twin="deadbeef"),
    lost(4, "min_messages", source_id="twice", reason="1 message, minimum 2", evidence="\x1b[31mred\x1b[0m [bold]x"),
    lost(5, "unreadable", record=b'{"id": \xff\x1b]0;title\x07'),
]


def write_set(
    folder: Path,
    kept: list[dict[str, Any]] = KEPT,
    lost: list[dict[str, Any]] = LOST,
    facts: Mapping[str, Any] = MANIFEST,
) -> Path:
    """Write a set of these rows into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(kept, schema=dataset_columns.conversations_schema({})).write_parquet(
        folder / curated_set.CONVERSATIONS
    )
    pl.DataFrame(lost, schema=dataset_columns.rejected_schema({})).write_parquet(folder / curated_set.REJECTED)
    write_manifest(folder, facts)
    return folder


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write a manifest of these values, whether or not they make sense."""
    text = json.dumps({"curate_set": manifest.FORMAT, **facts})
    (folder / manifest.MANIFEST).write_text(text, "utf-8")


def grown(value: Any) -> Any:
    """Return plain values with every count multiplied, as in a set of a hundred million records."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value * 987_654
    if isinstance(value, dict):
        return {key: grown(item) for key, item in value.items()}
    return [grown(item) for item in value] if isinstance(value, list | tuple) else value
