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
from curate.rendering.choices import EmptyThink, HiddenTools, Reasoning
from curate.schemas.chat_templates import NAMES
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

DEFAULT, DPO = "default", "dpo"  # presets
PRESETS = Catalogue("curate.train", "presets", "preset", DEFAULT)
ObjectiveName = Literal["sft", "dpo"]
# Learning rate of an objective, as a share of the method's. DPO's are 5e-7 in full (Zephyr, Tülu 3: arXiv 2310.16944,
# 2411.15124) and 5e-6 for an adapter (the alignment handbook's zephyr-7b-dpo-qlora).
RATES: dict[ObjectiveName, float] = {"sft": 1.0, "dpo": 1 / 40}
UNUSED_SETTINGS = {  # of `method`, by its kind; with `peft`, they are arguments in `method.peft`
    "full": ("rank", "alpha", "dropout", "rslora", "targets"),
    "ia3": ("rank", "alpha", "dropout", "rslora"),
    "peft": ("rank", "alpha", "dropout", "rslora"),
}
LOSS_ROLES = ("assistant", "tool", "user", "system")
FLAGS = {  # names of the most used settings in commands and in Python: section and key
    "data": ("data", "set"),
    "identity": ("data", "identity"),
    "model": ("model", "name"),
    "tokenizer": ("model", "tokenizer"),
    "init": ("model", "init"),
    "dtype": ("model", "dtype"),
    "attention": ("model", "attention"),
    "template": ("data", "template"),
    "chat_template": ("data", "chat_template"),
    "max_tokens": ("data", "max_tokens"),
    "loss": ("data", "loss"),
    "objective": ("objective", "kind"),
    "beta": ("objective", "beta"),
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
    """The model to train, what to start from, its dtype and its attention kernel."""

    name: str = ""  # folder, Hub name, or `tiny`: a small model with random weights
    tokenizer: str = ""  # empty: the model's own (for `tiny`: the set's)
    init: str = ""  # adapter, model, run or checkpoint to start from
    other_base: bool = False  # train an adapter further on a base that it was not trained on
    dtype: Literal["auto", DType] = "auto"
    attention: Literal["auto", AttentionName] = "auto"


@dataclass(frozen=True)
class DataSettings:
    """The curated set, its prompt template and window, and the messages that carry loss."""

    set: str = "curated"
    identity: str = ""  # conversations on what the model is, trained beside the set (`curate identity`)
    template: str = "auto"  # auto: the set's own; `model`: the model's own chat template
    chat_template: str = ""  # file with a Jinja template, instead
    max_tokens: int = limits(0, 0)  # 0: the set's window, or the model's positions if they are fewer
    row_tokens: int = limits(0, 0)  # of a packed row; 0: the window
    packing: bool = True
    loss: str = "all"  # all, last, or roles:assistant,tool
    reasoning: Reasoning = "train"  # of answers: train, mask, or drop
    empty_think: EmptyThink = "all"  # before answers without reasoning: all, none, or as_template
    hidden_tools: HiddenTools = "leave_out"  # rows whose calls train without the tools' definitions: leave_out or train
    limit: int = limits(0, 0)  # conversations, each with all its pieces; 0: all


@dataclass(frozen=True)
class ObjectiveSettings:
    """What a step minimises: the loss of answers (SFT), or of pairs of answers (DPO)."""

    kind: ObjectiveName = "sft"
    beta: float = limits(0.1, 0.0)  # of DPO: how much a pair that is already told apart still counts
    length_normalised: bool = False  # DPO: log-probabilities per token
    label_smoothing: float = limits(0.0, 0.0, 0.5)  # DPO: share of pairs that may be the wrong way round
    sft_weight: float = limits(0.0, 0.0)  # DPO: of the chosen answer's own loss

    @property
    def sides(self) -> int:
        """The examples of one piece: two for a pair."""
        return 2 if self.kind == "dpo" else 1


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning-rate schedule. A rate of 0 selects the default of method and objective."""

    learning_rate: float = limits(0.0, 0.0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = limits(0.03, 0.0, 1.0)  # share of the steps
    warmup_steps: int = limits(0, 0)  # overrides `warmup` unless 0
    final: float = limits(0.0, 0.0, 1.0)  # rate at the end, as a share of the peak
    beta1: float = limits(0.9, 0.0, 1.0)
    beta2: float = limits(0.999, 0.0, 1.0)
    epsilon: float = limits(1e-8, 0.0)
    weight_decay: float = limits(0.0, 0.0)
    clip: float = limits(1.0, 0.0)  # maximum norm of the gradients; 0 disables clipping
    form: Literal["auto", OptimizerForm] = "auto"
    neftune: float = limits(0.0, 0.0)  # alpha of the noise on embeddings: 5 in arXiv 2310.05914; 0 disables it


@dataclass(frozen=True)
class TrainSettings:
    """Length of the run, batch sizes and memory."""

    epochs: float = limits(3.0, 0.0)
    max_steps: int = limits(0, 0)  # overrides `epochs` unless 0
    global_batch: int = limits(128, 1)  # pieces of a step, over all ranks
    micro_batch: int = limits(0, 0)  # packed rows in one forward pass on a device; 0: as memory allows
    checkpointing: Literal["auto", "full", "none"] = "auto"  # of activations
    compile: Literal["auto", "on", "off"] = "auto"
    seed: int = limits(0, 0, 1 << 32)
    memory_gib: float = limits(0.0, 0.0)  # GiB of device memory to use at most; 0: all
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()


@dataclass(frozen=True)
class CheckpointSettings:
    """When checkpoints are written, and how many are kept."""

    minutes: float = limits(30.0, 0.0)  # 0: only by steps
    steps: int = limits(0, 0)  # 0: only by minutes
    keep: int = limits(2, 1)  # newest checkpoints; older ones are deleted
    full_states: int = limits(1, 1)  # newest checkpoints that can be resumed from; older ones have only weights


@dataclass(frozen=True)
class EvalSettings:
    """When held-out loss is computed and prompts are answered."""

    steps: int = limits(0, 0)  # 0: once an epoch
    limit: int = limits(500, 0)  # held-out pieces; 0: all
    samples: int = limits(4, 0)  # held-out prompts to answer
    prompts: tuple[str, ...] = ()  # further prompts; empty: three built-in ones
    max_new_tokens: int = limits(256, 1)  # of an answer


SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "objective": ObjectiveSettings,
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
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: the one that is set, otherwise the default of method (METHODS) and objective."""
        default = METHODS[self.method.kind].learning_rate * RATES[self.objective.kind]
        return self.optimizer.learning_rate or default

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
    """Load a preset by name or a configuration from a TOML file; missing settings get their defaults.

    Raises RecipeError that names the file, the key, the value and the nearest valid name.
    """
    if isinstance(preset, TrainConfig):
        return from_dict(preset.to_dict(), f"configuration {preset.name!r}")
    values, where, _ = PRESETS.read(str(preset))
    return from_dict(values, where)


def from_dict(values: Table, where: str = "configuration") -> TrainConfig:
    """Build a configuration from plain values; raises RecipeError for an invalid one."""
    refuse_unknown(values, ["name", "summary", *SECTIONS], where, "")
    config = TrainConfig(**decode_sections(values, SECTIONS, where))
    _check(config, where)
    return config


def override(config: TrainConfig, changes: Mapping[str, Mapping[str, object]], where: str = "flags") -> TrainConfig:
    """Return the configuration with changes by section and key; None leaves a setting unchanged."""
    changed = {
        section: {key: value for key, value in settings.items() if value is not None}
        for section, settings in changes.items()
    }
    overridden = from_dict(merge(config.to_dict(), changed), where)
    _check_given(overridden, changed, where)
    return overridden


def changes(flags: Mapping[str, object], settings: Sequence[str] = ()) -> dict[str, dict[str, object]]:
    """Return changes by section and key, for `override`.

    `flags` are names in `FLAGS`; `settings` are `section.key=value` with a TOML value. Raises RecipeError for an
    unknown name, with the nearest known one.
    """
    changed: dict[str, dict[str, object]] = {}
    for name, value in flags.items():
        if name not in FLAGS:
            raise RecipeError(f"unknown setting {name!r}{did_you_mean(name, FLAGS)}")
        section, key = FLAGS[name]
        changed.setdefault(section, {})[key] = value
    for text in settings:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            raise RecipeError(f"setting {text!r} must have the form section.key=value, such as train.compile=off")
        refuse_unknown({section: None}, SECTIONS, f"setting {text!r}", "")
        changed.setdefault(section, {})[key] = _value(value.strip())
    return changed


def _value(text: str) -> object:
    """Parse a value as TOML; return it as text if it is not valid TOML, so that strings need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Describe each changed setting that would alter a loss, such as `train.seed was 0, is 1`."""
    pairs = zip(_flatten(old.to_dict()).items(), _flatten(new.to_dict()).values(), strict=True)
    changed = [(key, before, after) for (key, before), after in pairs if before != after]
    return [f"{key} was {before!r}, is {after!r}" for key, before, after in changed if not _is_free(key)]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)


def _flatten(values: Table) -> dict[str, object]:
    """Return the values of all sections by `section.key`."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


# ---- checks that involve several settings


def _check(config: TrainConfig, where: str) -> None:
    _check_loss(config.data.loss, where)
    _check_template(config.data.template, where)
    _check_objective(config, where)
    if config.method.kind == "peft" and "peft_type" not in config.method.peft:
        raise RecipeError(f"{where}: method.kind = 'peft' needs method.peft with a peft_type, such as 'LOHA'")
    if config.method.kind != "peft" and config.method.peft:
        raise RecipeError(f"{where}: method.peft is for method.kind = 'peft', not {config.method.kind!r}")
    if not config.method.targets:
        raise RecipeError(f"{where}: method.targets = [] trains nothing; name layers, or use all-linear")
    if config.train.epochs == 0 and config.train.max_steps == 0:
        raise RecipeError(f"{where}: train.epochs = 0 and train.max_steps = 0 train nothing; set one of them")
    rows, window = config.data.row_tokens, config.data.max_tokens
    if rows and window and rows < window:
        raise RecipeError(f"{where}: data.row_tokens = {rows} must be at least data.max_tokens = {window}")


def _check_loss(loss: str, where: str) -> None:
    roles = loss.removeprefix("roles:").split(",") if loss.startswith("roles:") else []
    for role in roles:
        if role not in LOSS_ROLES:
            raise RecipeError(f"{where}: data.loss = {loss!r}: unknown role {role!r}{did_you_mean(role, LOSS_ROLES)}")
    if not roles and loss not in ("all", "last"):
        raise RecipeError(f"{where}: data.loss = {loss!r} must be 'all', 'last' or 'roles:assistant,tool'")


def _check_template(name: str, where: str) -> None:
    known = ("auto", "model", *NAMES)
    if name not in known:
        raise RecipeError(f"{where}: unknown data.template {name!r}{did_you_mean(name, known)}")


def _check_given(config: TrainConfig, given: Mapping[str, Mapping[str, object]], where: str) -> None:
    """Refuse a setting that was typed although it changes nothing, even with its default value."""
    dpo = [] if config.objective.kind == "dpo" else [key for key in given.get("objective", {}) if key != "kind"]
    unused = [key for key in UNUSED_SETTINGS.get(config.method.kind, ()) if key in given.get("method", {})]
    for section, keys, change in (("objective", dpo, "--objective dpo"), ("method", unused, "--method lora")):
        if keys:
            kind = getattr(config, section).kind
            raise RecipeError(
                f"{where}: {section}.{keys[0]} = {given[section][keys[0]]!r} changes nothing with "
                f"{section}.kind = {kind!r}; leave it out, or give {change}"
            )


def _check_objective(config: TrainConfig, where: str) -> None:
    objective, loss = config.objective, config.data.loss
    if objective.kind == "sft" and objective != ObjectiveSettings():
        raise RecipeError(
            f"{where}: objective.{_changed(objective)} changes nothing with objective.kind = 'sft'; use 'dpo'"
        )
    if objective.kind == "dpo" and loss != "all":
        raise RecipeError(
            f"{where}: data.loss = {loss!r} is for objective.kind = 'sft'; 'dpo' compares the two last answers of a "
            "pair: leave --loss out"
        )
    if objective.kind == "dpo" and not objective.beta:
        raise RecipeError(f"{where}: objective.beta = 0 trains nothing; give a positive one, such as 0.1")


def _changed(objective: ObjectiveSettings) -> str:
    """Return the first setting that has not its default, such as `beta = 0.2`."""
    default = dataclasses.asdict(ObjectiveSettings())
    return next(f"{key} = {value!r}" for key, value in dataclasses.asdict(objective).items() if value != default[key])


def run_name(config: TrainConfig) -> str:
    """Return a name for a run's folder: model, method and any objective but SFT, such as Llama-2-7b-hf-lora-dpo."""
    model = config.model.name.rstrip("/").rpartition("/")[2] or "model"
    objective = "" if config.objective.kind == "sft" else f"-{config.objective.kind}"
    return re.sub(r"[^\w.-]+", "-", f"{model}-{config.method.kind}{objective}")
