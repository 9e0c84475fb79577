"""All that a run settles before it loads weights: model found, data read and proven, rows packed, and the plan."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.dataset.manifest import Manifest
from curate.errors import CurateError, InputError, ModelError, TokenizerError
from curate.model import adapters, device, find
from curate.model import load as models
from curate.model.attention import choose
from curate.model.attention.choose import Attention, Heads
from curate.model.device import Device
from curate.model.find import OWN_TEMPLATE, Source
from curate.model.sizes import Shape, Work, work
from curate.rendering.factory import make_renderer
from curate.rendering.renderer import Renderer
from curate.rendering.set_tokenizer import load_set_tokenizer
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer
from curate.train import examples as train_examples
from curate.train import init_from, packing, plan
from curate.train.config import TrainConfig
from curate.train.distributed import World
from curate.train.examples import Examples, TrainingData
from curate.train.init_from import Initial
from curate.train.plan import Hardware, Load, Plan

Say = Callable[[str], None]
AUTO = "auto"


@dataclass(frozen=True)
class Prepared:
    """A run that is settled: what is trained on what, how, and what it will take."""

    config: TrainConfig
    source: Source
    init: Initial
    data: TrainingData
    renderer: Renderer
    rows: list[list[int]]
    row_tokens: int
    shape: Shape
    device: Device
    attention: Attention
    plan: Plan

    @property
    def eval_row_tokens(self) -> int:
        """How long rows of held-out conversations are: as those trained on, or longer for a longer one."""
        held_out = self.data.eval.lengths
        return max(self.row_tokens, int(held_out.max()) if len(held_out) else 0)

    def facts(self) -> dict[str, Any]:
        """Return what `run.json` says of model and data."""
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


def prepare(config: TrainConfig, world: World, disk: Path, say: Say, asked: frozenset[str] = frozenset()) -> Prepared:
    """Settle a run; raises CurateError with what to type, but makes a plan that does not fit too (`plan.check`).

    `asked` names settings of the method that somebody gave for this run, and no preset.
    """
    folder, told = train_examples.opened(config.data.set)
    config, init = init_from.find(config, say, asked)
    source = _source(config, init, told, say)
    template, chat_template = _template(config, source, init, told, say)
    shape = models.shape(source.config)
    window = _window(config, told, shape)
    say(f"reading {folder} for {source.name}, template {template}, window {window:,}")
    loaded = train_examples.load(
        folder,
        source.tokenizer,
        template=template,
        max_tokens=window,
        loss=config.data.loss,
        chat_template=chat_template,
        limit=config.data.limit or None,
    )
    made = make_renderer(template, source.tokenizer, loss=config.data.loss, chat_template=chat_template)
    row_tokens = _row_tokens(config, window, loaded.train)
    rows, load = _rows(config, loaded, row_tokens)
    found = device.look(world.device, dtype=config.model.dtype, memory_gib=config.train.memory_gib)
    heads = Heads(shape.heads, shape.kv_heads, shape.head_size)
    chosen = choose.choose(world.device, device.DTYPES[found.dtype], config.model.attention, heads=heads)
    hardware = Hardware(
        kind=found.kind,
        name=found.name,
        memory=found.memory,
        dtype=found.dtype,
        rate=found.rate,
        ranks=world.size,
        disk=_free_disk(disk),
    )
    trained = None  # of what the plan knows itself
    if init.adapter is None and (config.method.kind == "peft" or config.method.targets != ("all-linear",)):
        trained = adapters.planned(source.config, config.method)
    planned = plan.make(config, shape, load, hardware, attention=chosen.name, trained=trained)
    return Prepared(config, source, init, loaded, made, rows, row_tokens, shape, found, chosen, planned)


# ---- the model


def _source(config: TrainConfig, init: Initial, told: Manifest, say: Say) -> Source:
    """Find the model to train: the one named, or what an earlier result was trained from, or is."""
    whole = init.result is not None and init.adapter is None
    named = init.base if whole else config.model.name or init.base
    if not named:
        raise ModelError("no model is named; type --model with a folder, a name on the Hub, or tiny")
    own = config.model.tokenizer
    found = find.find(named, tokenizer=load_tokenizer(own) if own else _of_set(named, told))
    say(f"model {found.name}: {found.config.model_type}, tokenizer {found.tokenizer.info.name}")
    return found


def _of_set(named: str, told: Manifest) -> Tokenizer | None:
    """Return the set's tokenizer for a model that has none of its own: `tiny`."""
    if named != find.TINY:
        return None
    try:
        return load_set_tokenizer(told)
    except TokenizerError as error:
        raise TokenizerError(f"cannot load the set's tokenizer ({error}); name it: --tokenizer FOLDER") from None


def _template(config: TrainConfig, source: Source, init: Initial, told: Manifest, say: Say) -> tuple[str, str | None]:
    """Return the prompt template by name, and the Jinja text where it is not one of curate's.

    Where nothing is said, a model that was trained with a template keeps it; a base model is taught the set's.
    """
    settings = config.data
    if settings.chat_template:
        try:
            return OWN_TEMPLATE, Path(settings.chat_template).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the chat template {settings.chat_template!r}: {error}") from None
    wanted = settings.template
    if wanted == AUTO and init.template:
        wanted = init.template
        say(f"template {wanted}: {init.name} was trained with it")
    elif wanted == AUTO:
        wanted = source.template if source.knows_template else told.template
        say(f"template {wanted}: {source.reason if source.knows_template else 'the set was made in it'}")
    if wanted == OWN_TEMPLATE and source.chat_template is None:
        raise ModelError(f"model {source.name!r} ships no chat template; name one of curate's: --template vicuna")
    return wanted, source.chat_template if wanted == OWN_TEMPLATE else None


def _window(config: TrainConfig, told: Manifest, shape: Shape) -> int:
    """Return the longest piece in tokens: as asked, or the set's own, at most what the model holds."""
    asked = config.data.max_tokens
    if asked > shape.positions:
        raise CurateError(f"--max-tokens {asked} is more than the model holds: {shape.positions:,}")
    return asked or min(told.window, shape.positions)


# ---- the rows


def _row_tokens(config: TrainConfig, window: int, examples: Examples) -> int:
    """Return a row's length: as asked, else the window; where nothing is packed, no longer than the longest."""
    if config.data.packing:
        return config.data.row_tokens or window
    return int(examples.lengths.max())


def _rows(config: TrainConfig, loaded: TrainingData, row_tokens: int) -> tuple[list[list[int]], Load]:
    """Return the conversations of each row, and what there is to do."""
    examples = loaded.train
    packed = packing.pack(examples.lengths, row_tokens)
    rows = packed.rows if config.data.packing else [[index] for index in range(len(examples))]
    trained = _supervised(examples)
    held_out = loaded.eval.lengths
    if config.eval.limit and len(held_out) > config.eval.limit:
        held_out = held_out[: config.eval.limit]
    load = Load(
        conversations=len(examples),
        rows=len(rows),
        row_tokens=row_tokens,
        work=work(examples.lengths.tolist(), int(trained.sum())),
        held_out=work(held_out.tolist(), int(held_out.sum())) if len(held_out) else Work(0, 0, 0),
        utilisation=packed.utilisation if config.data.packing else packed.padded_utilisation,
        padded_utilisation=packed.padded_utilisation,
        most_supervised=max(int(trained[row].sum()) for row in rows),
    )
    return rows, load


def _supervised(examples: Examples) -> NDArray[np.int64]:
    """Return the tokens of each conversation that are trained on; its first is nobody's target."""
    counts = np.add.reduceat(examples.mask.astype(np.int64), examples.offsets[:-1])
    return counts - examples.mask[examples.offsets[:-1]]


def _free_disk(folder: Path) -> int:
    """Return the free bytes where a folder is, or will be."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def fitted(config: TrainConfig, found: TrainConfig) -> TrainConfig:
    """Return the configuration with the method and the model that were found for it: those that the run has."""
    model = replace(config.model, name=found.model.name, tokenizer=found.model.tokenizer)
    return replace(config, model=model, method=found.method)


# ---- the same again


def choices(ready: Prepared) -> dict[str, Any]:
    """Return what was chosen for the run, to be kept in its checkpoints: other choices would give other roundings."""
    planned = ready.plan
    return {
        "kind": ready.device.kind,
        "ranks": planned.hardware.ranks,
        "dtype": ready.device.dtype,
        "attention": ready.attention.name,
        "form": planned.form,
        "compiled": planned.compiled,
    }


def as_before(config: TrainConfig, facts: Mapping[str, Any], world: World) -> TrainConfig:
    """Return the configuration with a checkpoint's choices in it, as far as they hold on this machine.

    Type and optimizer form must stay. On another kind of device, or with another number of ranks, the rest is chosen
    anew, and losses are the same but for rounding.
    """
    model = replace(config.model, dtype=facts["dtype"])
    optimizer = replace(config.optimizer, form=facts["form"])
    train = config.train
    if (facts["kind"], facts["ranks"]) == (world.device.type, world.size):
        model = replace(model, attention=facts["attention"])
        train = replace(
            train,
            micro_batch=train.micro_batch or facts["micro_batch"],
            checkpointing=facts["checkpointing"],
            compile="on" if facts["compiled"] else "off",
        )
    return replace(config, model=model, optimizer=optimizer, train=train)
