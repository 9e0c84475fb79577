"""Fine-tuning beside others: tokens/s, strict MFU and peak memory, on a GPU or, small, on a CPU.

On CUDA: LLaMA-2-7B's and LLaMA-3-8B's shape with random weights, the most important rows first, as many as fit into
`--budget` seconds; the JSON is written anew after every row. On a CPU: `tiny` beside transformers' Trainer, each in a
process of its own. `--toy` takes the GPU's rows at a fraction of their size on whatever device there is.

Wants torch, transformers, peft, numpy, click and rich; bitsandbytes for QLoRA's row, trl and datasets for TRL's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one card, or transformers' Trainer spreads over all there are
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a checkout, where curate is not installed
import torch

from benchmarks import common, training
from benchmarks.training import Bench, Case, Row

VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "trl", "triton", "numpy")
OFF = {"compile": "off"}
NO_GPU = (
    "; no GPU was at hand: these are figures of a CPU and say nothing of one; seconds are the process's own CPU time, "
    "memory is that of the whole process"
)
Measure = Callable[[Bench, float], Row]


@dataclass(frozen=True)
class Line:
    """A row of the table: its name, and what measures it until a deadline."""

    name: str
    measure: Measure


def ours(case: Case) -> Line:
    return Line(case.name, lambda bench, deadline: training.measure(bench, case, deadline))


def incumbent(name: str, shape: str, documents: str, **more: Any) -> Line:
    def run(bench: Bench, deadline: float) -> Row:
        from benchmarks import incumbents

        return incumbents.trainer(bench, shape, documents, **more)

    return Line(name, run)


def trl(name: str, shape: str, documents: str) -> Line:
    def run(bench: Bench, deadline: float) -> Row:
        from benchmarks import incumbents

        return incumbents.trl(bench, shape, documents)

    return Line(name, run)


def full_1k(name: str, *, plain_loss: bool = False, **changes: dict[str, object]) -> Line:
    """Return the 7B full fine-tune with one choice turned another way."""
    return ours(Case(f"7B full 1k, {name}", "7B", "full", "1k", changes, plain_loss=plain_loss))


BASE = Case("7B full 1k", "7B", "full", "1k")
REAL = "7B full real"
TRAINER = "7B full real, Trainer padded"
GPU = [
    ours(BASE),
    ours(Case("7B LoRA 1k", "7B", "lora", "1k")),
    ours(Case(REAL, "7B", "full", "real")),
    incumbent(TRAINER, "7B", "real"),
    ours(Case("7B full 4k", "7B", "full", "4k")),
    ours(Case("7B LoRA 4k", "7B", "lora", "4k")),
    ours(Case("8B full 1k", "8B", "full", "1k")),
    full_1k("not compiled", train=OFF),
    full_1k("plain loss", plain_loss=True),
    full_1k("SDPA", model={"attention": "sdpa"}),
    full_1k("varlen", model={"attention": "varlen"}),
    full_1k("checkpointed", train={"checkpointing": "full"}),
    full_1k("not checkpointed", train={"checkpointing": "none"}),
    Line("7B full 1k, parts", lambda bench, deadline: training.parts(bench, BASE)),
    ours(Case("7B LoRA real in 22 GiB", "7B", "lora", "real", gib=22.0)),
    ours(Case("7B QLoRA real in 14 GiB", "7B", "qlora", "real", gib=14.0)),
    ours(Case("8B LoRA 1k", "8B", "lora", "1k")),
    ours(Case("7B LoRA real", "7B", "lora", "real")),
    full_1k("8-bit states", optimizer={"form": "8bit"}),
    full_1k("stochastic rounding", optimizer={"form": "stochastic"}),
    ours(Case("8B full 4k", "8B", "full", "4k")),
    ours(Case("8B LoRA 4k", "8B", "lora", "4k")),
    trl("7B full real, TRL", "7B", "real"),
    Line("resumed", lambda bench, deadline: training.resume(bench, Case("resumed", "7B", "full", "real"))),
]
CPU = [
    ours(Case("tiny full real", "tiny", "full", "real")),
    incumbent("tiny full real, Trainer padded", "tiny", "real"),
    incumbent("tiny full real, Trainer on the same rows", "tiny", "real", packed=True),
    trl("tiny full real, TRL", "tiny", "real"),
    Line("tiny, parts", lambda bench, deadline: training.parts(bench, Case("parts", "tiny", "full", "real"))),
]


def measured(line: Line, bench: Bench, deadline: float) -> Row:
    """Return a row, or why there is none: one that fails or runs out of time costs no other."""
    begin = time.perf_counter()
    try:
        with until(deadline):
            row = line.measure(bench, deadline)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a compiler, a driver, a library that is absent: all are told and none ends it
        text = " ".join(str(error).split())[:300]
        row = {"error": f"{type(error).__name__}: {text}" if text else type(error).__name__}
    return {"name": line.name, **row, "seconds_for_this_row": round(time.perf_counter() - begin, 1)}


class OutOfTime(Exception):
    """The budget ended in the middle of a row."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Raise OutOfTime at the deadline."""

    def ring(number: int, frame: object) -> None:
        raise OutOfTime("the budget ended in the middle of this row")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - time.perf_counter()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- the result


def told(bench: Bench, rows: list[Row]) -> Row:
    """Return what the file says so far."""
    cuda = bench.place.type == "cuda"
    machine = common.machine()
    machine["packages"] = {name: _version(name) for name in VERSIONS}
    return {
        "benchmark": "finetune",
        "about": (
            "random weights, packed rows; tokens/s counts tokens of conversations, never padding"
            + ("; MFU is strict (curate.model.sizes.flops over the GEMM rate measured here)" if cuda else NO_GPU)
            + ("; TOY sizes: a check that everything runs, no figures" if bench.toy else "")
        ),
        "machine": machine,
        "device": bench.found.name,
        "dtype": bench.found.dtype,
        "gemm_tflops": round(bench.found.rate / 1e12, 3),
        "rows": rows,
        "ratios": ratios(rows),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def ratios(rows: list[Row]) -> Row:
    """Return our tokens a second over others', on the same conversations."""
    rate = {row["name"]: row["tokens_per_s"] for row in rows if "tokens_per_s" in row}
    found = {}
    for name, value in rate.items():
        mine = name.partition(",")[0]
        if name != mine and mine in rate and any(other in name for other in ("Trainer", "TRL")):
            found[f"{mine} over {name.partition(', ')[2]}"] = round(rate[mine] / value, 2)
    return found


def shown(result: Row) -> str:
    """Return the table, and below it what could not be measured, the parts' times and the ratios."""
    cells, notes = [], []
    for row in result["rows"]:
        if "tokens_per_s" in row:
            mfu = f"{100 * row['mfu']:.1f} %" if "mfu" in row else None
            rate = f"{row['tokens_per_s']:,.0f}"
            cells.append((row["name"], rate, mfu, row["peak_gib"], row.get("planned_peak_gib"), row["step_seconds"]))
        else:
            notes.append(f"{row['name']}: {row.get('error') or how(row)}")
    lines = [common.table(("row", "tokens/s", "MFU", "peak GiB", "planned", "s/step"), cells), *notes]
    return "\n".join([*lines, *(f"{name}: {value} times" for name, value in result["ratios"].items())])


def how(row: Row) -> str:
    """Return in a few words how a row was trained."""
    if "milliseconds" in row:
        return ", ".join(f"{name} {value} ms" for name, value in row["milliseconds"].items())
    if "bit_for_bit" in row:
        return "bit for bit" if row["bit_for_bit"] else f"largest difference {row['largest_difference']:.1e}"
    words = [f"{row['micro_batch']} rows at once"] if "micro_batch" in row else []
    words += [str(row[key]) for key in ("attention", "optimizer", "weights") if key in row]
    words += [f"{row['checkpointed_layers']} layers checkpointed"] if row.get("checkpointed_layers") else []
    words += ["checkpointed"] if row.get("checkpointing") else []
    words += ["compiled"] if row.get("compiled") else []
    return ", ".join([*words, *row.get("said", [])])


def write(path: Path | None, result: Row) -> None:
    """Write the file whole or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    aside.replace(path)


# ---- the command


def alone(line: Line, options: argparse.Namespace, bench: Bench, deadline: float) -> Row:
    """Measure a row in a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, __file__, "--device", options.device, "--only", line.name, "--raw"]
    command += ["--toy"] if options.toy else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    seconds = max(1.0, deadline - time.perf_counter())
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"name": line.name, "error": "the budget ended in the middle of this row"}
    if done.returncode:
        return {"name": line.name, "error": " ".join(done.stderr.split())[-300:]}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--budget", type=float, default=540.0, help="seconds for all rows (default 540)")
    made.add_argument("--toy", action="store_true", help="the GPU's rows at toy size, on any device: no figures")
    made.add_argument("--only", action="append", default=[], help="a row by its name; may be repeated")
    made.add_argument("--list", action="store_true", help="name the rows and stop")
    made.add_argument("--out", type=Path, help="JSON file (default benchmarks/results/finetune_<device>.json)")
    made.add_argument("--no-save", action="store_true", help="print only")
    made.add_argument("--raw", action="store_true", help="one row as one line of JSON, for a process of its own")
    return made.parse_args()


def place_of(options: argparse.Namespace, bench: Bench) -> Path | None:
    if options.no_save or options.raw or (options.toy and options.out is None):
        return None
    named = "_".join(bench.found.name.lower().split()) if bench.place.type == "cuda" else "cpu"
    return options.out or common.RESULTS / f"finetune_{named}.json"


def main() -> None:
    options = arguments()
    deadline = time.perf_counter() + options.budget
    lines = GPU if options.device == "cuda" or options.toy else CPU
    if unknown := set(options.only) - {line.name for line in lines}:
        sys.exit(f"no row {sorted(unknown)[0]!r}; --list names them")
    lines = [line for line in lines if not options.only or line.name in options.only]
    if options.list:
        print("\n".join(line.name for line in lines))
        return
    bench = training.bench(options.device, toy=options.toy)
    if options.raw:
        print(json.dumps(measured(lines[0], bench, deadline)))
        return
    path, rows = place_of(options, bench), []
    apart = options.device == "cpu" and not options.toy
    one: Callable[..., Row] = partial(alone, options=options) if apart else measured
    print(
        f"{bench.found.name}, {bench.found.dtype}: {bench.found.rate / 1e12:,.2f} TFLOP/s in matrix products",
        flush=True,
    )
    for line in lines:
        if time.perf_counter() > deadline - 5:
            rows.append({"name": line.name, "error": "not begun: the budget was spent"})
        else:
            rows.append(one(line, bench=bench, deadline=deadline))
            training.forget(bench)
        print(f"{line.name}: {rows[-1].get('error') or how(rows[-1])}", flush=True)
        write(path, told(bench, rows))
    print()
    print(shown(told(bench, rows)))
    if path is not None:
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
