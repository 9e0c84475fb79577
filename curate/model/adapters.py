"""Choose the trained parameters: all of them, or those of an adapter that peft adds to the model.

Adapters have the dtype of the model. In fp32, peft would cast the input of every wrapped layer up and its output back;
the optimizer keeps fp32 copies instead. peft's `prepare_model_for_kbit_training` is not used: activation checkpointing
without re-entry needs no gradient at the inputs, and norms in fp32 among bf16 layers would only add casts.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curate.errors import MissingExtra, ModelError, RecipeError, did_you_mean
from curate.model import files, loader
from curate.model.attention.selection import base_model
from curate.model.choices import ALL_LINEAR, MethodSettings

_PROMPTS = "it adds tokens before each prompt, for which packed rows have no room"
_REFUSED = {  # peft's methods that do not work on packed rows, and why
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _PROMPTS,
    "CPT": _PROMPTS,
    "CARTRIDGE": _PROMPTS,
    "ADAPTION_PROMPT": _PROMPTS,
    "ADALORA": "it adds a loss of its own, by which it learns ranks",
    "XLORA": "it mixes adapters that are trained already",
    "POLY": "it needs a task number for every row",
}
_OWN_TARGETS = ("IA3", "LN_TUNING", "TRAINABLE_TOKENS")  # peft chooses their layers, which are not all linear
# Warnings of peft 0.21 that mean nothing here; all others are shown.
_HARMLESS = (
    ".is_gradient_checkpointing. is deprecated",  # peft reads a property that transformers 5 renamed
    "Unsupported layer type .*Norm",  # from the check of sizes that all methods share; LN_TUNING trains norms
)
MAX_RANK = 1 << 16
# peft only warns where a file lacks weights of the adapter, which then stay at their initial values.
_MISSING_WEIGHTS = ".*Found missing adapter keys"


@dataclass(frozen=True)
class Trainable:
    """The trained parameters of a model."""

    method: str  # full, or peft's name in lower case
    names: tuple[str, ...]  # as in `named_parameters`
    count: int  # numbers in these parameters
    total: int  # numbers in all parameters, adapters included

    @property
    def share(self) -> float:
        """The trained part of all parameters, from 0 to 1."""
        return self.count / self.total


def apply_method(model: nn.Module, method: MethodSettings) -> tuple[nn.Module, Trainable]:
    """Set which parameters of a model are trained, adding an adapter if the method has one.

    Returns the model, wrapped by peft if it has an adapter, and its trained parameters.

    Raises RecipeError for settings that do not fit the model, MissingExtra without peft.
    """
    if method.full:
        model.requires_grad_(True)
        return model, trainable(model)
    peft = _peft()
    settings = peft_config(model, method)
    with peft_warnings():
        try:
            # In peft's default, `autocast_adapter_dtype`, adapters are fp32: see the top of the module.
            model = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
        except (ValueError, TypeError, NotImplementedError, RuntimeError, ImportError, IndexError) as error:
            raise RecipeError(
                f"peft cannot put {_method_name(settings)} into {type(model).__name__}: {_line(error)}"
            ) from error
    return _finish(model)


def count_trained(config: Any, method: MethodSettings) -> int | None:
    """Return how many parameters a method would train in a model, given its configuration; None if unknown.

    Raises RecipeError for settings that do not fit the model.
    """
    model = loader.meta_model(config)
    peft_config(model, method)
    try:
        return apply_method(model, method)[1].count
    except (RecipeError, ModelError):  # not all methods of peft work on the meta device
        return None


def resume_adapter(model: nn.Module, folder: Path) -> tuple[nn.Module, Trainable]:
    """Add the adapter in a folder to a model, to continue its training; return both as `apply_method` does.

    Raises ModelError where its weights are missing, empty or do not fit the model.
    """
    peft = _peft()
    check_config(folder)
    _check_adapter(folder)
    with peft_warnings():
        try:
            model = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True, autocast_adapter_dtype=False)
        except torch.OutOfMemoryError:
            raise  # not the fault of the adapter
        except Exception as error:  # peft raises anything for odd values
            raise ModelError(f"the adapter {str(folder)!r} does not fit the model: {_line(error)}") from error
    return _finish(model)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtra("training an adapter", "train") from None
    return peft


def _line(error: Exception) -> str:
    """Return a library's error message on one line, at most 300 characters long."""
    return " ".join(str(error).split())[:300]


@contextmanager
def peft_warnings() -> Iterator[None]:
    """Ignore harmless warnings of peft, and raise UserWarning for weights that an adapter's file lacks."""
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message)
        warnings.filterwarnings("error", _MISSING_WEIGHTS, UserWarning)
        yield


def check_config(folder: Path) -> None:
    """Check an adapter_config.json from elsewhere; raises ModelError for what peft must not be given.

    That is a rank for which peft would fill any memory, and the name of a Python module that it would import.
    """
    values = files.read_json(folder / files.ADAPTER)
    if values.get("megatron_config") is not None:
        raise ModelError(f"the adapter {str(folder)!r} names a Python module to import, which curate does not do")
    pattern = values.get("rank_pattern")
    for rank in (values.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())):
        if rank is not None and not (type(rank) is int and 0 <= rank <= MAX_RANK):
            raise ModelError(
                f"the adapter {str(folder)!r} has the rank {str(rank)[:40]!r}, not a number up to {MAX_RANK:,}"
            )


def _check_adapter(folder: Path) -> None:
    """Raise ModelError for an adapter without weights, of which peft would only warn."""
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(f"the adapter {str(folder)!r} has no {file.name}; save it again as safetensors")
    try:
        with safe_open(file, "pt") as tensors:
            empty = not tensors.keys()
    except SafetensorError as error:
        raise ModelError(f"{str(file)!r} is damaged ({_line(error)}); copy it again") from None
    if empty:
        raise ModelError(f"{str(file)!r} has no weights; give an adapter that was saved with them")


def _finish(model: nn.Module) -> tuple[nn.Module, Trainable]:
    """Cast an adapter to the model's dtype, and return the model with its trained parameters.

    Raises RecipeError for an adapter that is empty, or not inside the layers.
    """
    inner = base_model(model)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != inner.dtype:
            parameter.data = parameter.data.to(inner.dtype)
    trained = trainable(model)
    # Packed rows go through the body's forward, which skips whatever peft puts around the model, such as prompts.
    within = {id(parameter) for parameter in inner.parameters() if parameter.requires_grad}
    outside = [name for name, parameter in _trained_parameters(model) if id(parameter) not in within]
    if outside or not trained.names:
        reason = f"{outside[0]} is outside the layers" if outside else "it trains no parameter"
        raise RecipeError(f"method {trained.method} cannot be used with packed rows: {reason}; use lora")
    return model, trained


def _trained_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def trainable(model: nn.Module) -> Trainable:
    """Return the parameters that a model trains."""
    trained = dict(_trained_parameters(model))
    settings: Mapping[str, Any] = getattr(model, "peft_config", None) or {}  # by adapter; usually one
    return Trainable(
        method="+".join(map(_method_name, settings.values())) or "full",
        names=tuple(trained),
        count=sum(parameter.numel() for parameter in trained.values()),
        total=sum(_size(parameter) for parameter in model.parameters()),
    )


def _method_name(settings: Any) -> str:
    """Return peft's name of a method, in lower case."""
    return str(getattr(settings.peft_type, "value", settings.peft_type)).lower()


def _size(parameter: nn.Parameter) -> int:
    """Return how many numbers a parameter has; 4-bit storage has two in a byte, and records the original shape."""
    state: Any = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


# ---- peft's settings


def peft_config(model: nn.Module, method: MethodSettings) -> Any:
    """Return peft's settings for a method on a model; raises RecipeError for unknown layers, methods and keys."""
    peft = _peft()
    if method.kind == "peft":
        return _any_config(model, method)
    if method.kind == "ia3":
        return peft.IA3Config(task_type="CAUSAL_LM", **_ia3_targets(model, method.targets))
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        use_rslora=method.rslora,  # alpha / sqrt(r): arXiv 2312.03732
        use_dora=method.kind == "dora",  # arXiv 2402.09353
        target_modules=_targets(model, method.targets),
    )


def _targets(model: nn.Module, targets: tuple[str, ...]) -> str | list[str]:
    """Return peft's `all-linear` (all but the head, QLoRA's choice) or the named layers, which must exist."""
    if targets == (ALL_LINEAR,):
        return ALL_LINEAR
    known = linear_names(model)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in known):
            last = {name.rpartition(".")[2] for name in known}
            raise RecipeError(f"method.targets: the model has no layer {target!r}{did_you_mean(target, last)}")
    return list(targets)


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of a model's matrices that can have an adapter: linear layers and embeddings."""
    kinds = (nn.Linear, nn.Embedding)
    # `Conv1D` is the linear layer of GPT-2 in transformers.
    return [name for name, part in model.named_modules() if isinstance(part, kinds) or type(part).__name__ == "Conv1D"]


def _ia3_targets(model: nn.Module, targets: tuple[str, ...]) -> dict[str, list[str]]:
    """Return IA3's layers: keys, values and the last feed-forward layer (arXiv 2205.05638), by peft's table of names.

    Feed-forward layers are scaled at their inputs, the others at their outputs.
    """
    from peft.utils import constants

    kind = base_model(model).config.get_text_config().model_type
    all_names = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    inputs = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    if targets != (ALL_LINEAR,):
        names = list(_targets(model, targets))
        feedforward = {name for layers in inputs.values() for name in layers}
        return {"target_modules": names, "feedforward_modules": [name for name in names if name in feedforward]}
    if kind not in all_names:
        raise RecipeError(
            f"peft does not know the layers that ia3 trains in a {kind!r} model; "
            "set method.targets to keys, values and the last feed-forward layer"
        )
    return {"target_modules": list(all_names[kind]), "feedforward_modules": list(inputs[kind])}


def _any_config(model: nn.Module, method: MethodSettings) -> Any:
    """Return the settings of any method of peft, from `method.peft`: peft_type and arguments of its class."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {kind.value: settings for kind, settings in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(method.peft.get("peft_type", "")).upper()
    if name not in known:
        raise RecipeError(f"method.peft: peft {peft.__version__} has no peft_type {name!r}{did_you_mean(name, known)}")
    if name in _REFUSED:
        raise RecipeError(f"method.peft: {name} cannot be used with packed rows: {_REFUSED[name]}; use lora")
    fields = {field.name for field in dataclasses.fields(known[name]) if field.init}
    values = {"task_type": "CAUSAL_LM", **{key: value for key, value in method.peft.items() if key != "peft_type"}}
    for key in values:
        if key not in fields:
            raise RecipeError(f"method.peft: {name} has no setting {key!r}{did_you_mean(key, fields)}")
    # Without targets, methods in _OWN_TARGETS keep peft's choice; the others need some.
    set_targets = method.targets != (ALL_LINEAR,) or name not in _OWN_TARGETS
    if set_targets and "target_modules" in fields and "target_modules" not in values:
        values["target_modules"] = _targets(model, method.targets)
    try:
        with peft_warnings():
            return known[name](**values)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"method.peft: {_line(error)}") from None
