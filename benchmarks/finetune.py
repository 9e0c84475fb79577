"""Compare fine-tuning with other trainers: tokens/s, strict MFU and peak memory, on a GPU or, at small sizes, on a CPU.

On CUDA: the shapes of LLaMA-2-7B and LLaMA-3-8B with random weights, the most important rows first, as many as fit in
`--budget` seconds; the JSON is rewritten before and after every row. Started again, it measures only the rows that are
missing there: those without figures, and last those that never ended. On a CPU: `tiny`, compared with transformers'
Trainer, each row in its own process. `--rehearse` runs the GPU's rows at a fraction of their size on any device.

Needs torch, transformers, peft, numpy, click and rich; bitsandbytes for the QLoRA row, and trl and
datasets for the TRL row.
"""

from __future__ import annotations

import argparse
import faulthandler
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

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # otherwise transformers' Trainer uses all GPUs
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # curate may not be installed
import torch

from benchmarks import common, gpu_table, training
from benchmarks.training import Bench, Case, Row

VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "trl", "triton", "numpy")
OFF = {"compile": "off"}
BEGUN = "begun, but never ended"
GRACE = 30.0  # seconds after the budget in which a row that does not listen, such as a compiler, may still end
NO_GPU = (
    "; measured on a CPU, which says nothing about a GPU; seconds are the CPU time of the process, "
    "memory is that of the process"
)
Measure = Callable[[Bench, float], Row]


@dataclass(frozen=True)
class Line:
    """A row of the table: its name, and the function that measures it until a deadline."""

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
    """Return the 7B full fine-tune with one setting changed."""
    return ours(Case(f"7B full 1k, {name}", "7B", "full", "1k", changes, plain_loss=plain_loss))


BASE = Case("7B full 1k", "7B", "full", "1k")
REAL = "7B full real"
TRAINER = "7B full real, Trainer padded"
GPU = [  # what the goals of `gpu_table` need comes first
    ours(BASE),
    ours(Case("7B LoRA 1k", "7B", "lora", "1k")),
    ours(Case(REAL, "7B", "full", "real")),
    incumbent(TRAINER, "7B", "real"),
    ours(Case("7B LoRA real in 22 GiB", "7B", "lora", "real", gib=22.0)),
    ours(Case("7B QLoRA real in 14 GiB", "7B", "qlora", "real", gib=14.0)),
    trl("7B full real, TRL", "7B", "real"),
    Line("7B full 1k, parts", lambda bench, deadline: training.parts(bench, BASE)),
    ours(Case("7B full 4k", "7B", "full", "4k")),
    ours(Case("7B LoRA 4k", "7B", "lora", "4k")),
    ours(Case("8B full 1k", "8B", "full", "1k")),
    full_1k("not compiled", train=OFF),
    full_1k("plain loss", plain_loss=True),
    full_1k("SDPA", model={"attention": "sdpa"}),
    full_1k("varlen", model={"attention": "varlen"}),
    full_1k("checkpointed", train={"checkpointing": "full"}),
    full_1k("not checkpointed", train={"checkpointing": "none"}),
    ours(Case("8B LoRA 1k", "8B", "lora", "1k")),
    ours(Case("7B LoRA real", "7B", "lora", "real")),
    full_1k("8-bit states", optimizer={"form": "8bit"}),
    full_1k("stochastic rounding", optimizer={"form": "stochastic"}),
    ours(Case("8B full 4k", "8B", "full", "4k")),
    ours(Case("8B LoRA 4k", "8B", "lora", "4k")),
    Line("resumed", lambda bench, deadline: training.resume(bench, Case("resumed", "7B", "full", "real"))),
]
CPU = [
    ours(Case("tiny full real", "tiny", "full", "real")),
    incumbent("tiny full real, Trainer padded", "tiny", "real"),
    incumbent("tiny full real, Trainer on the same rows", "tiny", "real", packed=True),
    trl("tiny full real, TRL", "tiny", "real"),
    Line("tiny, parts", lambda bench, deadline: training.parts(bench, Case("parts", "tiny", "full", "real"))),
]


def measure_line(line: Line, bench: Bench, deadline: float) -> Row:
    """Return a row; if it fails or runs out of time, the row has the error, and the next rows still run."""
    begin = time.perf_counter()
    try:
        with until(deadline):
            row = line.measure(bench, deadline)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # from a compiler, a driver, a missing library: reported, not raised
        text = " ".join(str(error).split())[:300]
        row = {"error": f"{type(error).__name__}: {text}" if text else type(error).__name__}
    return {"name": line.name, **row, "seconds_for_this_row": round(time.perf_counter() - begin, 1)}


class OutOfTime(Exception):
    """The budget ended in the middle of a row."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Raise OutOfTime at the deadline."""

    def raise_out_of_time(number: int, frame: object) -> None:
        raise OutOfTime("the budget ended in the middle of this row")

    previous = signal.signal(signal.SIGALRM, raise_out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - time.perf_counter()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# ---- the result


def result_of(bench: Bench, rows: list[Row]) -> Row:
    """Return the content of the result file for the rows so far."""
    cuda = bench.torch_device.type == "cuda"
    machine = common.machine()
    machine["packages"] = {name: _version(name) for name in VERSIONS}
    return {
        "benchmark": "finetune",
        "about": (
            "random weights, packed rows; tokens/s counts tokens of conversations, never padding"
            + ("; MFU is strict (curate.model.sizes.flops over the GEMM rate measured here)" if cuda else NO_GPU)
            + ("; TOY sizes: a check that everything runs; figures are meaningless" if bench.toy else "")
        ),
        "machine": machine,
        "device": bench.info.name,
        "dtype": bench.info.dtype,
        "gemm_tflops": round(bench.info.rate / 1e12, 3),
        "rows": rows,
        "ratios": speed_ratios(rows),
        **({"goals": gpu_table.goals(rows)} if cuda or bench.toy else {}),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def speed_ratios(rows: list[Row]) -> Row:
    """Return curate's tokens per second divided by those of the other trainers, on the same conversations."""
    rate = {row["name"]: row["tokens_per_s"] for row in rows if "tokens_per_s" in row}
    ratios = {}
    for name, value in rate.items():
        base = name.partition(",")[0]
        if name != base and base in rate and any(trainer in name for trainer in ("Trainer", "TRL")):
            ratios[f"{base} over {name.partition(', ')[2]}"] = round(rate[base] / value, 2)
    return ratios


def format_result(result: Row) -> str:
    """Return the table, followed by errors, the times of the parts, and the ratios."""
    cells, notes = [], []
    for row in result["rows"]:
        if "tokens_per_s" in row:
            mfu = f"{100 * row['mfu']:.1f} %" if "mfu" in row else None
            rate = f"{row['tokens_per_s']:,.0f}"
            cells.append((row["name"], rate, mfu, row["peak_gib"], row.get("planned_peak_gib"), row["step_seconds"]))
        else:
            notes.append(f"{row['name']}: {row.get('error') or describe(row)}")
    lines = [common.table(("row", "tokens/s", "MFU", "peak GiB", "planned", "s/step"), cells), *notes]
    lines += [f"{name}: {value} times" for name, value in result["ratios"].items()]
    return "\n".join([*lines, *(f"goal: {goal['goal']}: {goal['found']}" for goal in result.get("goals", []))])


def describe(row: Row) -> str:
    """Describe briefly how a row was trained."""
    if "milliseconds" in row:
        return ", ".join(f"{name} {value} ms" for name, value in row["milliseconds"].items())
    if "bit_for_bit" in row:
        return "bit for bit" if row["bit_for_bit"] else f"largest difference {row['largest_difference']:.1e}"
    notes = [f"{row['micro_batch']} rows at once"] if "micro_batch" in row else []
    notes += [str(row[key]) for key in ("attention", "optimizer", "weights") if key in row]
    notes += [f"{row['checkpointed_layers']} layers checkpointed"] if row.get("checkpointed_layers") else []
    notes += ["checkpointed"] if row.get("checkpointing") else []
    notes += ["compiled"] if row.get("compiled") else []
    return ", ".join([*notes, *row.get("said", [])])


def write(path: Path | None, result: Row) -> None:
    """Write the file whole or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(".partial")
    partial_file.write_text(json.dumps(result, indent=1) + "\n")
    partial_file.replace(path)


# ---- the command


def measure_in_process(line: Line, options: argparse.Namespace, bench: Bench, deadline: float) -> Row:
    """Measure a row in its own process, so that its peak memory is not affected by other rows."""
    command = [sys.executable, __file__, "--device", options.device, "--only", line.name, "--raw"]
    command += ["--toy"] if options.toy else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    seconds = max(1.0, deadline - time.perf_counter())
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"name": line.name, "error": "the budget ended in the middle of this row"}
    if process.returncode:
        return {"name": line.name, "error": " ".join(process.stderr.split())[-300:]}
    row: Row = json.loads(process.stdout.splitlines()[-1])
    return row


def arguments() -> argparse.Namespace:
    command_line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    command_line.add_argument("--budget", type=float, default=540.0, help="seconds for all rows (default 540)")
    command_line.add_argument(
        "--toy",
        "--rehearse",
        action="store_true",
        help="the GPU's rows at toy size, on any device; figures are meaningless",
    )
    command_line.add_argument(
        "--again-in-a-new-process",
        action="store_true",
        help="go on in a new process, as after a row that broke the GPU",
    )
    command_line.add_argument("--again", action="store_true", help="also measure rows that the file already has")
    command_line.add_argument("--only", action="append", default=[], help="a row by its name; may be repeated")
    command_line.add_argument("--list", action="store_true", help="list the rows and exit")
    command_line.add_argument("--out", type=Path, help="JSON file (default benchmarks/results/finetune_<device>.json)")
    command_line.add_argument("--no-save", action="store_true", help="print only")
    command_line.add_argument(
        "--raw", action="store_true", help="print one row as one line of JSON; used by the parent process"
    )
    return command_line.parse_args()


def result_path(options: argparse.Namespace, bench: Bench) -> Path | None:
    if options.no_save or options.raw or (options.toy and options.out is None):
        return None
    name = "_".join(bench.info.name.lower().split()) if bench.torch_device.type == "cuda" else "cpu"
    return options.out or common.RESULTS / f"finetune_{name}.json"


def earlier_rows(path: Path | None, bench: Bench, lines: list[Line]) -> list[Row]:
    """Return the rows of these lines in an earlier result of the same device, packages and rates."""
    if path is None or not path.is_file():
        return []
    earlier, names = json.loads(path.read_text()), {line.name for line in lines}
    now = result_of(bench, [])
    same = ("device", "dtype", "about")
    if (
        any(earlier.get(key) != now[key] for key in same)
        or earlier["machine"]["packages"] != now["machine"]["packages"]
    ):
        return []
    return [row for row in earlier["rows"] if row["name"] in names]


def in_order(lines: list[Line], rows: list[Row]) -> tuple[list[Row], list[Line]]:
    """Return the rows that are done, and the lines to measure: first the new ones, last those that never ended."""
    done = {row["name"]: row for row in rows if "error" not in row}
    hung = {row["name"] for row in rows if row.get("error") == BEGUN}
    missing = [line for line in lines if line.name not in done]
    return list(done.values()), sorted(missing, key=lambda line: line.name in hung)


def is_broken(bench: Bench) -> bool:
    """Return whether the GPU refuses all further work of this process, as after an illegal memory access."""
    if bench.torch_device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(bench.torch_device)
    except RuntimeError:
        return True
    return False


def start_again(deadline: float) -> None:
    """Replace this process by a new one that goes on with the rows that are missing."""
    left = deadline - time.perf_counter()
    sys.stdout.flush()
    arguments = [argument for argument in sys.orig_argv[1:] if not argument.startswith("--again")]  # with Python's own
    os.execv(sys.executable, [sys.executable, *arguments, "--budget", str(left)])


def main() -> None:
    options = arguments()
    deadline = time.perf_counter() + options.budget
    if options.again_in_a_new_process:
        start_again(deadline)
    lines = GPU if options.device == "cuda" or options.toy else CPU
    if unknown := set(options.only) - {line.name for line in lines}:
        sys.exit(f"no row {sorted(unknown)[0]!r}; --list names them")
    lines = [line for line in lines if not options.only or line.name in options.only]
    if options.list:
        print("\n".join(line.name for line in lines))
        return
    bench = training.bench(options.device, toy=options.toy)
    if options.raw:
        print(json.dumps(measure_line(lines[0], bench, deadline)))
        return
    faulthandler.dump_traceback_later(options.budget + GRACE, exit=True)
    path = result_path(options, bench)
    rows, lines = in_order(lines, [] if options.again else earlier_rows(path, bench, lines))
    if rows:
        print(f"{path} has {len(rows)} rows, {len(lines)} are missing; --again measures all", flush=True)
    isolated = options.device == "cpu" and not options.toy
    run_line: Callable[..., Row] = partial(measure_in_process, options=options) if isolated else measure_line
    print(
        f"{bench.info.name}, {bench.info.dtype}: {bench.info.rate / 1e12:,.2f} TFLOP/s in matrix products",
        flush=True,
    )
    for line in lines:
        if time.perf_counter() > deadline - 5:
            rows.append({"name": line.name, "error": "not begun: the budget was spent"})
        else:
            write(path, result_of(bench, [*rows, {"name": line.name, "error": BEGUN}]))
            rows.append(run_line(line, bench=bench, deadline=deadline))
        print(f"{line.name}: {rows[-1].get('error') or describe(rows[-1])}", flush=True)
        write(path, result_of(bench, rows))
        if is_broken(bench):
            start_again(deadline)
        training.clean_up(bench)
    faulthandler.cancel_dump_traceback_later()
    print()
    print(format_result(result_of(bench, rows)))
    if path is not None:
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
