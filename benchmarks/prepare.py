"""Compare data preparation (conversations to ids, mask and rows) with the incumbent's `preprocess`.

    python benchmarks/prepare.py --incumbent-python .incumbent/bin/python
    python benchmarks/prepare.py --rows 600 --best-of 1        # a quick trial; nothing is saved

10,000 conversations of the real dump, cleaned and split at 2048 by `curate clean`, in the Vicuna template, with the
tokenizers of LLaMA-2 and LLaMA-3. curate renders ids and mask, proves the mask of every conversation, and packs rows.
The incumbent's `fastchat.train.train.preprocess` renders, tokenizes, pads to the window and masks, on a sample since it
is slow; the conversations that it leaves without a supervised token are counted. Both have the conversations in memory
at the start, and CPU seconds are compared, of one process. The last lines are wall times from a set on disk: read,
split again for LLaMA-3, rendered, proven and packed on all cores, including the start of the workers.
requirements/incumbent.txt describes the incumbent's environment, which also needs torch; without one, only curate is
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
WARM = 100  # conversations to warm up with, not measured
STAGES = ("render", "prove", "pack")
Conversation = list[Message]


def measure_stages(
    name: str, batch: Sequence[Conversation], warm: Sequence[Conversation], shared: Path
) -> dict[str, Any]:
    """Return wall and CPU seconds of each stage, and how full the rows are."""
    renderer = make_renderer("vicuna", tokenizer_of(name, shared))
    proof.prove(renderer, warm, renderer.render_batch(warm))
    with base.gc_disabled():  # as in training
        times = [(time.perf_counter(), time.process_time())]
        rendered = [renderer.render_batch(batch[at : at + 1000]) for at in range(0, len(batch), 1000)]
        times.append((time.perf_counter(), time.process_time()))
        failed = sum(
            len(proof.prove(renderer, batch[at * 1000 : (at + 1) * 1000], rendered_batch))
            for at, rendered_batch in enumerate(rendered)
        )
        times.append((time.perf_counter(), time.process_time()))
    lengths = [
        size for rendered_batch in rendered for size in rendered_batch.encoded.lengths.tolist() if size <= WINDOW
    ]
    packed = packing.pack(lengths, WINDOW)
    times.append((time.perf_counter(), time.process_time()))
    stages = {
        stage: {"wall_s": after[0] - before[0], "cpu_s": after[1] - before[1]}
        for stage, before, after in zip(STAGES, times, times[1:], strict=False)
    }
    return {
        "stages": stages,
        "failed": failed,
        "over_window": len(batch) - len(lengths),
        "tokens": sum(lengths),
        "rows": len(packed.rows),
        "utilisation": packed.utilisation,
        "padded_utilisation": packed.padded_utilisation,
    }


def measure_from_disk(name: str, folder: Path, shared: Path) -> dict[str, Any]:
    """Return the wall time from a set on disk to packed rows, on all cores."""
    tokenizer = tokenizer_of(name, shared)
    begin = time.perf_counter()
    prepared = examples.load(folder, tokenizer, examples.RenderSettings(template="vicuna", max_tokens=WINDOW))
    packing.pack(prepared.train.lengths, WINDOW)
    count = len(prepared.train) + len(prepared.eval)
    return {"conversations": count, "wall_s": time.perf_counter() - begin, "left_out": len(prepared.failures)}


def tokenizer_of(name: str, shared: Path) -> Tokenizer:
    """Return a tokenizer by name: LLaMA-2's, or LLaMA-3's, which counts with fastokens and an empty cache."""
    return load_tokenizer(str(shared / "tokenizers/llama2") if name == "llama2" else None)


def messages_of(rows: Sequence[dict[str, Any]]) -> list[Conversation]:
    """Return FastChat's rows as messages."""
    roles: dict[str, Role] = {"human": "user", "gpt": "assistant"}
    return [[Message(roles[turn["from"]], turn["value"]) for turn in row["conversations"]] for row in rows]


def run_ours(name: str, file: Path, count: int, shared: Path) -> dict[str, Any]:
    """Measure curate in its own process, so that no cache makes it faster."""
    command = [sys.executable, __file__, "--measure", name, "--data", str(file), "--rows", str(count)]
    process = subprocess.run([*command, "--shared", str(shared)], capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(process.stderr[-2000:])
    result: dict[str, Any] = json.loads(process.stdout)
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
# As its train() loads it. LLaMA-3 has neither an unk token for padding nor `legacy`; preprocess fails without them.
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
    """Measure the incumbent's preprocess on an evenly spaced sample of the same conversations."""
    command = [python, "-c", INCUMBENT, folder, data, str(count), str(WINDOW)]
    output = measure(command, ROOT, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false").output
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def incumbent_folder(name: str, shared: Path, scratch: Path) -> Path:
    """Return a tokenizer's folder for the incumbent: LLaMA-2's own, LLaMA-3's as its models have it."""
    if name == "llama2":
        return shared / "tokenizers/llama2"
    folder = scratch / "llama3"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_of(name, shared).tokenizer_json(), "utf-8")
    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **ends}))
    return folder


# Data and results


def conversations(shared: Path, scratch: Path, count: int) -> Path:
    """Return a file of `count` cleaned conversations, as FastChat's trainer reads them; an existing file is kept.

    Its set is in the same folder.
    """
    target = scratch / f"prepare-{count}.json"
    folder = set_of(target)
    if target.exists() and folder.exists():
        return target
    rows = min(2 * len(source_rows(shared)), 4 * count)
    dump = write(scratch / f"prepare-dump-{rows}.json", copies(shared), count=rows)
    measure(ours(dump, folder, shared, None), ROOT)
    all_conversations = scratch / "prepare-all.json"
    measure([sys.executable, "-m", "curate", "convert", str(folder), str(all_conversations), "--to", "vicuna"], ROOT)
    cleaned = json.loads(all_conversations.read_text())
    if len(cleaned) < count:
        sys.exit(f"only {len(cleaned):,} conversations are left of the dump; use --rows {len(cleaned) - WARM}")
    target.write_text(json.dumps(cleaned[: count + WARM]))
    return target


def set_of(file: Path) -> Path:
    return file.with_name(f"{file.stem}-set")


def options() -> argparse.Namespace:
    """Read the command line."""
    command_line = parser(__doc__)
    command_line.add_argument(
        "--rows", type=int, default=10_000, help="conversations (default 10,000; others save nothing)"
    )
    command_line.add_argument("--sample", type=int, default=300, help="conversations for the incumbent (default 300)")
    command_line.add_argument(
        "--best-of", type=int, default=3, metavar="N", help="runs of each, alternately (default 3)"
    )
    command_line.add_argument("--incumbent-python", type=Path, help="interpreter of an environment with fschat 0.2.36")
    command_line.add_argument("--measure", choices=["llama2", "llama3"], help=argparse.SUPPRESS)
    command_line.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    chosen = parse(command_line)
    if chosen.incumbent_python:  # not resolved: the link determines the environment
        chosen.incumbent_python = Path(os.path.abspath(chosen.incumbent_python))  # noqa: PTH100
    return chosen


def measured(name: str, file: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Run both programs alternately with one tokenizer; return the best run of each, and their ratio."""
    ours_runs, fschat_runs = [], []
    for _ in range(chosen.best_of):
        ours_runs.append(run_ours(name, file, chosen.rows, chosen.shared))
        if chosen.incumbent_python:
            folder = incumbent_folder(name, chosen.shared, chosen.scratch)
            fschat_runs.append(run_incumbent(chosen.incumbent_python, folder, file, chosen.sample))
    from_disk = min((run.pop("whole") for run in ours_runs), key=lambda run: float(run["wall_s"]))
    from_disk["per_wall_second"] = from_disk["conversations"] / from_disk["wall_s"]
    best = min(ours_runs, key=lambda run: sum(stage["cpu_s"] for stage in run["stages"].values()))
    for kind in ("wall_s", "cpu_s"):
        total = sum(stage[kind] for stage in best["stages"].values())
        proving = best["stages"]["prove"][kind]
        best[f"per_{kind[:-2]}_second"] = chosen.rows / total
        best[f"per_{kind[:-2]}_second_without_proof"] = chosen.rows / (total - proving)
    result = {"curate": best, "whole_way": from_disk}
    if fschat_runs:
        fschat = min(fschat_runs, key=lambda run: run["cpu_s"])
        fschat["per_wall_second"] = fschat["conversations"] / fschat["wall_s"]
        fschat["per_cpu_second"] = fschat["conversations"] / fschat["cpu_s"]
        result["fschat"] = fschat
    return result


def lines(name: str, runs: dict[str, Any]) -> list[list[object]]:
    """Return a tokenizer's rows of the table, and add to `runs` how many times faster curate is."""
    curate, fschat = runs["curate"], runs.get("fschat")
    quick = curate["per_cpu_second_without_proof"]
    rows: list[list[object]] = [
        [f"{name}: curate", curate["per_cpu_second"], None, 100 * curate["utilisation"], curate["failed"]],
        [f"{name}: curate, without the proof", quick, None, 100 * curate["utilisation"], None],
    ]
    if fschat:
        fschat_rate = fschat["per_cpu_second"]
        runs["times_faster"], runs["times_faster_without_proof"] = (
            curate["per_cpu_second"] / fschat_rate,
            quick / fschat_rate,
        )
        runs["times_faster_whole_way"] = runs["whole_way"]["per_wall_second"] / fschat["per_wall_second"]
        rows[0][2], rows[1][2] = runs["times_faster"], runs["times_faster_without_proof"]
        zeroed = f"{fschat['zeroed']} of {fschat['conversations']}"
        rows.append([f"{name}: fschat 0.2.36", fschat_rate, 1.0, 100 * fschat["utilisation"], zeroed])
    return rows


def main() -> None:
    """Measure both programs, print the table, write the result."""
    chosen = options()
    if chosen.measure:
        batch = messages_of(json.loads(chosen.data.read_text()))
        result = measure_stages(chosen.measure, batch[: chosen.rows], batch[chosen.rows :], chosen.shared)
        result["whole"] = measure_from_disk(chosen.measure, set_of(chosen.data), chosen.shared)
        print(json.dumps(result))
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
        print(
            f"{name}: from disk to rows on all cores, {run['whole_way']['per_wall_second']:,.0f} conversations/s (wall)"
        )
    settings = {"rows": chosen.rows, "best_of": chosen.best_of, "window": WINDOW, "template": "vicuna"}
    save("prepare", {"settings": settings, "runs": runs}, chosen.no_save or chosen.rows != 10_000)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
