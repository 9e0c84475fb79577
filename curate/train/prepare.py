"""Prepare a run before any weights are loaded: model, data, packed rows, device, attention and plan."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curate.dataset.manifest import Manifest
from curate.errors import CurateError, InputError, ModelError, RunError, TokenizerError
from curate.model import adapters, artifact, device, fingerprint, loader, sources
from curate.model.attention import selection
from curate.model.attention.selection import Heads
from curate.model.choices import ALL_LINEAR
from curate.model.device import DTYPES, Device
from curate.model.files import OnMessage
from curate.model.fingerprint import Fingerprint
from curate.model.sizes import Shape, Work, work
from curate.model.sources import OWN_TEMPLATE, ModelSource
from curate.rendering.choices import Choices
from curate.rendering.factory import load_set_tokenizer
from curate.rendering.renderer import Renderer
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from curate.train import examples, packing
from curate.train.config import TrainConfig
from curate.train.distributed import World
from curate.train.examples import Examples, RenderSettings, TrainingData
from curate.train.packing import PackedData
from curate.train.planning.plan import Hardware, Load, Planner
from curate.train.results import init_from
from curate.train.results.init_from import Initial
from curate.train.run import records
from curate.train.run.events import Reporter
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
        return {
            "base": self.source.name,
            "init": str(self.init) if self.init.name else None,
            "method": self.config.method.kind,
            "objective": self.config.objective.kind,
            "template": self.renderer.name,
            "device": self.device.name,
            "dtype": f"{self.device.dtype}, {self.device.reason}",
            "attention": f"{self.attention.name}, {self.attention.reason}",
            "data": self.data.facts,
        }

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


def prepare(request: Request, choices: Mapping[str, Any] | None = None) -> Run:
    """Prepare a run, with the choices of a checkpoint if it is resumed; its plan may not fit (`Plan.require_fit`).

    Every rank must call this, and reads the whole set. Raises CurateError with what to type. If too many examples
    fail the proof, rank 0 lists them in the run's folder.
    """
    world, reporter = request.world, request.reporter
    set_folder, manifest = examples.open_set_folder(request.config.data.set)
    requested, init = init_from.find(request.config, reporter.say, request.method_settings)
    config = requested if choices is None else with_choices(requested, choices, world)
    inputs = _Inputs(config, init, manifest, reporter)
    source = inputs.source()
    check_base(init, source, config, reporter.warn)
    shape = loader.shape_from_config(source.config)
    rendering = inputs.rendering(source, shape)
    window = rendering.max_tokens or manifest.window
    reporter.say(f"reading {set_folder} for {source.name}, template {rendering.template}, window {window:,}")
    try:
        dataset = examples.load(set_folder, source.tokenizer, rendering, limit=config.data.limit or None)
    except examples.ProofError as error:
        raise _with_failures(error, request) from None
    packed, data_load = _pack(config, dataset, window)
    measured = device.measure_device(world.device, dtype=config.model.dtype, memory_gib=config.train.memory_gib)
    heads = Heads(shape.heads, shape.kv_heads, shape.head_size)
    kernel = selection.choose_kernel(world.device, DTYPES[measured.dtype], config.model.attention, heads=heads)
    hardware = Hardware(
        kind=measured.kind,
        name=measured.name,
        memory=measured.memory,
        dtype=measured.dtype,
        rate=measured.rate,
        ranks=world.size,
        disk=_free_disk(request.folder),
    )
    trained = inputs.count_trained(source)
    return Run(
        config=config,
        plan=Planner(config, shape, data_load, hardware, kernel.name, trained).plan(),
        attention=kernel,
        packed=packed,
        world=world,
        init=init,
        reporter=reporter,
        folder=request.folder,
        requested=requested,
        source=source,
        data=dataset,
        renderer=rendering.make_renderer(manifest, source.tokenizer),
        shape=shape,
        device=measured,
    )


def _with_failures(error: examples.ProofError, request: Request) -> CurateError:
    """Write the examples that failed to a file in the run's folder, and return an error that names the file."""
    if not request.world.main:
        return error
    request.folder.mkdir(parents=True, exist_ok=True)
    examples.write_left_out(request.folder / records.LEFT_OUT, error.failures)
    return RunError(f"{error}; all of them are listed in {request.folder / records.LEFT_OUT}")


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
            raise CurateError(f"--max-tokens {max_tokens} exceeds the model's {shape.positions:,} positions")
        return max_tokens or min(self.manifest.window, shape.positions)

    def count_trained(self, source: ModelSource) -> int | None:
        """Return the number of trained parameters; None leaves it to the plan, which knows the usual methods."""
        method = self.config.method
        if self.init.adapter is not None or (method.kind != "peft" and method.targets == (ALL_LINEAR,)):
            return None
        return adapters.count_trained(source.config, method)


# ---- the packed rows


def _pack(config: TrainConfig, dataset: TrainingData, window: int) -> tuple[PackedData, Load]:
    """Return the packed rows, and their load for the plan.

    A row has `data.row_tokens` positions, by default the window, or as many as the longest pair; without packing, one
    piece, padded to the longest.
    """
    trained, held_out = dataset.train, dataset.eval
    row_tokens = _row_tokens(config, trained, window)
    packed = packing.pack(trained.piece_lengths, row_tokens)
    pieces = packed.rows if config.data.packing else [[index] for index in range(trained.pieces)]
    rows = packing.rows_of_sides(pieces, trained.sides)
    supervised = trained.supervised_targets
    # An estimate: evaluation takes as many pieces, evenly spread.
    lengths = held_out.lengths[: (config.eval.limit or held_out.pieces) * held_out.sides]
    data_load = Load(
        examples=trained.pieces,
        rows=len(rows),
        row_tokens=row_tokens,
        work=work(trained.lengths.tolist(), int(supervised.sum())),
        held_out=work(lengths.tolist(), int(lengths.sum())) if len(lengths) else Work(0, 0, 0),
        utilisation=packed.utilisation if config.data.packing else packed.padded_utilisation,
        padded_utilisation=packed.padded_utilisation,
        most_supervised=max(int(supervised[row].sum()) for row in rows),  # the loss of such a row takes most memory
    )
    return PackedData(trained, rows, row_tokens), data_load


def _row_tokens(config: TrainConfig, trained: Examples, window: int) -> int:
    """Return the length of a packed row; raises CurateError if `data.row_tokens` is too short for a pair."""
    longest, chosen = int(trained.piece_lengths.max()), config.data.row_tokens
    if not config.data.packing:
        return longest
    if trained.sides == 1:
        return chosen or window
    if chosen and chosen < longest:
        raise CurateError(
            f"data.row_tokens = {chosen} is too short for the longest pair: its sides have {longest:,} tokens; type "
            f"--setting data.row_tokens={longest}, or leave it out"
        )
    return chosen or max(window, longest)


def _free_disk(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is or will be on."""
    path = folder.resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
