"""The training configuration: every setting with its default and limits, as frozen dataclasses and as TOML."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from curate.errors import RecipeError, did_you_mean
from curate.model.choices import METHODS, AttentionName, DType, MethodSettings, OptimizerForm
from curate.settings import (
    Catalogue,
    Table,
    decode_sections,
    limits,
    merge,
    plain_values,
    refuse_unknown,
    toml_assignment,
    toml_tables,
)

DEFAULT = "default"
PRESETS = Catalogue("curate.train", "presets", "preset", DEFAULT)
TINY = "tiny"  # a small model with random weights, and the preset for it
LOSS_ROLES = ("assistant", "tool", "user", "system")
FLAGS = {  # names of the most used settings in commands and in Python: section and key
    "data": ("data", "set"),
    "model": ("model", "name"),
    "tokenizer": ("model", "tokenizer"),
    "init": ("model", "init"),
    "dtype": ("model", "dtype"),
    "attention": ("model", "attention"),
    "template": ("data", "template"),
    "chat_template": ("data", "chat_template"),
    "max_tokens": ("data", "max_tokens"),
    "loss": ("data", "loss"),
    "limit": ("data", "limit"),
    "method": ("method", "kind"),
    "rank": ("method", "rank"),
    "lr": ("optimizer", "learning_rate"),
    "epochs": ("train", "epochs"),
    "max_steps": ("train", "max_steps"),
    "global_batch": ("train", "global_batch"),
    "micro_batch": ("train", "micro_batch"),
    "seed": ("train", "seed"),
    "log": ("train", "log"),
}
# Settings that may change on resuming: they affect what is kept and shown, never a loss.
FREE_ON_RESUME = ("name", "summary", "checkpoint", "eval", "train.memory_gib", "train.micro_batch", "train.log")


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained, and how its numbers and its attention are computed."""

    name: str = ""  # folder, Hub name, or `tiny`
    tokenizer: str = ""  # empty: the model's own (for `tiny`: the set's)
    init: str = ""  # adapter, model or run to train on from
    dtype: Literal["auto", DType] = "auto"
    attention: Literal["auto", AttentionName] = "auto"


@dataclass(frozen=True)
class DataSettings:
    """What is trained on: the set, its prompt, its window and which messages carry loss."""

    set: str = "curated"
    template: str = "auto"  # auto: the set's own; `model`: the model's own chat template
    chat_template: str = ""  # file with a Jinja template, instead
    max_tokens: int = limits(0, 0)  # 0: the set's window, at most what the model can hold
    row_tokens: int = limits(0, 0)  # of a packed row; 0: the window
    packing: bool = True
    loss: str = "all"  # all, last, or roles:assistant,tool
    limit: int = limits(0, 0)  # conversations; 0: all


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule. A rate of 0 is the method's own (`choices.METHODS`)."""

    learning_rate: float = limits(0.0, 0.0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = limits(0.03, 0.0, 1.0)  # share of the steps
    warmup_steps: int = limits(0, 0)  # a number of steps instead
    final: float = limits(0.0, 0.0, 1.0)  # share of the rate that is left at the end
    beta1: float = limits(0.9, 0.0, 1.0)
    beta2: float = limits(0.999, 0.0, 1.0)
    epsilon: float = limits(1e-8, 0.0)
    weight_decay: float = limits(0.0, 0.0)
    clip: float = limits(1.0, 0.0)  # norm of the gradients; 0 clips nothing
    form: Literal["auto", OptimizerForm] = "auto"
    neftune: float = limits(0.0, 0.0)  # noise on the embeddings; 5 in its paper, 0 is off


@dataclass(frozen=True)
class TrainSettings:
    """How long and in which portions."""

    epochs: float = limits(3.0, 0.0)
    max_steps: int = limits(0, 0)  # 0: as the epochs say
    global_batch: int = limits(128, 1)  # conversations a step
    micro_batch: int = limits(0, 0)  # rows at once on a device; 0: as memory allows
    checkpointing: Literal["auto", "full", "none"] = "auto"  # of activations
    compile: Literal["auto", "on", "off"] = "auto"
    seed: int = limits(0, 0, 1 << 32)
    memory_gib: float = limits(0.0, 0.0)  # of the device to use at most; 0: all
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()


@dataclass(frozen=True)
class CheckpointSettings:
    """When a run is saved, and what of it stays."""

    minutes: float = limits(30.0, 0.0)  # 0: only by steps
    steps: int = limits(0, 0)  # 0: only by minutes
    keep: int = limits(2, 1)
    full_states: int = limits(1, 1)  # the newest so many hold all that resuming needs; older ones the weights


@dataclass(frozen=True)
class EvalSettings:
    """When held-out loss and sample answers are taken."""

    steps: int = limits(0, 0)  # 0: once an epoch
    limit: int = limits(500, 0)  # held-out conversations; 0: all
    samples: int = limits(4, 0)  # held-out prompts answered
    prompts: tuple[str, ...] = ()  # prompts of your own to answer as well
    max_new_tokens: int = limits(256, 1)


SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "method": MethodSettings,
    "optimizer": OptimizerSettings,
    "train": TrainSettings,
    "checkpoint": CheckpointSettings,
    "eval": EvalSettings,
}


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run."""

    name: str = "custom"
    summary: str = ""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: the one that is set, otherwise the method's default."""
        return self.optimizer.learning_rate or METHODS[self.method.kind].learning_rate

    def to_dict(self) -> dict[str, object]:
        """Return the configuration as plain JSON values, in the shape of the TOML file."""
        sections = {name: plain_values(dataclasses.asdict(getattr(self, name))) for name in SECTIONS}
        return {"name": self.name, "summary": self.summary, **sections}

    def to_toml(self) -> str:
        """Return the configuration as a TOML file that `load` reads back to an equal one."""
        values = self.to_dict()
        top = [toml_assignment(key, values[key]) for key in ("name", "summary")]
        return "\n".join([*top, *toml_tables(values)]) + "\n"


def load(preset: str | Path | TrainConfig = DEFAULT) -> TrainConfig:
    """Return a preset by name, or the configuration in a TOML file, with every setting filled in and checked.

    Raises RecipeError that names the file, the key, the value and the nearest right name.
    """
    if isinstance(preset, TrainConfig):
        return from_dict(preset.to_dict(), f"configuration {preset.name!r}")
    values, where, _ = PRESETS.read(str(preset))
    return from_dict(values, where)


def from_dict(values: Table, where: str = "configuration") -> TrainConfig:
    """Build a configuration from plain values; raises RecipeError for what is not allowed."""
    refuse_unknown(values, ["name", "summary", *SECTIONS], where, "")
    config = TrainConfig(**decode_sections(values, SECTIONS, where))
    _check(config, where)
    return config


def override(config: TrainConfig, changes: Mapping[str, Mapping[str, object]], where: str = "flags") -> TrainConfig:
    """Return the configuration with changes by section and key; a value of None changes nothing."""
    given = {
        section: {key: value for key, value in settings.items() if value is not None}
        for section, settings in changes.items()
    }
    return from_dict(merge(config.to_dict(), given), where)


def changes(flags: Mapping[str, object], settings: Sequence[str] = ()) -> dict[str, dict[str, object]]:
    """Return changes by section and key: of `FLAGS` by name, and of any setting as `section.key=value` in TOML.

    Raises RecipeError for a name that is none, with the nearest that is.
    """
    changed: dict[str, dict[str, object]] = {}
    for name, value in flags.items():
        if name not in FLAGS:
            raise RecipeError(f"unknown setting {name!r}{did_you_mean(name, FLAGS)}")
        section, key = FLAGS[name]
        changed.setdefault(section, {})[key] = value
    for text in settings:
        place, equals, value = text.partition("=")
        section, dot, key = place.strip().partition(".")
        if not (equals and dot):
            raise RecipeError(f"setting {text!r} must read section.key=value, such as train.compile=off")
        refuse_unknown({section: None}, SECTIONS, f"setting {text!r}", "")
        changed.setdefault(section, {})[key] = _value(value.strip())
    return changed


def _value(text: str) -> object:
    """Parse a value as TOML; anything else is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Return a description of each changed setting that would alter a loss."""
    pairs = zip(_flat(old.to_dict()).items(), _flat(new.to_dict()).values(), strict=True)
    changed = [(key, before, after) for (key, before), after in pairs if before != after]
    return [f"{key} was {before!r}, is {after!r}" for key, before, after in changed if not _is_free(key)]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)


def _flat(values: Table) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


# ---- what no single field can tell


def _check(config: TrainConfig, where: str) -> None:
    _check_loss(config.data.loss, where)
    _check_template(config.data.template, where)
    if config.method.kind == "peft" and "peft_type" not in config.method.peft:
        raise RecipeError(f"{where}: method.kind = 'peft' needs method.peft with a peft_type, such as 'LOHA'")
    if config.method.kind != "peft" and config.method.peft:
        raise RecipeError(f"{where}: method.peft is for method.kind = 'peft', not {config.method.kind!r}")
    if not config.method.targets:
        raise RecipeError(f"{where}: method.targets = [] trains nothing; name layers, or all-linear")
    if config.train.epochs == 0 and config.train.max_steps == 0:
        raise RecipeError(f"{where}: train.epochs = 0 and train.max_steps = 0 is no training; set one of them")
    rows, window = config.data.row_tokens, config.data.max_tokens
    if rows and window and rows < window:
        raise RecipeError(f"{where}: data.row_tokens = {rows} must hold data.max_tokens = {window}")


def _check_loss(loss: str, where: str) -> None:
    roles = loss.removeprefix("roles:").split(",") if loss.startswith("roles:") else []
    for role in roles:
        if role not in LOSS_ROLES:
            raise RecipeError(f"{where}: data.loss = {loss!r} names no role {role!r}{did_you_mean(role, LOSS_ROLES)}")
    if not roles and loss not in ("all", "last"):
        raise RecipeError(f"{where}: data.loss = {loss!r} must be 'all', 'last' or 'roles:assistant,tool'")


def _check_template(name: str, where: str) -> None:
    from curate.schemas.prompts import TEMPLATES

    known = ("auto", "model", *TEMPLATES)
    if name not in known:
        raise RecipeError(f"{where}: unknown data.template {name!r}{did_you_mean(name, known)}")


def run_name(config: TrainConfig) -> str:
    """Return a name for a run's folder: the model's last part and the method, such as Llama-2-7b-hf-lora."""
    model = config.model.name.rstrip("/").rpartition("/")[2] or "model"
    return re.sub(r"[^\w.-]+", "-", f"{model}-{config.method.kind}")
