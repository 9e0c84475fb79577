"""Measure time and memory of curate's training steps on random weights, for the rows of `benchmarks/finetune.py`.

Training is not reimplemented here: a case is a configuration, which `curate.train` plans and steps as in a run. Imports
only torch, transformers, peft, numpy, click and rich.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks import material
from curate.display.figures import GIB
from curate.model import device, loader
from curate.model.attention import selection
from curate.model.device import DTYPES, Device
from curate.model.sizes import Shape, Work, flops
from curate.train import checkpoint, config
from curate.train.distributed import World
from curate.train.objectives import loss
from curate.train.optim import adamw
from curate.train.packing import PackedData
from curate.train.planning.inputs import Hardware, Load
from curate.train.planning.plan import Plan, Planner
from curate.train.run.events import Event, Reporter, Warned
from curate.train.trainer import Trainer, TrainerInputs

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """The device with its GEMM rate, and the size of a measurement.

    `toy` shrinks every shape and document, so that everything runs on a CPU.
    """

    torch_device: torch.device
    info: Device
    toy: bool
    tokens_per_step: int
    seconds: float  # minimum time of the measured steps

    @property
    def world(self) -> World:
        """One rank."""
        return World(0, 1, 0, self.torch_device)

    def hardware(self, gib: float = 0.0) -> Hardware:
        """Return the hardware for a plan, with memory limited to `gib`."""
        size = min(self.info.memory, int(gib * GIB)) if gib else self.info.memory
        return Hardware(self.info.kind, self.info.name, size, self.info.dtype, self.info.rate, 1, 1 << 50)


def bench(kind: str, *, toy: bool) -> Bench:
    """Measure the rate of a device's matrix products."""
    torch_device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    info = device.measure_device(torch_device)
    small = toy or kind != "cuda"
    return Bench(torch_device, info, toy, (1024 if toy else 4096) if small else 32_768, 0.2 if toy else 5.0)


@dataclass(frozen=True)
class Case:
    """One row: a shape trained by a method on documents (`1k`, `4k`, `real`), with changes to the configuration.

    `plain_loss` computes logits of every position, as models do; `gib` limits the memory to that of a smaller GPU.
    """

    name: str
    shape: str
    method: str
    documents: str
    changes: dict[str, dict[str, object]] = field(default_factory=dict)
    plain_loss: bool = False
    gib: float = 0.0


# ---- a case, from its configuration to steps


@dataclass
class PreparedCase:
    """A case that can take steps; `warnings` are those of the run."""

    case: Case
    shape: Shape
    data: PackedData
    plan: Plan
    trainer: Trainer
    warnings: list[str]

    def rows(self, step: int) -> list[int]:
        """Return the rows of a step."""
        count, total = self.plan.steps.rows, len(self.data.rows)
        return [(step * count + index) % total for index in range(count)]

    def take(self, step: int) -> tuple[float, Work]:
        """Take a step with the run's trainer; return its loss and its work."""
        rows = self.rows(step)
        return self.trainer.step(step + 1, rows, 1e-5).loss, material.work_of(self.data, rows)


def plan_case(
    bench: Bench, case: Case, shape: Shape, load: Load
) -> tuple[config.TrainConfig, Plan, selection.ChosenKernel]:
    """Return a case's configuration, plan and attention kernel."""
    rows_per_step = max(1, bench.tokens_per_step // load.row_tokens)
    changes: dict[str, dict[str, object]] = {
        "method": {"kind": case.method},
        "train": {"global_batch": max(1, round(rows_per_step * load.examples / load.rows))},
    }
    for section, values in case.changes.items():
        changes[section] = {**changes.get(section, {}), **values}
    settings = config.override(config.load(config.DEFAULT), changes)
    heads = selection.Heads(shape.heads, shape.kv_heads, shape.head_size)
    kernel = _kernel(bench.torch_device, DTYPES[bench.info.dtype], settings.model.attention, heads)
    plan = Planner(settings, shape, load, bench.hardware(case.gib), kernel.name).plan()
    plan.require_fit()
    return settings, plan, kernel


@cache
def _kernel(
    torch_device: torch.device, dtype: torch.dtype, wanted: str, heads: selection.Heads
) -> selection.ChosenKernel:
    """Choose a kernel once: trying one compiles it."""
    return selection.choose_kernel(torch_device, dtype, wanted, heads=heads)


def prepare(bench: Bench, case: Case, *, layers: int = 0) -> PreparedCase:
    """Plan a case and build its trainer; `layers` replaces the number of layers."""
    model_config = material.model_config(bench.toy, case.shape)
    if layers:
        model_config.num_hidden_layers = layers
    shape = loader.shape_from_config(model_config)
    data, load = material.packed_data(bench.toy, case.documents, shape.vocabulary)
    settings, plan, kernel = plan_case(bench, case, shape, load)
    warnings: list[str] = []
    dtype = DTYPES[bench.info.dtype]
    quantised = case.method == "qlora"
    model = (
        material.in_4_bits(model_config, dtype, bench.torch_device)
        if quantised
        else loader.random_model(model_config, dtype=dtype, device=bench.torch_device)
    )

    def collect_warning(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event.text)

    trainer = Trainer(
        model, TrainerInputs(settings, plan, kernel, data, bench.world, reporter=Reporter(collect_warning))
    )
    if case.plain_loss:
        trainer.module = PlainLoss(trainer.model)
    return PreparedCase(case, shape, data, plan, trainer, warnings)


class PlainLoss(loss.CausalLoss):
    """The loss of a plain model: logits of every position, in fp32."""

    def forward(self, batch: Any, chosen: Any, *, per_token: bool = False) -> torch.Tensor:
        hidden = self.body(batch, chosen)
        logits = selection.base_model(self.model).get_output_embeddings()(hidden).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")


# ---- figures


def now(torch_device: torch.device) -> float:
    """Return the time in seconds, after a GPU has finished its work; on a CPU the process's own CPU time."""
    if torch_device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(torch_device)
    return time.perf_counter()


@dataclass(frozen=True)
class Steps:
    """Timed steps: their number, seconds, work and losses."""

    count: int
    seconds: float
    work: Work
    losses: tuple[float, ...]


def timed(bench: Bench, take: Callable[[int], tuple[float, Work]], deadline: float) -> Steps:
    """Warm up with one step, then take at least two, for `bench.seconds` or until the deadline."""
    take(0)
    device.reset_peak(bench.torch_device)
    total, losses = Work(0, 0, 0), []
    begin = now(bench.torch_device)
    count, spent = 0, 0.0
    while count < 2 or (spent < bench.seconds and time.perf_counter() + spent / count < deadline):
        value, done = take(count + 1)
        total, count = total + done, count + 1
        losses.append(value)
        spent = now(bench.torch_device) - begin
    return Steps(count, spent, total, tuple(losses))


def figures(bench: Bench, steps: Steps, shape: Shape, *, full: bool, trained: int) -> Row:
    """Return tokens per second, strict MFU (with `curate.model.sizes.flops`) and peak memory."""
    operations = flops(shape, steps.work, full=full, adapters=0 if full else trained)
    cuda = bench.torch_device.type == "cuda"
    return {
        "tokens_per_s": round(steps.work.tokens / steps.seconds, 1),
        **({"mfu": round(operations / steps.seconds / bench.info.rate, 4)} if cuda else {}),
        "peak_gib": round(device.peak_gib(bench.torch_device), 3),
        "step_seconds": round(steps.seconds / steps.count, 3),
        "tokens_a_step": round(steps.work.tokens / steps.count),
        "steps": steps.count,
        "first_loss": round(steps.losses[0], 4),  # of the second step
        "last_loss": round(steps.losses[-1], 4),
    }


def measure(bench: Bench, case: Case, deadline: float) -> Row:
    """Return a case's figures, with the choices and predictions of its plan."""
    with memory_limit(bench, case.gib):
        prepared = prepare(bench, case)
        steps = timed(bench, prepared.take, deadline)
        case_figures = figures(
            bench, steps, prepared.shape, full=case.method == "full", trained=prepared.trainer.trainable.count
        )
        trainer = prepared.trainer
        return {
            **case_figures,
            "planned_peak_gib": round(prepared.plan.peak / GIB, 3),
            "micro_batch": trainer.micro_batch,
            "row_tokens": prepared.data.row_tokens,
            "grad_accum": prepared.plan.grad_accum,
            "checkpointed_layers": trainer.checkpointed,
            "optimizer": prepared.plan.form,
            "compiled": prepared.plan.compiled,
            "attention": prepared.plan.attention,
            "trained": prepared.trainer.trainable.count,
            "said": prepared.warnings,
        }


@contextmanager
def memory_limit(bench: Bench, gib: float) -> Iterator[None]:
    """Limit the process to a part of the GPU's memory, like that of a smaller GPU."""
    if not gib or bench.torch_device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(bench.torch_device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total), bench.torch_device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.torch_device)


def clean_up(bench: Bench) -> None:
    """Release the memory of a row, and compiled code, which would count as recompilations of the next."""
    gc.collect()
    torch._dynamo.reset()
    if bench.torch_device.type == "cuda":
        torch.cuda.empty_cache()


def parts(bench: Bench, case: Case) -> Row:
    """Return the milliseconds of each part of a step with one micro-batch, synchronized after each part."""
    prepared = prepare(bench, case)
    trainer = prepared.trainer
    module: Any = trainer.module
    row_indices = prepared.rows(0)[: trainer.micro_batch]
    best: dict[str, float] = {}
    for _ in range(3):
        clock = _Clock(bench.torch_device, best)
        batch = trainer.data.batch(row_indices)
        clock.lap("rows to tensors")
        batch = batch.to(bench.torch_device)
        clock.lap("to the device")
        selection.mask_kwargs(trainer.attention, batch)
        clock.lap("attention masks")
        hidden = module.body(batch, trainer.attention)
        clock.lap("forward, with masks")
        head = selection.base_model(trainer.model).get_output_embeddings()
        total = loss.supervised_loss(hidden, head.weight, batch.targets, count=batch.supervised)
        clock.lap("loss, with its gradients")
        (total / batch.supervised).backward()
        clock.lap("backward")
        adamw.clip(trainer.parameters.values(), 1.0)
        clock.lap("clip")
        trainer.optimizer.step()
        clock.lap("optimizer")
        trainer.optimizer.zero_grad()
    return {
        "milliseconds": {name: round(1000 * value, 2) for name, value in best.items()},
        "tokens": batch.input_ids.numel(),
    }


class _Clock:
    """Times the parts of a step, and keeps the least time of each over several rounds."""

    def __init__(self, torch_device: torch.device, best: dict[str, float]) -> None:
        self.torch_device, self.best = torch_device, best
        self.last = now(torch_device)

    def lap(self, name: str) -> None:
        seconds = now(self.torch_device) - self.last
        self.best[name] = min(self.best.get(name, seconds), seconds)
        self.last = now(self.torch_device)


def resume(bench: Bench, case: Case) -> Row:
    """Return whether a run resumed from its checkpoint has the same losses as an uninterrupted run."""
    straight = prepare(bench, case, layers=2)
    losses = [straight.take(step)[0] for step in range(4)]
    with TemporaryDirectory() as folder:
        first = prepare(bench, case, layers=2)
        resumed = [first.take(step)[0] for step in range(2)]
        trainer = first.trainer
        checkpoint.save(Path(folder), trainer.state(2, {}))
        loaded = checkpoint.load_latest(Path(folder))
        if loaded is None:
            raise RuntimeError("the checkpoint was not found")
        continued = prepare(bench, case, layers=2)
        begin = continued.trainer.restore(loaded)
        resumed += [continued.take(step)[0] for step in range(begin, 4)]
    worst = max(
        abs(loss_value - resumed_loss) / abs(loss_value)
        for loss_value, resumed_loss in zip(losses, resumed, strict=True)
    )
    return {"losses": losses, "resumed_losses": resumed, "bit_for_bit": losses == resumed, "largest_difference": worst}
