"""The plan before a run: steps, memory by part, time and disk, with the reason for each choice. Needs no weights."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from curate.display.figures import GIB, gib, number, plural, size
from curate.errors import PlanError
from curate.model.choices import OPTIMIZER_FORMS, MethodSettings, OptimizerForm
from curate.model.sizes import Shape
from curate.train.config import TrainConfig
from curate.train.planning import memory, speed
from curate.train.planning.inputs import Hardware, Load, Steps
from curate.train.planning.memory import CONTEXT, FRAGMENTATION, Setup

ENOUGH_TOKENS = {"cuda": 16_384, "cpu": 2_048}  # of a micro-batch; with more, a token takes as long
OVERHEAD_TOKENS = 256  # a device idles at the start of a micro-batch for about as long as these take; an assumption
SUGGESTED_RANKS = (2, 4, 8)  # numbers of devices to suggest if one is too small


@dataclass(frozen=True)
class Plan:
    """What a run will do and need."""

    steps: Steps
    load: Load
    hardware: Hardware
    parameters: int
    trained: int  # parameters
    micro_batch: int  # packed rows in one forward pass on one device
    grad_accum: int  # micro-batches of a step on one device
    checkpointed: int  # layers whose activations are computed again in the backward pass
    form: OptimizerForm
    compiled: bool
    attention: str
    parts: dict[str, int]  # bytes of one rank at the step's peak
    flops: float  # of the training, strictly counted
    seconds: float | None  # of the whole run, estimated; None where the hardware's rate is unknown
    checkpoint: int  # bytes of one with all states
    disk: int  # bytes on disk at once, at most
    reasons: tuple[str, ...]
    suggestions: tuple[str, ...] = ()  # what would fit, if this does not

    @property
    def peak(self) -> int:
        """Bytes of tensors at the step's peak."""
        return sum(self.parts.values())

    @property
    def needs(self) -> int:
        """Bytes of device memory: the tensors, the allocator's fragmentation, and torch itself."""
        return int(self.peak * (1 + FRAGMENTATION)) + CONTEXT.get(self.hardware.kind, CONTEXT["cpu"])

    @property
    def memory_parts(self) -> dict[str, int]:
        """The bytes that `needs` consists of, by part: their sum is `needs`."""
        context = CONTEXT.get(self.hardware.kind, CONTEXT["cpu"])
        return {**self.parts, "fragmentation": self.needs - self.peak - context, "torch and its kernels": context}

    @property
    def efficiency(self) -> float:
        """The share of the hardware's matrix rate that the time is estimated with: an assumed MFU."""
        return speed.efficiency(self.hardware.kind, full=self.trained == self.parameters)

    @property
    def fits(self) -> bool:
        """Whether the run fits the device's memory and the disk."""
        return self.fits_memory and self.fits_disk

    @property
    def fits_disk(self) -> bool:
        """Whether the run fits the disk; true where that is unknown."""
        return self.hardware.disk is None or self.disk <= self.hardware.disk

    @property
    def fits_memory(self) -> bool:
        """Whether the run fits the device's memory."""
        return self.needs <= self.hardware.memory

    def require_fit(self) -> None:
        """Raise PlanError if the run does not fit the memory or the disk: one line, with what would fit."""
        if not self.fits_memory:
            largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
            named = ", ".join(f"{name} {gib(part)}" for name, part in largest)
            would = "; ".join(self.suggestions) or "no change of settings; use a smaller model"
            raise PlanError(
                f"this run needs {gib(self.needs)} GiB (of which {named}), and {gib(self.hardware.memory)} GiB are "
                f"free ({self.hardware.name}); what would fit: {would}"
            )
        if not self.fits_disk:
            raise PlanError(
                f"checkpoints and the model take {size(self.disk)} of disk, and {size(self.hardware.disk or 0)} are "
                f"free (one checkpoint with all states is {size(self.checkpoint)}); give another --out"
                + (", or --method lora, whose checkpoints are small" if self.trained == self.parameters else "")
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of `plan.json`."""
        steps, load, hardware = self.steps, self.load, self.hardware
        return {  # `conversations` in a key counts examples, each of which is one piece
            "model_parameters": self.parameters,
            "trained_parameters": self.trained,
            "conversations": load.examples,
            "tokens": load.work.tokens,
            "supervised": load.work.supervised,
            "rows": load.rows,
            "row_tokens": load.row_tokens,
            "utilisation": round(load.utilisation, 5),
            "padded_utilisation": round(load.padded_utilisation, 5),
            "steps": steps.count,
            "epochs": steps.epochs,
            "rows_a_step": steps.rows,
            "conversations_a_step": round(steps.examples, 2),
            "device": hardware.name,
            "ranks": hardware.ranks,
            "dtype": hardware.dtype,
            "tflops": None if hardware.rate is None else round(hardware.rate / 1e12, 3),
            "tflops_source": "measured" if hardware.card is None else hardware.card.source,
            "assumed_mfu": self.efficiency,
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
            "seconds": None if self.seconds is None else round(self.seconds),
            "checkpoint_gib": round(self.checkpoint / GIB, 3),
            "disk_gib": round(self.disk / GIB, 3),
            "disk_free_gib": None if hardware.disk is None else round(hardware.disk / GIB, 3),
            "reasons": list(self.reasons),
            "suggestions": list(self.suggestions),
        }


# ---- planning


@dataclass(frozen=True)
class Planner:
    """Chooses micro-batch, activation checkpointing and optimizer form for the hardware, and estimates their cost."""

    config: TrainConfig
    shape: Shape
    load: Load
    hardware: Hardware
    attention: str
    trained: int | None = None  # parameters, where they are known; otherwise estimated from the shape

    def plan(self) -> Plan:
        """Return the best plan; if none fits the memory, the smallest, with suggestions of what would fit."""
        best = self.best()
        return best if best.fits_memory else replace(best, suggestions=tuple(self.suggestions()))

    @cached_property
    def steps(self) -> Steps:
        """The steps of the run; `global_batch` counts examples, as the published recipes do."""
        train, load = self.config.train, self.load
        per_row = load.examples / load.rows
        rows = max(1, round(train.global_batch / per_row))
        if train.max_steps:
            total = train.max_steps * rows
            return Steps(train.max_steps, rows, rows * per_row, total, round(total / load.rows, 3))
        total = max(1, round(load.rows * train.epochs))
        return Steps(math.ceil(total / rows), rows, rows * per_row, total, train.epochs)

    def best(self) -> Plan:
        """Return the fastest of the most exact plans that fit, or the smallest plan if none fits."""
        rejected: list[Plan] = []
        for form, checkpointing in self._modes():
            fitting = []
            for micro_batch in self._micro_batches():
                plan = self._evaluate(form, micro_batch, self.shape.layers if checkpointing else 0)
                if not plan.fits_memory:
                    rejected.append(plan)
                elif checkpointing and self.config.train.checkpointing == "auto":
                    fitting.append(self._with_fewest_checkpointed(plan))
                else:
                    fitting.append(plan)
            if fitting:
                return min(fitting, key=self._cost_per_token)
        return min(rejected, key=lambda plan: plan.needs)

    # ---- the candidates, in order of preference

    def _modes(self) -> Iterator[tuple[OptimizerForm, bool]]:
        """Yield optimizer forms, each without and with activation checkpointing: exactness matters more than speed."""
        checkpointing = {"auto": (False, True), "full": (True,), "none": (False,)}[self.config.train.checkpointing]
        for form in self._forms():
            for checkpointed in checkpointing:
                yield form, checkpointed

    def _forms(self) -> Sequence[OptimizerForm]:
        if self.config.optimizer.form != "auto":
            return (self.config.optimizer.form,)
        if not self.config.method.full:
            return ("master",)  # an adapter's states are small
        return self._available_forms()

    def _available_forms(self) -> Sequence[OptimizerForm]:
        """Return the forms that the dtype allows: fp16 has no range for small moments."""
        return OPTIMIZER_FORMS if self.hardware.dtype != "fp16" else ("master", "8bit")

    def _micro_batches(self) -> Iterator[int]:
        """Yield micro-batches, from the largest with at most ENOUGH_TOKENS down to one packed row.

        Each divides a rank's packed rows of a step as evenly as its number of micro-batches allows.
        """
        own_rows = math.ceil(self.steps.rows / self.hardware.ranks)
        if self.config.train.micro_batch:
            yield min(self.config.train.micro_batch, own_rows)
            return
        enough_tokens = ENOUGH_TOKENS.get(self.hardware.kind, ENOUGH_TOKENS["cpu"])
        most = max(1, min(own_rows, enough_tokens // self.load.row_tokens))
        even = (math.ceil(own_rows / math.ceil(own_rows / size)) for size in range(most, 0, -1))
        yield from dict.fromkeys(even)

    def _with_fewest_checkpointed(self, plan: Plan) -> Plan:
        """Return the plan with the fewest checkpointed layers that fits; `plan`, with all of them, does."""

        def fits(checkpointed: int) -> bool:
            return self._evaluate(plan.form, plan.micro_batch, checkpointed).fits_memory

        fewest = bisect_left(range(1, self.shape.layers), True, key=fits) + 1
        return self._evaluate(plan.form, plan.micro_batch, fewest)

    def _cost_per_token(self, plan: Plan) -> float:
        """Return the time of a token, relative to one in a large micro-batch with all activations kept.

        A checkpointed layer runs forward once more, on top of 3 passes in full fine-tuning (forward, and the gradients
        of inputs and weights) or 2 with an adapter, whose frozen base needs no weight gradients.
        """
        passes = 3 if plan.trained == plan.parameters else 2
        recomputation = plan.checkpointed / (self.shape.layers * passes)
        overhead = OVERHEAD_TOKENS / (plan.micro_batch * plan.load.row_tokens)
        return (1 + recomputation) * (1 + overhead)

    # ---- one candidate

    def _evaluate(self, form: OptimizerForm, micro_batch: int, checkpointed: int) -> Plan:
        """Return the plan with these choices."""
        setup = self._setup(form, micro_batch, checkpointed)
        trained = self._trained_parameters
        grad_accum = self._grad_accum(micro_batch)
        time = speed.estimate_time(
            self.shape,
            self.load,
            self.steps,
            setup,
            self.hardware,
            trained,
            grad_accum,
            sides=self.config.objective.sides,
        )
        checkpoint, disk = self._disk(setup)
        return Plan(
            steps=self.steps,
            load=self.load,
            hardware=self.hardware,
            parameters=self.shape.parameters,
            trained=trained,
            micro_batch=micro_batch,
            grad_accum=grad_accum,
            checkpointed=checkpointed,
            form=form,
            compiled=setup.compiled,
            attention=self.attention,
            parts=memory.parts(setup, self.shape, trained),
            flops=time.flops,
            seconds=time.seconds,
            checkpoint=checkpoint,
            disk=disk,
            reasons=tuple(self._reasons(setup)),
        )

    def _setup(self, form: OptimizerForm, micro_batch: int, checkpointed: int) -> Setup:
        load, hardware = self.load, self.hardware
        # Not with 4-bit matrices, whose products are bitsandbytes' own kernels.
        compiles = hardware.kind == "cuda" and not self.config.method.quantised
        return Setup(
            method=self.config.method,
            dtype=hardware.dtype,
            form=form,
            checkpointed=checkpointed,
            compiled={"auto": compiles, "on": True, "off": False}[self.config.train.compile],
            attention=self.attention,
            micro_batch=micro_batch,
            row_tokens=load.row_tokens,
            supervised=micro_batch * (load.most_supervised or load.row_tokens),
            accumulates=self._grad_accum(micro_batch) > 1,
            ranks=hardware.ranks,
        )

    def _grad_accum(self, micro_batch: int) -> int:
        return math.ceil(self.steps.rows / (micro_batch * self.hardware.ranks))

    @cached_property
    def _trained_parameters(self) -> int:
        return memory.trained_parameters(self.config.method, self.shape) if self.trained is None else self.trained

    def _disk(self, setup: Setup) -> tuple[int, int]:
        """Return the bytes of one checkpoint with all states, and the peak on disk.

        At the peak there are the checkpoints that are kept, one more that is being written, and the resulting model.
        """
        trained, settings = self._trained_parameters, self.config.checkpoint
        weights = trained * setup.itemsize
        checkpoint = int(weights + trained * memory.state_bytes(setup.form, setup.itemsize))
        full_states = min(settings.keep, settings.full_states)
        kept = checkpoint * (full_states + 1) + weights * (settings.keep - full_states)
        result = self.shape.parameters * setup.itemsize if setup.full else weights
        return checkpoint, int(kept + result)

    # ---- explanations

    def _reasons(self, setup: Setup) -> Iterator[str]:
        """Yield a sentence for each choice."""
        steps, load, train = self.steps, self.load, self.config.train
        rows = f"{number(steps.rows)} {plural(steps.rows, 'row')} of {number(load.row_tokens)} tokens"
        yield f"{number(round(steps.examples))} pieces per step = {rows}"
        if not 0.8 < steps.examples / train.global_batch < 1.25:
            yield (
                f"global_batch is {train.global_batch} pieces, but a row has "
                f"{number(load.examples / load.rows)} on average, and a step has whole rows (for shorter ones: "
                "data.row_tokens)"
            )
        reason = "as set" if train.micro_batch else "more would not fit, or not be faster"
        yield f"{setup.micro_batch} {plural(setup.micro_batch, 'row')} at once: {reason}"
        yield self._checkpointing_reason(setup)
        if setup.ranks > 1:
            shared = "weights, gradients and states are shared out (FSDP2)" if setup.full else "each has a copy (DDP)"
            yield f"{setup.ranks} ranks, started by torchrun --nproc-per-node {setup.ranks}: {shared}"
        if self.config.optimizer.form != "auto":
            yield f"optimizer {setup.form}: as set"
        elif setup.form != "master":
            yield f"optimizer {setup.form}: more exact states would take more memory than there is"

    def _checkpointing_reason(self, setup: Setup) -> str:
        layers = self.shape.layers
        if self.config.train.checkpointing != "auto":
            return f"activations checkpointed: {'yes' if setup.checkpointed else 'no'}, as set"
        if not setup.checkpointed:
            return "activations are kept: they fit"
        scope = "" if setup.checkpointed == layers else f" of {setup.checkpointed} of {layers} layers"
        return f"activations{scope} are recomputed in the backward pass: otherwise they would not fit"

    def suggestions(self) -> Iterator[str]:
        """Yield changes that would make the run fit, the smallest change first."""
        for change, planner in self._changes():
            plan = planner.best()
            if plan.fits_memory:
                yield f"{change} ({gib(plan.needs)} GiB)"
        several = self.hardware.ranks == 1 and self.hardware.kind == "cuda" and self.config.method.full
        for ranks in SUGGESTED_RANKS if several else ():
            if replace(self, hardware=replace(self.hardware, ranks=ranks), trained=None).best().fits_memory:
                yield f"{ranks} such devices with torchrun"
                return

    def _changes(self) -> Iterator[tuple[str, Planner]]:
        """Yield changes that need less memory: a description, and a planner with the change."""
        config, load = self.config, self.load
        free = replace(config, train=replace(config.train, micro_batch=0, checkpointing="auto"))
        unrestricted = replace(self, config=free, trained=None)
        if config.train.micro_batch or config.train.checkpointing == "none":
            yield "micro_batch 0 and checkpointing auto", unrestricted
        if config.method.full and config.optimizer.form == "master":
            for form in self._available_forms()[1:]:
                smaller = replace(free, optimizer=replace(config.optimizer, form=form))
                yield f"optimizer.form {form}", replace(unrestricted, config=smaller)
        if load.row_tokens > 512:
            half = replace(load, row_tokens=load.row_tokens // 2, most_supervised=load.most_supervised // 2)
            yield f"--max-tokens {half.row_tokens}", replace(unrestricted, load=half)
        for kind in ("lora", "qlora"):
            if config.method.kind in ("full", "lora", "dora") and kind != config.method.kind:
                method = MethodSettings(kind=kind)
                yield f"--method {kind}", replace(unrestricted, config=replace(free, method=method))
