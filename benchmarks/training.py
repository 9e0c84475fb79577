"""Steps of curate's own on random weights, timed and weighed: what `benchmarks/finetune.py` makes its rows of.

Training is not reimplemented here: a case is a configuration, planned and stepped by `curate.train`
as a run does it. Imports torch, transformers, peft, numpy, click and rich alone.
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
from curate.train import checkpoint, config, loss
from curate.train.distributed import World
from curate.train.optim import adamw
from curate.train.packing import PackedData
from curate.train.plan import Hardware, Load, Plan, Planner
from curate.train.run.events import Event, Reporter, Warned
from curate.train.trainer import Trainer, TrainerInputs

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where it is measured: the device with its GEMM rate, and how much a figure may take.

    `toy`: every shape and document a fraction of its size, to run all of it on a CPU.
    """

    place: torch.device
    found: Device
    toy: bool
    tokens_a_step: int
    seconds: float  # that steps are taken for, at least

    @property
    def world(self) -> World:
        """One rank."""
        return World(0, 1, 0, self.place)

    def hardware(self, gib: float = 0.0) -> Hardware:
        """Return what a plan reckons with, memory held to `gib`."""
        size = min(self.found.memory, int(gib * GIB)) if gib else self.found.memory
        return Hardware(self.found.kind, self.found.name, size, self.found.dtype, self.found.rate, 1, 1 << 50)


def bench(kind: str, *, toy: bool) -> Bench:
    """Measure a device's matrix products."""
    place = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    found = device.measure_device(place)
    small = toy or kind != "cuda"
    return Bench(place, found, toy, (1024 if toy else 4096) if small else 32_768, 0.2 if toy else 5.0)


@dataclass(frozen=True)
class Case:
    """One row: a shape trained by a method on documents (`1k`, `4k`, `real`), with changes to the configuration.

    `plain_loss` makes logits of every position, as models do; `gib` holds the process to a smaller card's memory.
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
class Ready:
    """A case that can take steps; `said` are the run's own warnings."""

    case: Case
    shape: Shape
    data: PackedData
    planned: Plan
    trainer: Trainer
    said: list[str]

    def rows(self, step: int) -> list[int]:
        """Return the rows of a step."""
        count, total = self.planned.steps.rows, len(self.data.rows)
        return [(step * count + place) % total for place in range(count)]

    def take(self, step: int) -> tuple[float, Work]:
        """Take a step by the run's own trainer; return its loss and its work."""
        rows = self.rows(step)
        return self.trainer.step(step + 1, rows, 1e-5).loss, material.work_of(self.data, rows)


def planned(
    bench: Bench, case: Case, shape: Shape, load: Load
) -> tuple[config.TrainConfig, Plan, selection.ChosenKernel]:
    """Return a case's configuration and plan, and its attention."""
    a_step = max(1, bench.tokens_a_step // load.row_tokens)
    wanted: dict[str, dict[str, object]] = {
        "method": {"kind": case.method},
        "train": {"global_batch": max(1, round(a_step * load.conversations / load.rows))},
    }
    for section, values in case.changes.items():
        wanted[section] = {**wanted.get(section, {}), **values}
    settled = config.override(config.load(config.DEFAULT), wanted)
    heads = selection.Heads(shape.heads, shape.kv_heads, shape.head_size)
    chosen = _kernel(bench.place, DTYPES[bench.found.dtype], settled.model.attention, heads)
    made = Planner(settled, shape, load, bench.hardware(case.gib), chosen.name).plan()
    made.require_fit()
    return settled, made, chosen


@cache
def _kernel(place: torch.device, dtype: torch.dtype, wanted: str, heads: selection.Heads) -> selection.ChosenKernel:
    """Choose a kernel once: trying one compiles it."""
    return selection.choose_kernel(place, dtype, wanted, heads=heads)


def ready(bench: Bench, case: Case, *, layers: int = 0) -> Ready:
    """Plan a case and make it ready to step; `layers`: so many alone."""
    described = material.model_config(bench.toy, case.shape)
    if layers:
        described.num_hidden_layers = layers
    shape = loader.shape_from_config(described)
    data, load = material.packed_data(bench.toy, case.documents, shape.vocabulary)
    settled, made, chosen = planned(bench, case, shape, load)
    said: list[str] = []
    dtype = DTYPES[bench.found.dtype]
    quantised = case.method == "qlora"
    model = (
        material.in_4_bits(described, dtype, bench.place)
        if quantised
        else loader.random_model(described, dtype=dtype, device=bench.place)
    )

    def hear(event: Event) -> None:
        if isinstance(event, Warned):
            said.append(event.text)

    trainer = Trainer(model, TrainerInputs(settled, made, chosen, data, bench.world, reporter=Reporter(hear)))
    if case.plain_loss:
        trainer.module = PlainLoss(trainer.model)
    return Ready(case, shape, data, made, trainer, said)


class PlainLoss(loss.CausalLoss):
    """The loss as models have it: logits of every position, in fp32."""

    def forward(self, batch: Any, chosen: Any, *, per_token: bool = False) -> torch.Tensor:
        hidden = self.body(batch, chosen)
        logits = selection.base_model(self.model).get_output_embeddings()(hidden).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")


# ---- figures


def now(place: torch.device) -> float:
    """Return the seconds so far, all that was asked of a GPU done; on a CPU, which may be shared, the process's own."""
    if place.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(place)
    return time.perf_counter()


@dataclass(frozen=True)
class Steps:
    """Steps that were timed: seconds, and the work in them."""

    count: int
    seconds: float
    work: Work
    losses: tuple[float, ...]


def timed(bench: Bench, take: Callable[[int], tuple[float, Work]], deadline: float) -> Steps:
    """Warm up by one step, then take at least two, for as long as the bench says."""
    take(0)
    device.reset_peak(bench.place)
    total, losses = Work(0, 0, 0), []
    begin = now(bench.place)
    count, spent = 0, 0.0
    while count < 2 or (spent < bench.seconds and time.perf_counter() + spent / count < deadline):
        value, done = take(count + 1)
        total, count = total + done, count + 1
        losses.append(value)
        spent = now(bench.place) - begin
    return Steps(count, spent, total, tuple(losses))


def figures(bench: Bench, steps: Steps, shape: Shape, *, full: bool, trained: int) -> Row:
    """Return useful tokens a second, strict MFU (facts of `curate.model.sizes.flops`) and the peak of memory."""
    operations = flops(shape, steps.work, full=full, adapters=0 if full else trained)
    cuda = bench.place.type == "cuda"
    return {
        "tokens_per_s": round(steps.work.tokens / steps.seconds, 1),
        **({"mfu": round(operations / steps.seconds / bench.found.rate, 4)} if cuda else {}),
        "peak_gib": round(device.peak_gib(bench.place), 3),
        "step_seconds": round(steps.seconds / steps.count, 3),
        "tokens_a_step": round(steps.work.tokens / steps.count),
        "steps": steps.count,
        "first_loss": round(steps.losses[0], 4),  # of the second step: how many come after it is up to the clock
        "last_loss": round(steps.losses[-1], 4),
    }


def measure(bench: Bench, case: Case, deadline: float) -> Row:
    """Return a case's figures, and what the plan chose for it and reckoned."""
    with held_to(bench, case.gib):
        made = ready(bench, case)
        steps = timed(bench, made.take, deadline)
        found = figures(bench, steps, made.shape, full=case.method == "full", trained=made.trainer.trainable.count)
        trainer = made.trainer
        return {
            **found,
            "planned_peak_gib": round(made.planned.peak / GIB, 3),
            "micro_batch": trainer.micro_batch,
            "row_tokens": made.data.row_tokens,
            "grad_accum": made.planned.grad_accum,
            "checkpointed_layers": trainer.checkpointed,
            "optimizer": made.planned.form,
            "compiled": made.planned.compiled,
            "attention": made.planned.attention,
            "trained": made.trainer.trainable.count,
            "said": made.said,
        }


@contextmanager
def held_to(bench: Bench, gib: float) -> Iterator[None]:
    """Hold the process to a part of the card's memory for a while, as if it were a smaller one."""
    if not gib or bench.place.type != "cuda":
        yield
        return
    whole = torch.cuda.get_device_properties(bench.place).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / whole), bench.place)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.place)


def forget(bench: Bench) -> None:
    """Let go of what a row left: memory, and compiled code that would count as its recompilations."""
    gc.collect()
    torch._dynamo.reset()
    if bench.place.type == "cuda":
        torch.cuda.empty_cache()


def parts(bench: Bench, case: Case) -> Row:
    """Return the milliseconds of a step's parts for one micro-batch, each waited for, and of the optimizer's step."""
    made = ready(bench, case)
    trainer = made.trainer
    module: Any = trainer.module
    take = made.rows(0)[: trainer.micro_batch]
    best: dict[str, float] = {}
    for _ in range(3):
        clock = _Clock(bench.place, best)
        batch = trainer.data.batch(take)
        clock.lap("rows to tensors")
        batch = batch.to(bench.place)
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
    """Laps of the quickest of several rounds."""

    def __init__(self, place: torch.device, best: dict[str, float]) -> None:
        self.place, self.best = place, best
        self.last = now(place)

    def lap(self, name: str) -> None:
        seconds = now(self.place) - self.last
        self.best[name] = min(self.best.get(name, seconds), seconds)
        self.last = now(self.place)


def resume(bench: Bench, case: Case) -> Row:
    """Return whether a run that goes on from its checkpoint has the losses of one that was never stopped."""
    straight = ready(bench, case, layers=2)
    wanted = [straight.take(step)[0] for step in range(4)]
    with TemporaryDirectory() as folder:
        first = ready(bench, case, layers=2)
        found = [first.take(step)[0] for step in range(2)]
        trainer = first.trainer
        checkpoint.save(Path(folder), trainer.state(2, {}))
        loaded = checkpoint.load_latest(Path(folder))
        if loaded is None:
            raise RuntimeError("the checkpoint is not there")
        again = ready(bench, case, layers=2)
        begin = again.trainer.restore(loaded)
        found += [again.take(step)[0] for step in range(begin, 4)]
    worst = max(abs(one - other) / abs(one) for one, other in zip(wanted, found, strict=True))
    return {"losses": wanted, "resumed_losses": found, "bit_for_bit": wanted == found, "largest_difference": worst}
