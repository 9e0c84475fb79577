"""Prepare a run before any weights are loaded: model, data, packed rows, device, attention and plan."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from curate.dataset.manifest import Manifest
from curate.errors import CurateError, InputError, ModelError, RunError, TokenizerError
from curate.model import adapters, device, loader, sources
from curate.model.attention import selection
from curate.model.attention.selection import Heads
from curate.model.choices import ALL_LINEAR
from curate.model.device import DTYPES, Device
from curate.model.sizes import Shape, Work, work
from curate.model.sources import OWN_TEMPLATE, ModelSource
from curate.rendering.factory import load_set_tokenizer, make_renderer
from curate.rendering.renderer import Renderer
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from curate.train import examples, init_from, packing
from curate.train.config import TrainConfig
from curate.train.distributed import World
from curate.train.examples import Examples, TrainingData
from curate.train.init_from import Initial
from curate.train.packing import PackedData
from curate.train.plan import Hardware, Load, Planner
from curate.train.run import records
from curate.train.run.events import Reporter
from curate.train.trainer import TrainerInputs

AUTO = "auto"


@dataclass(frozen=True)
class Request:
    """A request for a run: the configuration, and where it runs."""

    config: TrainConfig
    folder: Path  # of the run; it may not exist yet
    world: World
    reporter: Reporter = field(default_factory=Reporter)
    method_settings: frozenset[str] = frozenset()  # keys of `method` that were given for this run, not by a preset


@dataclass(frozen=True, kw_only=True)
class Run(TrainerInputs):
    """A prepared run: the inputs of the trainer, and the sources of model and data.

    `config` is the one in force; a resumed run has its earlier choices in it.
    """

    folder: Path
    requested: TrainConfig  # as written to config.toml
    source: ModelSource
    data: TrainingData
    renderer: Renderer
    shape: Shape
    device: Device

    def load_model(self) -> nn.Module:
        """Load the weights onto this rank's device; those of `tiny` are drawn from the run's seed."""
        torch.manual_seed(self.config.train.seed)
        self.reporter.say(f"loading {self.source.name}")
        return loader.load_model(
            self.source,
            dtype=DTYPES[self.device.dtype],
            device=self.world.device,
            quantise=self.config.method.quantised,
            seed=self.config.train.seed,
            say=self.reporter.say,
        )

    def facts(self) -> dict[str, Any]:
        """Return the part of `run.json` about model and data."""
        return {
            "base": self.source.name,
            "init": str(self.init) if self.init.name else None,
            "method": self.config.method.kind,
            "template": self.renderer.name,
            "device": self.device.name,
            "dtype": f"{self.device.dtype}, {self.device.reason}",
            "attention": f"{self.attention.name}, {self.attention.reason}",
            "data": self.data.facts,
        }

    def choices(self) -> dict[str, Any]:
        """Return the choices that checkpoints keep for `with_choices`: others would round differently."""
        return {
            "kind": self.device.kind,
            "ranks": self.plan.hardware.ranks,
            "dtype": self.device.dtype,
            "attention": self.attention.name,
            "form": self.plan.form,
            "compiled": self.plan.compiled,
        }


def with_choices(config: TrainConfig, choices: Mapping[str, Any], world: World) -> TrainConfig:
    """Return the configuration with the choices of a checkpoint that are valid on this machine.

    Dtype and optimizer form must stay. The rest is chosen again on another kind of device or at another number of
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
    """Prepare a run, with the choices of a checkpoint if it is resumed; its plan need not fit (`Plan.require_fit`).

    Raises CurateError with what to type. Where too many conversations fail the proof, the run's folder names them all.
    """
    world, reporter = request.world, request.reporter
    set_folder, manifest = examples.open_set_folder(request.config.data.set)
    requested, init = init_from.find(request.config, reporter.say, request.method_settings)
    config = requested if choices is None else with_choices(requested, choices, world)
    inputs = _Inputs(config, init, manifest, reporter)
    source = inputs.source()
    template, chat_template = inputs.template(source)
    shape = loader.shape_from_config(source.config)
    window = inputs.window(shape)
    reporter.say(f"reading {set_folder} for {source.name}, template {template}, window {window:,}")
    try:
        dataset = examples.load(
            set_folder,
            source.tokenizer,
            template=template,
            max_tokens=window,
            loss=config.data.loss,
            chat_template=chat_template,
            limit=config.data.limit or None,
        )
    except examples.ProofError as error:
        raise _with_failures(error, request) from None
    packed, data_load = _pack(config, dataset, window)
    measured = device.look(world.device, dtype=config.model.dtype, memory_gib=config.train.memory_gib)
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
    trained = inputs.trained_parameters(source)
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
        renderer=make_renderer(template, source.tokenizer, loss=config.data.loss, chat_template=chat_template),
        shape=shape,
        device=measured,
    )


def _with_failures(error: examples.ProofError, request: Request) -> CurateError:
    """Write the conversations that failed to a file in the run's folder, and return the error that names it."""
    if not request.world.main:
        return error
    request.folder.mkdir(parents=True, exist_ok=True)
    examples.write_left_out(request.folder / records.LEFT_OUT, error.failures)
    return RunError(f"{error}; all of them are named in {request.folder / records.LEFT_OUT}")


# ---- the model


@dataclass(frozen=True)
class _Inputs:
    """Finds model and template by configuration, `--init` and the set's manifest."""

    config: TrainConfig
    init: Initial
    manifest: Manifest
    reporter: Reporter

    def source(self) -> ModelSource:
        """Find the model to train: the one named, or the one that `--init` is or was trained from."""
        is_model = self.init.result is not None and self.init.adapter is None
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

    def template(self, source: ModelSource) -> tuple[str, str | None]:
        """Return the prompt template by name, and its Jinja text where it is not one of curate's.

        By default a model that was trained with a template keeps it, and a base model learns the set's.
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
            reason = source.reason if source.knows_template else "the set was made in it"
            self.reporter.say(f"template {name}: {reason}")
        if name == OWN_TEMPLATE and source.chat_template is None:
            raise ModelError(f"model {source.name!r} ships no chat template; name one of curate's: --template vicuna")
        return name, source.chat_template if name == OWN_TEMPLATE else None

    def window(self, shape: Shape) -> int:
        """Return the longest conversation in tokens: as asked, or the set's window, at most what the model holds."""
        asked = self.config.data.max_tokens
        if asked > shape.positions:
            raise CurateError(f"--max-tokens {asked} is more than the model holds: {shape.positions:,}")
        return asked or min(self.manifest.window, shape.positions)

    def trained_parameters(self, source: ModelSource) -> int | None:
        """Return the number of trained parameters where the plan's own estimate would be wrong, None elsewhere."""
        method = self.config.method
        if self.init.adapter is not None or (method.kind != "peft" and method.targets == (ALL_LINEAR,)):
            return None
        return adapters.count_trained(source.config, method)


# ---- the packed rows


def _pack(config: TrainConfig, dataset: TrainingData, window: int) -> tuple[PackedData, Load]:
    """Return the packed rows, and their load for the plan.

    A row has `data.row_tokens`, by default the window; without packing, the tokens of the longest conversation.
    """
    trained, held_out = dataset.train, dataset.eval.lengths
    row_tokens = (config.data.row_tokens or window) if config.data.packing else int(trained.lengths.max())
    packed = packing.pack(trained.lengths, row_tokens)
    rows = packed.rows if config.data.packing else [[index] for index in range(len(trained))]
    supervised = _supervised(trained)
    if config.eval.limit:
        held_out = held_out[: config.eval.limit]
    data_load = Load(
        conversations=len(trained),
        rows=len(rows),
        row_tokens=row_tokens,
        work=work(trained.lengths.tolist(), int(supervised.sum())),
        held_out=work(held_out.tolist(), int(held_out.sum())) if len(held_out) else Work(0, 0, 0),
        utilisation=packed.utilisation if config.data.packing else packed.padded_utilisation,
        padded_utilisation=packed.padded_utilisation,
        most_supervised=max(int(supervised[row].sum()) for row in rows),
    )
    return PackedData(trained, rows, row_tokens), data_load


def _supervised(examples: Examples) -> NDArray[np.int64]:
    """Return the supervised tokens of each conversation [conversations]; its first token is no target."""
    counts = np.add.reduceat(examples.loss_mask.astype(np.int64), examples.offsets[:-1])
    return counts - examples.loss_mask[examples.offsets[:-1]]


def _free_disk(folder: Path) -> int:
    """Return the free bytes where a folder is, or will be."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
