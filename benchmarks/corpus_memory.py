"""Measure time and peak memory of the decisions over the whole corpus, on summaries of 1 to 18 million conversations.

    python benchmarks/corpus_memory.py --millions 1 4 18
    python benchmarks/corpus_memory.py --millions 1 4 18 --texts

18 million conversations are about 100 GB of chats. Their summaries are made up: 7 messages each on average, and
one in ten shares something with another: 2 % are copies, 2 % beginnings, 4 % have a prompt and 2 % a chat of another's.
Each part has 1,000 conversations (a range of 4 MB has about 750). With `--texts`, the recipe has `near_duplicates`,
`prompt_cap` and a limit of `cap` on files too: each conversation has 24 shingles, and 0.4 % are nearly the same as
another. What follows the decisions is not run: the tables are written part by part.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from common import MIB, measure, parse, parser, remove, save, table
from common import ROOT as TREE

from curate.dataset import columns
from curate.engine.pool import open_pool
from curate.filters import caps, registry
from curate.pipeline import corpus, recipe
from curate.pipeline.frames import part_file
from curate.pipeline.near import parts as near_parts
from curate.pipeline.near.caps import PromptCap
from curate.pipeline.near.decision import NearDuplicates
from curate.pipeline.recipe import Recipe
from curate.pipeline.run import make_finders
from curate.pipeline.steps import Part
from curate.pipeline.tables import assemble

ROWS = 1000  # of a part
MESSAGES = 7  # of a conversation, on average
FILE_ROWS = 1_000_000  # of one file of the dump
SHINGLES = 24  # of a conversation
NEAR = range(200, 208, 2)  # rows that are nearly the same as the next one
LIMIT_MIB = 1536


def synthesise(folder: Path, parts: int, *, texts: bool) -> None:
    """Write the summaries of some parts, and with `texts` what rules on texts compare."""
    random = np.random.default_rng(7)
    for number in range(parts):
        summary(random, number).write_ipc(part_file(folder, number, "summary"))
        if texts:
            write_texts(random, folder, number)


def write_texts(random: np.random.Generator, folder: Path, number: int) -> None:
    """Write the shingles and prompts of a part, and the messages of those that are near duplicates."""
    sets = np.sort(random.integers(0, 1 << 32, (ROWS, SHINGLES), np.uint32), axis=1)
    sets[NEAR, 1:] = sets[np.array(NEAR) + 1, 1:]
    sets.sort(axis=1)
    header = np.array([ROWS] + [SHINGLES] * ROWS, np.uint32)
    part_file(folder, number, near_parts.SHINGLES).write_bytes(header.tobytes() + sets.tobytes())
    prompts = pl.DataFrame({"row": range(ROWS), "language": ["en"] * ROWS, "text": [f"prompt {number}"] * ROWS})
    prompts.cast({"row": pl.UInt32}).write_ipc(part_file(folder, number, near_parts.PROMPTS))
    rows = [row + place for row in NEAR for place in (0, 1)]
    messages = [[{"role": "user", "content": "one two three four five six seven"}] for _ in rows]
    schema = {"row": pl.UInt32, "messages": columns.CONVERSATION["messages"]}
    pl.DataFrame({"row": rows, "messages": messages}, schema=schema).write_ipc(part_file(folder, number, "kept"))


def summary(random: np.random.Generator, number: int) -> pl.DataFrame:
    """Return the summary of one part, some of whose conversations share something."""
    same = np.arange(0, 40, 2)  # copies of the row after them; of the next 40, every other one is a beginning
    lengths = random.integers(1, MESSAGES, ROWS) * 2
    lengths[same], lengths[40 + same] = lengths[same + 1], 1
    starts = np.cumsum(lengths) - lengths
    hashes = random.integers(1, 1 << 64, lengths.sum(), np.uint64)
    prompts = random.integers(1, 1 << 64, ROWS, np.uint64)
    names = [f"{value:016x}"[:10] for value in random.integers(0, 1 << 64, ROWS, np.uint64).tolist()]
    for row in same.tolist():
        hashes[starts[row] : starts[row] + lengths[row]] = hashes[starts[row + 1] : starts[row + 1] + lengths[row]]
        hashes[starts[40 + row]] = hashes[starts[41 + row]]
        names[160 + row], names[161 + row] = f"{names[160 + row]}_0", f"{names[160 + row]}_1"
    prompts[same], prompts[40 + same], prompts[80 + same] = prompts[same + 1], prompts[41 + same], prompts[120 + same]
    flat = pl.DataFrame({"row": np.repeat(np.arange(ROWS), lengths), "chain": hashes})
    chains = flat.group_by("row", maintain_order=True).agg("chain")["chain"]
    rows = pl.DataFrame(
        {
            "row": range(ROWS),
            "source_file": [f"dump-{number * ROWS // FILE_ROWS}.jsonl"] * ROWS,
            "source_index": range(number * ROWS, (number + 1) * ROWS),
            "branch": [0] * ROWS,
            "source_id": names,
            "chain": chains,
            "exchange": prompts,
            "prompt": prompts,
            "marks": [None] * ROWS,
            "pieces": [1] * ROWS,
            "alone": [True] * ROWS,
            "characters": random.integers(100, 10_000, ROWS),
            "model": [None] * ROWS,
            "language": ["en"] * ROWS,
        },
        strict=False,
    )
    return rows.select(
        pl.col(name).cast(dtype) for name, dtype in {**columns.PART_SUMMARY, **columns.GROUP_SUMMARY}.items()
    )


def find_rules(*, texts: bool) -> Recipe:
    """Return the recipe, with rules on texts if these are to be compared."""
    chosen = recipe.load("vicuna")
    names = (NearDuplicates.name, PromptCap.name, caps.CAP) if texts else ()
    further = {name: registry.check(name) for name in names}
    if texts:
        further[caps.CAP]["source_file"] = FILE_ROWS * 9 // 10
    return replace(chosen, filters={**chosen.filters, **further})


def decide(folder: Path, number_of_parts: int, *, texts: bool) -> None:
    """Decide, and read all decisions again as the writer of a table does; print what was decided."""
    parts = [
        Part(number, ROWS, Counter(), Counter(), pl.scan_ipc(part_file(folder, number, "summary")), {})
        for number in range(number_of_parts)
    ]
    start = time.process_time()
    rules = find_rules(texts=texts)
    with open_pool(lambda: str, 1) as pool:
        decisions = corpus.decide(parts, rules, finders=make_finders(pool, folder, rules), folder=folder)
    print(f"decided in {time.process_time() - start:.1f} CPU s")
    target = assemble.SetTables(folder, folder, {part.number: 0 for part in parts}, {}, originals=False)
    target = assemble.write_decisions(target, decisions)
    held = sum(rows.height for rows in decisions.select("row"))
    decisions = decisions.without_rows()
    read = assemble.decisions_reader(target)
    counts: Counter[str | None] = Counter()
    for part in parts:
        counts.update(read(part.number).select(pl.coalesce("rule", "split"))["rule"].to_list())
    print(dict(counts), f"decided in groups: {held:,}")


def main() -> None:
    """Measure each size in a process of its own, print the table, write the result."""
    command_line = parser(__doc__)
    command_line.add_argument("--millions", type=float, nargs="+", default=[1, 4, 18], help="conversations")
    command_line.add_argument("--decide", type=Path, metavar="FOLDER", help="only decide on these summaries")
    command_line.add_argument("--texts", action="store_true", help="with near_duplicates, prompt_cap and cap on files")
    options = parse(command_line, needs_shared=False)
    texts = ["--texts"] if options.texts else []
    if options.decide:
        decide(options.decide, int(options.millions[0] * 1e6 / ROWS), texts=options.texts)
        return
    folder = options.scratch / "summaries"
    remove(folder)
    rows: list[list[object]] = []
    figures: list[dict[str, object]] = []
    for millions in options.millions:
        parts = int(millions * 1e6 / ROWS)
        folder.mkdir(parents=True)
        synthesise(folder, parts, texts=options.texts)
        disk = sum(path.stat().st_size for path in folder.iterdir()) / MIB
        run = measure([sys.executable, __file__, "--decide", folder, "--millions", str(millions), *texts], TREE)
        remove(folder)
        rows.append([f"{parts * ROWS:,}", run.cpu, run.peak_mib, disk])
        figures.append(
            {
                "conversations": parts * ROWS,
                "cpu_s": round(run.cpu, 1),
                "peak_mib": round(run.peak_mib),
                "summaries_mib": round(disk),
            }
        )
        print(f"  {millions:g} million: {run.cpu:.1f} CPU s, {run.peak_mib:.0f} MiB\n{run.output}", flush=True)
    print("\n" + table(["conversations", "CPU s", "peak MiB", "summaries MiB"], rows))
    name = "corpus_memory_texts" if options.texts else "corpus_memory"
    save(name, {"limit_mib": LIMIT_MIB, "shared_percent": 10, "sizes": figures}, options.no_save)


if __name__ == "__main__":
    main()
