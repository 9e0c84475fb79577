"""Prepare a run before any weights are loaded: model, data, packed rows, device, attention and plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curate.dataset import arrow
from curate.dataset.manifest import Manifest
from curate.errors import CurateError, InputError, ModelError, RunError, TokenizerError
from curate.model import adapters, artifact, device, fingerprint, loader, sources
from curate.model.attention import selection
from curate.model.attention.selection import ChosenKernel, Heads
from curate.model.choices import ALL_LINEAR
from curate.model.device import DTYPES, Device
from curate.model.files import OnMessage
from curate.model.fingerprint import Fingerprint
from curate.model.sizes import Shape
from curate.model.sources import OWN_TEMPLATE, ModelSource
from curate.rendering.choices import Choices
from curate.rendering.factory import load_set_tokenizer
from curate.rendering.renderer import Renderer
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from curate.train import examples, identity
from curate.train.config import TrainConfig
from curate.train.distributed import World
from curate.train.examples import RenderSettings, TrainingData
from curate.train.identity import Identity
from curate.train.packing import PackedData
from curate.train.planning import lengths, machines
from curate.train.planning.estimate import Estimate, estimate
from curate.train.planning.inputs import Hardware, Load
from curate.train.planning.machines import Machine
from curate.train.planning.plan import Plan, Planner
from curate.train.results import init_from
from curate.train.results.init_from import Initial
from curate.train.run import folder as run_folder
from curate.train.run import records
from curate.train.run.events import RenderProgress, Reporter
from curate.train.trainer import TrainerInputs

AUTO = "auto"  # the default of `data.template`


@dataclass(frozen=True)
class Request:
    """A request for a run: the configuration, and where it runs."""

    config: TrainConfig
    folder: Path  # of the run; it may not exist yet
    world: World
    reporter: Reporter = field(default_factory=Reporter)  # by default, events are ignored
    method_settings: frozenset[str] = frozenset()  # keys of `method` that were set for this run, not by a preset


@dataclass(frozen=True, kw_only=True)
class Run(TrainerInputs):
    """A prepared run: the inputs of the trainer, and the sources of model and data.

    `config` is the one that the run follows: for a resumed run, `requested` with the choices of its checkpoint.
    """

    folder: Path
    requested: TrainConfig  # written to config.toml
    source: ModelSource  # where the weights are
    data: TrainingData
    renderer: Renderer  # of the data, and of prompts
    shape: Shape
    device: Device  # with its measured rate

    def load_model(self) -> nn.Module:
        """Load the weights onto this rank's device; those of `tiny` are drawn from the run's seed."""
        torch.manual_seed(self.config.train.seed)  # also for new adapters: the same on every rank
        self.reporter.say(f"loading {self.source.name}")
        model = loader.load_model(
            self.source,
            dtype=DTYPES[self.device.dtype],
            device=self.world.device,
            quantise=self.config.method.quantised,
            seed=self.config.train.seed,
            say=self.reporter.say,
        )
        check_base(self.init, self.source, self.config)  # again: now its weights are here
        return model

    def fingerprint(self) -> Fingerprint | None:
        """Return the fingerprint of the loaded base, which results record; None for `tiny`."""
        source = self.source
        if source.folder is None:
            return None
        return fingerprint.fingerprint(source.folder, source.config, source.tokenizer)

    def facts(self) -> dict[str, Any]:
        """Return the part of `run.json` about model and data."""
        return run_facts(self.source, self.init, self.config, self.device, self.attention, self.data.facts)

    def choices(self) -> dict[str, Any]:
        """Return the choices that checkpoints keep for `with_choices`: with others, losses would round differently."""
        return {
            "kind": self.device.kind,
            "ranks": self.plan.hardware.ranks,
            "dtype": self.device.dtype,
            "attention": self.attention.name,
            "form": self.plan.form,
            "compiled": self.plan.compiled,
        }


def check_base(
    init: Initial, source: ModelSource, config: TrainConfig, warn: OnMessage = sources.ignore_message
) -> None:
    """Check that the adapter of `--init`, if there is one, was trained on this model; raises ModelError."""
    if init.adapter is not None and init.result is not None:
        override = None if config.model.other_base else "--setting model.other_base=true"
        artifact.check_base(init.result, source, "--model FOLDER", override, warn)


def with_choices(config: TrainConfig, choices: Mapping[str, Any], world: World) -> TrainConfig:
    """Return the configuration with those choices of a checkpoint that apply to this machine.

    `choices` are those of `Run.choices` and `Trainer.state`. Dtype and optimizer form always apply, because weights and
    optimizer state depend on them. The others are chosen again on another kind of device or with another number of
    ranks, and losses are then the same except for rounding.
    """
    model = replace(config.model, dtype=choices["dtype"])
    optimizer = replace(config.optimizer, form=choices["form"])
    train = config.train
    if (choices["kind"], choices["ranks"]) == (world.device.type, world.size):
        model = replace(model, attention=choices["attention"])
        train = replace(
            train,
            micro_batch=train.micro_batch or choices["micro_batch"],
            checkpointing=choices["checkpointing"],
            compile="on" if choices["compiled"] else "off",
        )
    return replace(config, model=model, optimizer=optimizer, train=train)


PROVEN_ROWS = 1_000  # of a set: as few are rendered and proven at once, even for a plan alone


def prepare(request: Request, choices: Mapping[str, Any] | None = None) -> Run:
    """Prepare a run, with the choices of a checkpoint if it is resumed; its plan may not fit (`Plan.require_fit`).

    Every rank must call this, and reads the whole set. Raises CurateError with what to type; PlanError before a large
    set is rendered, if the plan by its token counts does not fit. If too many examples fail the proof, rank 0 lists
    them beside the run's folder.
    """
    known = _know(request, choices)
    here = known.this_machine()
    if not known.few:
        _refuse_early(known, here)
    dataset = known.render(listing=_left_out_beside(request.folder))
    rows, load = lengths.pack(known.config, lengths.of_data(dataset), known.window)
    return Run(
        config=known.config,
        plan=known.plan(load, here),
        attention=here.kernel,
        packed=PackedData(dataset.train, rows, load.row_tokens),
        world=request.world,
        init=known.init,
        reporter=request.reporter,
        folder=request.folder,
        requested=known.requested,
        source=known.source,
        data=dataset,
        renderer=known.rendering.make_renderer(known.manifest, known.source.tokenizer),
        shape=known.shape,
        device=here.device,
    )


def _refuse_early(known: _Known, here: _Here) -> None:
    """Raise PlanError if the plan by the set's token counts does not fit: rendering a large set takes minutes."""
    if (estimated := known.estimate()) is not None:
        known.plan(lengths.estimate_load(known.config, estimated.lengths, known.window), here).require_fit()


def plan_only(request: Request, *, prove: bool, machine: Machine | None = None) -> tuple[Plan, dict[str, Any]]:
    """Return the plan of a run, here or on another machine, and the facts about it; nothing is written.

    Unless `prove`, a large set is planned by its token counts. Raises CurateError with what to type.
    """
    known = _know(request, None)
    hardware = known.this_machine() if machine is None else known.other_machine(machine)
    estimated = None if prove or known.few else known.estimate()
    if estimated is None:
        dataset = known.render(listing=None)
        load, facts = lengths.pack(known.config, lengths.of_data(dataset), known.window)[1], dataset.facts
    else:
        load, facts = lengths.estimate_load(known.config, estimated.lengths, known.window), estimated.facts
    return known.plan(load, hardware), known.facts(hardware, facts)


def _left_out_beside(folder: Path) -> Path:
    """Return the file for what is left out of a run that is refused: it has no folder."""
    return folder.with_name(f"{folder.name}.{records.LEFT_OUT}")


# ---- what is known before the set is rendered


@dataclass(frozen=True)
class _Here:
    """The hardware of a plan; `device` and `kernel` are what they would be there, if it is another machine's."""

    hardware: Hardware
    device: Device
    kernel: ChosenKernel


@dataclass(frozen=True)
class _Known:
    """What a run is about: model, set and template."""

    request: Request
    config: TrainConfig
    requested: TrainConfig
    init: Initial
    set_folder: Path
    manifest: Manifest
    source: ModelSource
    shape: Shape
    rendering: RenderSettings
    identity: Identity | None
    trained: int | None  # parameters, if they can be counted

    @property
    def window(self) -> int:
        return self.rendering.max_tokens or self.manifest.window

    @property
    def limit(self) -> int | None:
        """The conversations to take; None for all."""
        return self.config.data.limit or None

    @property
    def few(self) -> bool:
        """Whether the set has at most PROVEN_ROWS."""
        return arrow.count_rows(self.set_folder, self.limit) <= PROVEN_ROWS

    def estimate(self) -> Estimate | None:
        """Return the lengths of the examples without rendering them all."""
        tokenizer = self.source.tokenizer
        return estimate(self.set_folder, self.manifest, tokenizer, self.rendering, self.limit, self.identity)

    def render(self, *, listing: Path | None) -> TrainingData:
        """Render and prove the set; if it fails the proof, rank 0 writes what fails to the file `listing`."""
        progress = RenderProgress(self.request.reporter)
        try:
            return examples.load(
                self.set_folder,
                self.source.tokenizer,
                self.rendering,
                limit=self.limit,
                extra=self.identity,
                on_progress=progress,
            )
        except examples.ProofError as error:
            if listing is None or not self.request.world.main:
                raise
            listing.parent.mkdir(parents=True, exist_ok=True)
            examples.write_left_out(listing, error.failures)
            raise RunError(f"{error}; all of them are listed in {listing}") from None

    def plan(self, load: Load, here: _Here) -> Plan:
        """Return the plan for some hardware."""
        return Planner(self.config, self.shape, load, here.hardware, here.kernel.name, self.trained).plan()

    def this_machine(self) -> _Here:
        """Measure this rank's device, and choose its attention kernel."""
        world, config = self.request.world, self.config
        measured = device.measure_device(world.device, dtype=config.model.dtype, memory_gib=config.train.memory_gib)
        heads = Heads(self.shape.heads, self.shape.kv_heads, self.shape.head_size)
        kernel = selection.choose_kernel(world.device, DTYPES[measured.dtype], config.model.attention, heads=heads)
        hardware = Hardware(
            kind=measured.kind,
            name=measured.name,
            memory=measured.memory,
            dtype=measured.dtype,
            rate=measured.rate,
            ranks=world.size,
            disk=run_folder.free_disk(self.request.folder),
        )
        return _Here(hardware, measured, kernel)

    def other_machine(self, machine: Machine) -> _Here:
        """Return another machine's hardware, by the table of cards."""
        hardware, reason = machines.hardware_of(machine, self.config.model)
        name, why = machines.expected_attention(machine, self.config.model.attention)
        there = Device(machine.kind, machine.name, machine.memory, hardware.dtype, reason, hardware.rate or 0.0)
        return _Here(hardware, there, ChosenKernel(name, why))

    def facts(self, here: _Here, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of `run.json` about model, hardware and data."""
        return run_facts(self.source, self.init, self.config, here.device, here.kernel, data)


def run_facts(
    source: ModelSource,
    init: Initial,
    config: TrainConfig,
    device: Device,
    kernel: ChosenKernel,
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the part of `run.json` about model, device and data."""
    return {
        "base": source.name,
        "init": str(init) if init.name else None,
        "method": config.method.kind,
        "objective": config.objective.kind,
        "template": data["template"],
        "device": device.name,
        "dtype": f"{device.dtype}, {device.reason}",
        "attention": f"{kernel.name}, {kernel.reason}",
        "data": dict(data),
    }


def _know(request: Request, choices: Mapping[str, Any] | None) -> _Known:
    """Find model, set and template of a run; raises CurateError with what to type."""
    reporter = request.reporter
    set_folder, manifest = examples.open_set_folder(request.config.data.set)
    requested, init = init_from.find(request.config, reporter.say, request.method_settings)
    config = requested if choices is None else with_choices(requested, choices, request.world)
    inputs = _Inputs(config, init, manifest, reporter)
    source = inputs.source()
    check_base(init, source, config, reporter.warn)
    shape = loader.shape_from_config(source.config)
    rendering = inputs.rendering(source, shape)
    known = _Known(
        request=request,
        config=config,
        requested=requested,
        init=init,
        set_folder=set_folder,
        manifest=manifest,
        source=source,
        shape=shape,
        rendering=rendering,
        identity=_identity(config),
        trained=inputs.count_trained(source),
    )
    reporter.say(f"reading {set_folder} for {source.name}, template {rendering.template}, window {known.window:,}")
    return known


def _identity(config: TrainConfig) -> Identity | None:
    """Read the conversations on the model's identity; raises CurateError for a run on pairs, and InputError."""
    if config.data.identity and config.objective.sides == 2:
        raise CurateError("--identity is for --objective sft: its answers have no rejected ones; train it first")
    return identity.read(config.data.identity)


# ---- the model


@dataclass(frozen=True)
class _Inputs:
    """Chooses model, template and window by the configuration, `--init` and the set's manifest."""

    config: TrainConfig
    init: Initial
    manifest: Manifest
    reporter: Reporter

    def source(self) -> ModelSource:
        """Find the model to train: the one that is named, or the one that `--init` is or was trained from.

        Raises ModelError if neither names a model, TokenizerError if its tokenizer cannot be loaded.
        """
        is_model = self.init.result is not None and self.init.adapter is None  # then it overrides --model
        name = self.init.base if is_model else self.config.model.name or self.init.base
        if not name:
            raise ModelError("no model is named; type --model with a folder, a name on the Hub, or tiny")
        own = self.config.model.tokenizer
        source = sources.find_model(name, tokenizer=load_tokenizer(own) if own else self._set_tokenizer(name))
        self.reporter.say(f"model {source.name}: {source.config.model_type}, tokenizer {source.tokenizer.info.name}")
        return source

    def _set_tokenizer(self, model: str) -> Tokenizer | None:
        """Return the set's tokenizer for `tiny`, which has none of its own; None for any other model."""
        if model != sources.TINY:
            return None
        try:
            return load_set_tokenizer(self.manifest)
        except TokenizerError as error:
            raise TokenizerError(f"cannot load the set's tokenizer ({error}); name it: --tokenizer FOLDER") from None

    def rendering(self, source: ModelSource, shape: Shape) -> RenderSettings:
        """Return the template, window and loss to render the set with; raises CurateError for an unusable one."""
        template, chat_template = self.template(source)
        data = self.config.data
        choices = Choices(data.reasoning, data.empty_think, data.hidden_tools)
        sides = self.config.objective.sides
        return RenderSettings(template, chat_template, self.window(shape), data.loss, choices, sides)

    def template(self, source: ModelSource) -> tuple[str, str | None]:
        """Return the prompt template by name, and its Jinja text if it is not built in.

        By default a model that was trained with a template keeps it, and a base model learns that of the set. Raises
        InputError for an unreadable file, ModelError if a model without a template of its own is to use it.
        """
        settings = self.config.data
        if settings.chat_template:
            try:
                return OWN_TEMPLATE, Path(settings.chat_template).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot read the chat template {settings.chat_template!r}: {error}") from None
        name = settings.template
        if name == AUTO and self.init.template:
            name = self.init.template
            self.reporter.say(f"template {name}: {self.init.name} was trained with it")
        elif name == AUTO:
            name = source.template if source.knows_template else self.manifest.template
            reason = source.reason if source.knows_template else "that of the set"
            self.reporter.say(f"template {name}: {reason}")
        if name == OWN_TEMPLATE and source.chat_template is None:
            raise ModelError(f"model {source.name!r} has no chat template; give a built-in one: --template vicuna")
        return name, source.chat_template if name == OWN_TEMPLATE else None

    def window(self, shape: Shape) -> int:
        """Return the window in tokens: `data.max_tokens`, or that of the set, limited to the model's positions.

        Raises CurateError for a `data.max_tokens` above the model's positions.
        """
        max_tokens = self.config.data.max_tokens
        if max_tokens > shape.positions:
            raise CurateError(
                f"--max-tokens {max_tokens} exceeds the model's {shape.positions:,} positions; "
                f"give --max-tokens {shape.positions} or less"
            )
        return max_tokens or min(self.manifest.window, shape.positions)

    def count_trained(self, source: ModelSource) -> int | None:
        """Return the number of trained parameters; None leaves it to the plan, which knows the usual methods."""
        method = self.config.method
        if self.init.adapter is not None or (method.kind != "peft" and method.targets == (ALL_LINEAR,)):
            return None
        return adapters.count_trained(source.config, method)
