"""Measure the conversion of HTML to markdown on the answers of a real dump: the columns, the walker, and both.

    python benchmarks/markdown.py [--shared FOLDER] [--repeats 5]

One core, CPU seconds, best of the repeats; MB are 10^6 bytes of HTML. `flat`: answers that are converted as columns.
`nested`: answers that are walked. `code`: extraction of code blocks, which is a part of both. The last row converts
every answer with the walker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["POLARS_MAX_THREADS"] = "1"  # before Polars starts its threads

from common import MB, parse, parser, save, source_rows, table

from curate.markdown import flat, looks_like_html, to_markdown, walk_html
from curate.markdown.code import extract_blocks


def answers(shared: Path) -> list[str]:
    """Return the answers of the dump that are ChatGPT's HTML."""
    texts = (turn["value"] for row in source_rows(shared) for turn in row["conversations"] if turn["from"] == "gpt")
    return [text for text in texts if looks_like_html(text)]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the fewest CPU seconds of several calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def size(texts: Sequence[str]) -> float:
    """Return the length in MB."""
    return sum(len(text.encode()) for text in texts) / MB


def split(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the answers that are converted as columns, and the others."""
    extracted = [extract_blocks(text) if "<pre" in text else (text, []) for text in texts]
    converted = flat.convert([text for text, _ in extracted], [blocks for _, blocks in extracted])
    columns = [text for text, markdown in zip(texts, converted, strict=True) if markdown is not None]
    return columns, [text for text, markdown in zip(texts, converted, strict=True) if markdown is None]


def measure(texts: Sequence[str], repeats: int) -> list[dict[str, object]]:
    """Measure each part; return a row of figures for each."""
    columns, nested = split(texts)
    with_code = [text for text in texts if "<pre" in text]
    parts: dict[str, tuple[Sequence[str], Callable[[], object]]] = {
        "flat": (columns, lambda: to_markdown(columns)),
        "nested": (nested, lambda: to_markdown(nested)),
        "code": (with_code, lambda: [extract_blocks(text) for text in with_code]),
        "all": (texts, lambda: to_markdown(texts)),
        "all, walker alone": (texts, lambda: [walk_html(text) for text in texts]),
    }
    rows: list[dict[str, object]] = []
    for name, (part, work) in parts.items():
        megabytes = size(part)
        spent = seconds(work, repeats)
        row = {"part": name, "answers": len(part), "mb": megabytes, "seconds": spent, "mb_per_s": megabytes / spent}
        rows.append({**row, "share_of_answers": len(part) / len(texts), "share_of_bytes": megabytes / size(texts)})
    return rows


def main() -> None:
    """Print the table, write the result."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=5, help="runs of each part (default 5)")
    chosen = parse(options)
    rows = measure(answers(chosen.shared), chosen.repeats)
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    save("markdown", {"repeats": chosen.repeats, "parts": rows}, chosen.no_save)


if __name__ == "__main__":
    main()
