"""The plan before a run: rows, steps, memory by part, time and disk, what was chosen and why; needs no weights."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from curate.display.figures import GIB, gib, number, plural
from curate.errors import PlanError
from curate.model.methods import MethodSettings
from curate.model.sizes import Shape, Work, flops
from curate.train import memory
from curate.train.config import TrainConfig
from curate.train.memory import CONTEXT, DTYPE_BYTES, FORMS, FRAGMENTED, Form, Setup

ENOUGH_TOKENS = {"cuda": 16_384, "cpu": 2_048}  # at once; more are no faster
EFFICIENCY = {("cuda", True): 0.50, ("cuda", False): 0.42, ("cpu", True): 0.30, ("cpu", False): 0.30}
FULL = "full"


@dataclass(frozen=True)
class Hardware:
    """What the plan reckons with: one rank's device, how many ranks, and the free bytes where the run is written.

    `rate`: floating-point operations a second that the device's matrix products were measured at.
    """

    kind: str
    name: str
    memory: int
    dtype: str
    rate: float
    ranks: int
    disk: int


@dataclass(frozen=True)
class Load:
    """The data as it will be fed: `work` of one epoch, `held_out` of one evaluation, `rows` packed to `row_tokens`."""

    conversations: int
    rows: int
    row_tokens: int
    work: Work
    held_out: Work
    utilisation: float = 1.0
    padded_utilisation: float = 1.0
    most_supervised: int = 0  # tokens of one row


@dataclass(frozen=True)
class Steps:
    """The steps of a run. A step takes `rows` rows, of the epochs' rows laid end to end; the last one what is left."""

    count: int
    rows: int
    conversations: float
    total_rows: int
    epochs: float


@dataclass(frozen=True)
class Plan:
    """What a run will do and need. `parts` are the bytes of one rank at its highest moment."""

    steps: Steps
    load: Load
    hardware: Hardware
    parameters: int
    trained: int
    micro_batch: int
    grad_accum: int
    checkpointed: int  # layers whose activations are made again in the backward pass
    form: Form
    compiled: bool
    attention: str
    parts: dict[str, int]
    flops: float
    seconds: float
    checkpoint: int
    disk: int
    reasons: tuple[str, ...]
    suggestions: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes of tensors at the highest moment."""
        return sum(self.parts.values())

    @property
    def needs(self) -> int:
        """Bytes of the device's memory: the tensors, what an allocator holds beyond them, and torch itself."""
        return int(self.peak * (1 + FRAGMENTED)) + CONTEXT.get(self.hardware.kind, CONTEXT["cpu"])

    @property
    def fits(self) -> bool:
        """Whether the device has the memory and the disk the room."""
        return self.fits_memory and self.disk <= self.hardware.disk

    @property
    def fits_memory(self) -> bool:
        """Whether the device has the memory."""
        return self.needs <= self.hardware.memory

    def to_dict(self) -> dict[str, Any]:
        """Return what `plan.json` says."""
        steps, load, hardware = self.steps, self.load, self.hardware
        return {
            "model_parameters": self.parameters,
            "trained_parameters": self.trained,
            "conversations": load.conversations,
            "tokens": load.work.tokens,
            "supervised": load.work.supervised,
            "rows": load.rows,
            "row_tokens": load.row_tokens,
            "utilisation": round(load.utilisation, 5),
            "padded_utilisation": round(load.padded_utilisation, 5),
            "steps": steps.count,
            "epochs": steps.epochs,
            "rows_a_step": steps.rows,
            "conversations_a_step": round(steps.conversations, 2),
            "device": hardware.name,
            "ranks": hardware.ranks,
            "dtype": hardware.dtype,
            "gemm_tflops": round(hardware.rate / 1e12, 3),
            "micro_batch": self.micro_batch,
            "grad_accum": self.grad_accum,
            "checkpointed_layers": self.checkpointed,
            "optimizer_form": self.form,
            "compiled": self.compiled,
            "attention": self.attention,
            "memory_gib": {name: round(size / GIB, 3) for name, size in self.parts.items()},
            "peak_gib": round(self.peak / GIB, 3),
            "needs_gib": round(self.needs / GIB, 3),
            "available_gib": round(hardware.memory / GIB, 3),
            "flops": self.flops,
            "seconds": round(self.seconds),
            "checkpoint_gib": round(self.checkpoint / GIB, 3),
            "disk_gib": round(self.disk / GIB, 3),
            "disk_free_gib": round(hardware.disk / GIB, 3),
            "reasons": list(self.reasons),
            "suggestions": list(self.suggestions),
        }


# ---- steps


def steps(config: TrainConfig, load: Load) -> Steps:
    """Return how many steps of how many rows; a global batch counts conversations, as the published recipes do."""
    per_row = load.conversations / load.rows
    rows = max(1, round(config.train.global_batch / per_row))
    if config.train.max_steps:
        count = config.train.max_steps
        return Steps(count, rows, rows * per_row, count * rows, round(count * rows / load.rows, 3))
    total = max(1, round(load.rows * config.train.epochs))
    return Steps(math.ceil(total / rows), rows, rows * per_row, total, config.train.epochs)


# ---- the plan


def make(
    config: TrainConfig, shape: Shape, load: Load, hardware: Hardware, *, attention: str, trained: int | None = None
) -> Plan:
    """Choose micro-batch, checkpointing and optimizer form for what the device has, and reckon what they cost.

    `trained` is the number of trained parameters where it is known, else it is reckoned. A plan that does not fit is
    returned as well, with what would fit instead.
    """
    planned = _best(config, shape, load, hardware, attention, trained)
    if planned.fits_memory:
        return planned
    return replace(planned, suggestions=tuple(_suggestions(config, shape, load, hardware, attention)))


def check(planned: Plan) -> None:
    """Raise PlanError where the plan does not fit the device or the disk: one line with what would."""
    hardware = planned.hardware
    if not planned.fits_memory:
        largest = sorted(planned.parts.items(), key=lambda part: -part[1])[:3]
        named = ", ".join(f"{name} {gib(size)}" for name, size in largest)
        would = "; ".join(planned.suggestions) or "nothing that is known here makes it fit; take a smaller model"
        raise PlanError(
            f"this run needs {gib(planned.needs)} GiB, {hardware.name} has {gib(hardware.memory)} "
            f"({named}); what would fit: {would}"
        )
    if planned.disk > hardware.disk:
        raise PlanError(
            f"checkpoints and the model take {gib(planned.disk)} GiB of disk, {gib(hardware.disk)} are "
            f"free (one checkpoint with all states is {gib(planned.checkpoint)}); give another --out, "
            "or an adapter's method, which saves little"
        )


def _best(
    config: TrainConfig, shape: Shape, load: Load, hardware: Hardware, attention: str, trained: int | None
) -> Plan:
    """Return the first of the ways to do it that fits, from the most exact and fastest on; else the smallest."""
    smallest: Plan | None = None
    sizes = list(_micro_batches(config, steps(config, load), load, hardware))
    for form, checkpointing in _ways(config, hardware.dtype):
        fitting = []
        for micro_batch in sizes:
            make = partial(_plan, config, shape, load, hardware, attention, trained, form, micro_batch=micro_batch)
            planned = make(checkpointed=shape.layers if checkpointing else 0)
            smallest = min((smallest or planned, planned), key=lambda one: one.needs)
            if planned.fits_memory:
                some = checkpointing and config.train.checkpointing == "auto"
                fitting.append(_fewest(make, shape.layers) if some else planned)
        if fitting:
            return min(fitting, key=lambda one: _slowness(one, shape))
    if smallest is None:
        raise PlanError("there is no way to run this")  # _ways and _micro_batches are never empty
    return smallest


def _fewest(make: Callable[..., Plan], layers: int) -> Plan:
    """Return the plan with the fewest checkpointed layers that fits, knowing that it does with all of them."""
    count = bisect_left(range(1, layers), True, key=lambda some: make(checkpointed=some).fits_memory) + 1
    return make(checkpointed=count)


def _slowness(planned: Plan, shape: Shape) -> float:
    """Return what a token costs against one of a large micro-batch with all activations kept.

    A checkpointed layer is run forward once more: of 3 passes of a full fine-tune, of 2 of an adapter's, whose base
    has no gradients. Small micro-batches leave a device waiting: what for some 256 tokens more would take, a guess.
    """
    passes = 3 if planned.trained == planned.parameters else 2
    again = planned.checkpointed / (shape.layers * passes)
    return (1 + again) * (1 + 256 / (planned.micro_batch * planned.load.row_tokens))


def _ways(config: TrainConfig, dtype: str) -> Iterator[tuple[Form, bool]]:
    """Yield optimizer forms and whether activations are checkpointed: exactness is given up after speed."""
    wanted, asked = config.train.checkpointing, config.optimizer.form
    forms: Sequence[Form] = _forms(dtype) if asked == "auto" else (asked,)
    if config.method.kind != "full" and asked == "auto":
        forms = ("master",)  # an adapter's states are small
    for form in forms:
        for checkpointing in (False, True):
            if wanted == "auto" or checkpointing == (wanted == "full"):
                yield form, checkpointing


def _forms(dtype: str) -> Sequence[Form]:
    return FORMS if dtype != "fp16" else FORMS[:2]  # fp16 has no room for moments


def _micro_batches(config: TrainConfig, count: Steps, load: Load, hardware: Hardware) -> Iterator[int]:
    """Yield rows at once from the most that are any faster down to one; rows of a step are spread evenly."""
    mine = math.ceil(count.rows / hardware.ranks)
    if config.train.micro_batch:
        yield min(config.train.micro_batch, mine)
        return
    enough = ENOUGH_TOKENS.get(hardware.kind, ENOUGH_TOKENS["cpu"])
    most = max(1, min(mine, enough // load.row_tokens))
    even = (math.ceil(mine / math.ceil(mine / size)) for size in range(most, 0, -1))
    yield from dict.fromkeys(even)


def _plan(
    config: TrainConfig,
    shape: Shape,
    load: Load,
    hardware: Hardware,
    attention: str,
    trained: int | None,
    form: Form,
    *,
    checkpointed: int,
    micro_batch: int,
) -> Plan:
    count = steps(config, load)
    accumulates = math.ceil(count.rows / (micro_batch * hardware.ranks))
    auto = hardware.kind == "cuda" and config.method.kind != "qlora"  # whose matrices are bitsandbytes' own calls
    compiled = auto if config.train.compile == "auto" else config.train.compile == "on"
    setup = Setup(
        method=config.method,
        dtype=hardware.dtype,
        form=form,
        checkpointed=checkpointed,
        compiled=compiled,
        attention=attention,
        micro_batch=micro_batch,
        row_tokens=load.row_tokens,
        supervised=micro_batch * (load.most_supervised or load.row_tokens),
        accumulates=accumulates > 1,
        ranks=hardware.ranks,
    )
    number = memory.trainable(config.method, shape) if trained is None else trained
    operations, seconds = _time(config, shape, load, hardware, setup, number)
    saved, disk = _disk(config, shape, setup, number)
    return Plan(
        steps=count,
        load=load,
        hardware=hardware,
        parameters=shape.parameters,
        trained=number,
        micro_batch=micro_batch,
        grad_accum=accumulates,
        checkpointed=checkpointed,
        form=form,
        compiled=compiled,
        attention=attention,
        parts=memory.parts(setup, shape, number),
        flops=operations,
        seconds=seconds,
        checkpoint=saved,
        disk=disk,
        reasons=tuple(_reasons(config, load, count, setup, shape.layers)),
    )


def _time(
    config: TrainConfig, shape: Shape, load: Load, hardware: Hardware, setup: Setup, trained: int
) -> tuple[float, float]:
    """Return the run's floating-point operations, strictly counted, and the seconds they are guessed to take."""
    full = setup.full
    epochs = steps(config, load).total_rows / load.rows
    training = flops(shape, load.work, full=full, adapters=0 if full else trained) * epochs
    forward = flops(shape, load.work, full=True) / 3 * epochs
    looks = max(1.0, epochs) + 1
    measuring = looks * flops(shape, load.held_out, full=True) / 3
    rate = hardware.rate * hardware.ranks * EFFICIENCY.get((hardware.kind, full), 0.3)
    return training, (training + forward * setup.checkpointed / shape.layers + measuring) / rate


def _disk(config: TrainConfig, shape: Shape, setup: Setup, trained: int) -> tuple[int, int]:
    """Return the bytes of one checkpoint with all states, and of all that is on the disk at once at the worst.

    That is: those that are kept, one more that is being written, and the model that comes out.
    """
    weights = trained * setup.item
    whole = int(weights + trained * memory.state_bytes(setup.form, setup.item))
    kept = config.checkpoint
    full_states = min(kept.keep, kept.full_states)
    out = shape.parameters * DTYPE_BYTES[setup.dtype] if setup.full else weights
    return whole, int(whole * (full_states + 1) + weights * (kept.keep - full_states) + out)


def _reasons(config: TrainConfig, load: Load, count: Steps, setup: Setup, layers: int) -> Iterator[str]:
    asked = config.train.global_batch
    rows = f"{number(count.rows)} {plural(count.rows, 'row')} of {number(load.row_tokens)} tokens"
    yield f"{number(round(count.conversations))} conversations a step = {rows}"
    if not 0.8 < count.conversations / asked < 1.25:
        yield (
            f"{asked} conversations a step were asked for; a row holds {number(load.conversations / load.rows)} on "
            "average, and a step is whole rows (smaller ones: data.row_tokens)"
        )
    how = "as asked" if config.train.micro_batch else "the most that fits, or that is any faster"
    yield f"{setup.micro_batch} {plural(setup.micro_batch, 'row')} at once: {how}"
    if config.train.checkpointing != "auto":
        yield f"activations checkpointed: {'yes' if setup.checkpointed else 'no'}, as asked"
    elif setup.checkpointed:
        which = (
            "activations" if setup.checkpointed == layers else f"activations of {setup.checkpointed} of {layers} layers"
        )
        yield f"{which} are made again in the backward pass: kept, they would not fit"
    else:
        yield "activations are kept: they fit"
    if config.optimizer.form != "auto":
        yield f"optimizer {setup.form}: as asked"
    elif setup.form != "master":
        yield f"optimizer {setup.form}: more exact states would not fit"


# ---- what would fit


def _suggestions(config: TrainConfig, shape: Shape, load: Load, hardware: Hardware, attention: str) -> Iterator[str]:
    """Yield what would make the run fit, the nearest to what was asked first."""
    for words, changed, other in _changes(config, load, hardware.dtype):
        planned = _best(changed, shape, other, hardware, attention, None)
        if planned.fits_memory:
            yield f"{words} ({gib(planned.needs)} GiB)"
    for ranks in (2, 4, 8) if hardware.ranks == 1 and config.method.kind == FULL else ():
        if _best(config, shape, load, replace(hardware, ranks=ranks), attention, None).fits_memory:
            yield f"{ranks} such devices with torchrun"
            return


def _changes(config: TrainConfig, load: Load, dtype: str) -> Iterator[tuple[str, TrainConfig, Load]]:
    train, method = config.train, config.method
    free = replace(config, train=replace(train, micro_batch=0, checkpointing="auto"))
    if train.micro_batch or train.checkpointing == "none":
        yield "micro_batch 0 and checkpointing auto", free, load
    if method.kind == FULL and config.optimizer.form == "master":
        for form in _forms(dtype)[1:]:
            yield f"optimizer.form {form}", replace(free, optimizer=replace(config.optimizer, form=form)), load
    if load.row_tokens > 512:
        half = replace(load, row_tokens=load.row_tokens // 2, most_supervised=load.most_supervised // 2)
        yield f"--max-tokens {half.row_tokens}", free, half
    for kind in ("lora", "qlora"):
        if method.kind in (FULL, "lora", "dora") and kind != method.kind:
            yield f"--method {kind}", replace(free, method=MethodSettings(kind=kind)), load
