"""Conversations to ids, mask and rows: ours beside the incumbent's `preprocess`, on the same conversations and cores.

    python benchmarks/prepare.py --incumbent-python .incumbent/bin/python
    python benchmarks/prepare.py --rows 600 --best-of 1        # try it; nothing is saved

10,000 conversations of the real dump, cleaned and split at 2048 by `curate clean`, in the Vicuna template, with the
tokenizers of LLaMA-2 and LLaMA-3. Ours renders ids and mask, proves the mask of every conversation, and packs rows. The
incumbent's `fastchat.train.train.preprocess` renders, tokenises, pads to the window and masks, on a sample, as it is
slow; how many of them it leaves without a single trained token is counted. Both hold the conversations in memory when
the clock starts, and CPU seconds are compared, ours in one process. The last line is the whole way in wall time: the
set read from disk, split again for LLaMA-3, rendered, proven and packed on all cores, workers' start included.
requirements/incumbent.txt says how to make its environment, which needs torch besides; without one, ours alone is
measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ROOT, copies, measure, ours, parse, parser, save, source_rows, table
from common import write_dump as write

from curate.engine import base
from curate.rendering import proof
from curate.rendering.factory import make_renderer
from curate.schemas.conversation import Message, Role
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from curate.train import examples, packing

WINDOW = 2048
WARM = 100  # conversations before the clock starts, of those that are not measured
STAGES = ("render", "prove", "pack")
Conversation = list[Message]


def prepared(name: str, batch: Sequence[Conversation], warm: Sequence[Conversation], shared: Path) -> dict[str, Any]:
    """Return seconds of wall and CPU time of each stage, and how full the rows are."""
    made = make_renderer("vicuna", tokenizer_of(name, shared))
    proof.prove(made, warm, made.render_batch(warm))
    with base.gc_disabled():  # as where a set is read for training
        marks = [(time.perf_counter(), time.process_time())]
        written = [made.render_batch(batch[at : at + 1000]) for at in range(0, len(batch), 1000)]
        marks.append((time.perf_counter(), time.process_time()))
        failed = sum(len(proof.prove(made, batch[at * 1000 : (at + 1) * 1000], one)) for at, one in enumerate(written))
        marks.append((time.perf_counter(), time.process_time()))
    lengths = [size for one in written for size in one.encoded.lengths.tolist() if size <= WINDOW]
    packed = packing.pack(lengths, WINDOW)
    marks.append((time.perf_counter(), time.process_time()))
    taken = {
        stage: {"wall_s": after[0] - before[0], "cpu_s": after[1] - before[1]}
        for stage, before, after in zip(STAGES, marks, marks[1:], strict=False)
    }
    return {
        "stages": taken,
        "failed": failed,
        "over_window": len(batch) - len(lengths),
        "tokens": sum(lengths),
        "rows": len(packed.rows),
        "utilisation": packed.utilisation,
        "padded_utilisation": packed.padded_utilisation,
    }


def whole_way(name: str, folder: Path, shared: Path) -> dict[str, Any]:
    """Return the wall time from a set on disk to rows, on all cores."""
    tokenizer = tokenizer_of(name, shared)
    begin = time.perf_counter()
    found = examples.load(folder, tokenizer, examples.RenderSettings(template="vicuna", max_tokens=WINDOW))
    packing.pack(found.train.lengths, WINDOW)
    count = len(found.train) + len(found.eval)
    return {"conversations": count, "wall_s": time.perf_counter() - begin, "left_out": len(found.failures)}


def tokenizer_of(name: str, shared: Path) -> Tokenizer:
    """Return a tokenizer by name; the one counting with fastokens, whose cache of texts begins empty."""
    return load_tokenizer(str(shared / "tokenizers/llama2") if name == "llama2" else None)


def messages_of(rows: Sequence[dict[str, Any]]) -> list[Conversation]:
    """Return FastChat's rows as messages."""
    roles: dict[str, Role] = {"human": "user", "gpt": "assistant"}
    return [[Message(roles[turn["from"]], turn["value"]) for turn in row["conversations"]] for row in rows]


def run_ours(name: str, file: Path, count: int, shared: Path) -> dict[str, Any]:
    """Measure ours in a process of its own, so that nothing it has seen before makes it faster."""
    command = [sys.executable, __file__, "--measure", name, "--data", str(file), "--rows", str(count)]
    found = subprocess.run([*command, "--shared", str(shared)], capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(found.stderr[-2000:])
    result: dict[str, Any] = json.loads(found.stdout)
    return result


# The incumbent, in its own environment

INCUMBENT = """
import contextlib, io, json, sys, time
import torch, transformers
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
from fastchat.train.train import preprocess
folder, data, count, window = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sources = [row["conversations"] for row in json.load(open(data))]
step = len(sources) // count
sample = sources[: step * count : step]
# As its train() loads it; LLaMA-3 has neither an unk token to pad with nor `legacy`, without which preprocess ends
# in an error, so it is given both.
tokenizer = transformers.AutoTokenizer.from_pretrained(
    folder, model_max_length=window, padding_side="right", use_fast=False)
tokenizer.pad_token = tokenizer.unk_token
helped = tokenizer.pad_token is None
if helped:
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    tokenizer.legacy = False
with contextlib.redirect_stdout(io.StringIO()):
    preprocess(sources[1:21:2], tokenizer)
    wall, cpu = time.perf_counter(), time.process_time()
    found = preprocess(sample, tokenizer)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
zeroed = int((found["labels"] == -100).all(1).sum())
used = int(found["attention_mask"].sum())
print(json.dumps({"conversations": len(sample), "wall_s": wall, "cpu_s": cpu, "zeroed": zeroed, "helped": helped,
                  "utilisation": used / found["input_ids"].numel()}))
"""


def run_incumbent(python: Path, folder: Path, data: Path, count: int) -> dict[str, Any]:
    """Measure the incumbent's preprocess on a sample of the same conversations, evenly spaced."""
    command = [python, "-c", INCUMBENT, folder, data, str(count), str(WINDOW)]
    output = measure(command, ROOT, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false").output
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def incumbent_folder(name: str, shared: Path, scratch: Path) -> Path:
    """Return a tokenizer's folder as the incumbent loads it: LLaMA-2's own, LLaMA-3's as its models ship it."""
    if name == "llama2":
        return shared / "tokenizers/llama2"
    folder = scratch / "llama3"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_of(name, shared).tokenizer_json(), "utf-8")
    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **ends}))
    return folder


# The whole


def conversations(shared: Path, scratch: Path, count: int) -> Path:
    """Return a file of so many cleaned conversations, as FastChat's trainer reads them; one that is there is kept.

    The set it is from lies beside it.
    """
    target = scratch / f"prepare-{count}.json"
    folder = set_beside(target)
    if target.exists() and folder.exists():
        return target
    rows = min(2 * len(source_rows(shared)), 4 * count)
    dump = write(scratch / f"prepare-dump-{rows}.json", copies(shared), count=rows)
    measure(ours(dump, folder, shared, None), ROOT)
    everything = scratch / "prepare-all.json"
    measure([sys.executable, "-m", "curate", "convert", folder, everything, "--to", "vicuna"], ROOT)
    found = json.loads(everything.read_text())
    if len(found) < count:
        sys.exit(f"only {len(found):,} conversations are left of the dump; give --rows {len(found) - WARM}")
    target.write_text(json.dumps(found[: count + WARM]))
    return target


def set_beside(file: Path) -> Path:
    return file.with_name(f"{file.stem}-set")


def options() -> argparse.Namespace:
    """Read the command line."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=10_000, help="conversations (default 10,000; others save nothing)")
    made.add_argument("--sample", type=int, default=300, help="of them for the incumbent (default 300)")
    made.add_argument("--best-of", type=int, default=3, metavar="N", help="runs of each, in turn (default 3)")
    made.add_argument("--incumbent-python", type=Path, help="interpreter of an environment with fschat 0.2.36")
    made.add_argument("--measure", choices=["llama2", "llama3"], help=argparse.SUPPRESS)
    made.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    chosen = parse(made)
    if chosen.incumbent_python:  # a link to an interpreter must stay a link, or it forgets its environment
        chosen.incumbent_python = Path(os.path.abspath(chosen.incumbent_python))  # noqa: PTH100
    return chosen


def measured(name: str, file: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Run both in turn for one tokenizer; return each one's best, and how they compare."""
    mine, theirs = [], []
    for _ in range(chosen.best_of):
        mine.append(run_ours(name, file, chosen.rows, chosen.shared))
        if chosen.incumbent_python:
            folder = incumbent_folder(name, chosen.shared, chosen.scratch)
            theirs.append(run_incumbent(chosen.incumbent_python, folder, file, chosen.sample))
    whole = min((run.pop("whole") for run in mine), key=lambda run: float(run["wall_s"]))
    whole["per_wall_second"] = whole["conversations"] / whole["wall_s"]
    best = min(mine, key=lambda run: sum(stage["cpu_s"] for stage in run["stages"].values()))
    for kind in ("wall_s", "cpu_s"):
        total = sum(stage[kind] for stage in best["stages"].values())
        proving = best["stages"]["prove"][kind]
        best[f"per_{kind[:-2]}_second"] = chosen.rows / total
        best[f"per_{kind[:-2]}_second_without_proof"] = chosen.rows / (total - proving)
    result = {"curate": best, "whole_way": whole}
    if theirs:
        other = min(theirs, key=lambda run: run["cpu_s"])
        other["per_wall_second"] = other["conversations"] / other["wall_s"]
        other["per_cpu_second"] = other["conversations"] / other["cpu_s"]
        result["fschat"] = other
    return result


def lines(name: str, runs: dict[str, Any]) -> list[list[object]]:
    """Return a tokenizer's lines of the table, and note in `runs` how many times faster ours is."""
    mine, other = runs["curate"], runs.get("fschat")
    quick = mine["per_cpu_second_without_proof"]
    found: list[list[object]] = [
        [f"{name}: curate", mine["per_cpu_second"], None, 100 * mine["utilisation"], mine["failed"]],
        [f"{name}: curate, without the proof", quick, None, 100 * mine["utilisation"], None],
    ]
    if other:
        theirs = other["per_cpu_second"]
        runs["times_faster"], runs["times_faster_without_proof"] = mine["per_cpu_second"] / theirs, quick / theirs
        runs["times_faster_whole_way"] = runs["whole_way"]["per_wall_second"] / other["per_wall_second"]
        found[0][2], found[1][2] = runs["times_faster"], runs["times_faster_without_proof"]
        zeroed = f"{other['zeroed']} of {other['conversations']}"
        found.append([f"{name}: fschat 0.2.36", theirs, 1.0, 100 * other["utilisation"], zeroed])
    return found


def main() -> None:
    """Measure both, print the table, write the result."""
    chosen = options()
    if chosen.measure:
        batch = messages_of(json.loads(chosen.data.read_text()))
        found = prepared(chosen.measure, batch[: chosen.rows], batch[chosen.rows :], chosen.shared)
        found["whole"] = whole_way(chosen.measure, set_beside(chosen.data), chosen.shared)
        print(json.dumps(found))
        return
    file = conversations(chosen.shared, chosen.scratch, chosen.rows)
    runs = {name: measured(name, file, chosen) for name in ("llama2", "llama3")}
    print(
        table(
            ["", "conv/CPU s", "times", "row use %", "without a mask"],
            [line for name in runs for line in lines(name, runs[name])],
        )
    )
    for name, run in runs.items():
        print(f"{name}: the whole way on all cores, {run['whole_way']['per_wall_second']:,.0f} conversations/s (wall)")
    settings = {"rows": chosen.rows, "best_of": chosen.best_of, "window": WINDOW, "template": "vicuna"}
    save("prepare", {"settings": settings, "runs": runs}, chosen.no_save or chosen.rows != 10_000)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
