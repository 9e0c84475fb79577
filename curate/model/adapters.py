"""Which parameters are trained: all of them, or an adapter's, put into the model by peft.

Adapters keep the model's own type rather than fp32, which would make peft cast every wrapped layer's input up and
back; the optimizer holds their fp32 copies. Nothing else of the model is changed: activation checkpointing without
re-entry needs no gradient at the inputs, and norms train nowhere in fp32 while the rest is bf16.
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
from curate.model import load
from curate.model.attention.choose import base
from curate.model.choices import ALL_LINEAR, MethodSettings

_PROMPTS = "it puts tokens of its own before the prompt, which packed rows have no room for"
_REFUSED = {  # peft's methods that train elsewhere than in the layers, and why they cannot be used here
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _PROMPTS,
    "CPT": _PROMPTS,
    "CARTRIDGE": _PROMPTS,
    "ADAPTION_PROMPT": _PROMPTS,
    "ADALORA": "it learns its ranks by a loss of its own, beside that of the answers",
    "XLORA": "it mixes adapters that are trained already",
    "POLY": "it wants a task's number with every row",
}

_OWN_TARGETS = ("IA3", "LN_TUNING", "TRAINABLE_TOKENS")  # made for other layers than all linear ones: peft knows which


@dataclass(frozen=True)
class Trainable:
    """What is trained: names and number of the parameters, out of `total` that the model has with them."""

    method: str  # full, or peft's name for it
    names: tuple[str, ...]
    count: int
    total: int

    @property
    def share(self) -> float:
        """The part of all parameters that is trained."""
        return self.count / self.total


def apply(model: nn.Module, method: MethodSettings) -> tuple[nn.Module, Trainable]:
    """Set which parameters are trained, adapters put in where the method has them; return model and trained ones.

    Raises RecipeError for settings that do not fit the model, MissingExtra without peft.
    """
    if method.full:
        model.requires_grad_(True)
        return model, trainable(model)
    peft = _peft()
    settings = peft_config(model, method)
    with _quietly():
        try:
            model = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
        except (ValueError, TypeError, NotImplementedError, RuntimeError, ImportError, IndexError) as error:
            raise RecipeError(
                f"peft cannot put {_called(settings)} into {type(model).__name__}: {_line(error)}"
            ) from error
    return _ready(model)


def planned(config: Any, method: MethodSettings) -> int | None:
    """Return how many parameters a method will train in a model of a configuration, no weights made; null if unknown.

    Raises RecipeError for settings that do not fit the model.
    """
    model = load.outline(config)
    peft_config(model, method)
    try:
        return apply(model, method)[1].count
    except (RecipeError, ModelError):  # some of peft's methods cannot be made without memory
        return None


def resume(model: nn.Module, folder: Path) -> tuple[nn.Module, Trainable]:
    """Put the adapter of a folder into a model to train it on, with its own settings; as `apply` otherwise.

    Raises ModelError where its weights are absent, empty or of another model.
    """
    peft = _peft()
    _check_adapter(folder)
    with _quietly():
        try:
            model = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True, autocast_adapter_dtype=False)
        except (ValueError, TypeError, RuntimeError, OSError, KeyError) as error:
            raise ModelError(f"the adapter {str(folder)!r} does not fit the model: {_line(error)}") from error
    return _ready(model)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtra("training an adapter", "train") from None
    return peft


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep peft's warnings from the screen; what of them concerns a user is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_adapter(folder: Path) -> None:
    """Refuse an adapter without weights: an empty file has been the end of many a run."""
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(f"the adapter {str(folder)!r} has no {file.name}; save it anew as safetensors")
    try:
        with safe_open(file, "pt") as found:
            empty = not found.keys()
    except SafetensorError as error:
        raise ModelError(f"{str(file)!r} is damaged: {_line(error)}") from None
    if empty:
        raise ModelError(f"{str(file)!r} holds no weights; the run that wrote it saved nothing")


def _ready(model: nn.Module) -> tuple[nn.Module, Trainable]:
    """Bring an adapter's parameters into the model's type, and make sure that the layers hold them."""
    inner = base(model)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != inner.dtype:
            parameter.data = parameter.data.to(inner.dtype)
    found = trainable(model)
    within = {id(parameter) for parameter in inner.parameters() if parameter.requires_grad}
    outside = [name for name, parameter in _trained(model) if id(parameter) not in within]
    if outside or not found.names:
        what = f"{outside[0]} stands outside the layers" if outside else "nothing would be trained"
        raise RecipeError(f"method {found.method} cannot be used with packed rows: {what}; use lora")
    return model, found


def _trained(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def trainable(model: nn.Module) -> Trainable:
    """Return what is trained in a model as it stands; a matrix in 4 bits counts as what it stands for."""
    trained = dict(_trained(model))
    settings: Mapping[str, Any] = getattr(model, "peft_config", None) or {}
    return Trainable(
        method="+".join(map(_called, settings.values())) or "full",
        names=tuple(trained),
        count=sum(parameter.numel() for parameter in trained.values()),
        total=sum(_numbers(parameter) for parameter in model.parameters()),
    )


def _called(settings: Any) -> str:
    """Return peft's name for a method, in small letters."""
    return str(getattr(settings.peft_type, "value", settings.peft_type)).lower()


def _numbers(parameter: nn.Parameter) -> int:
    state: Any = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


# ---- peft's settings


def peft_config(model: nn.Module, method: MethodSettings) -> Any:
    """Return peft's settings for a method on a model; raises RecipeError with the nearest right name."""
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
    """Return the layers that are meant: peft's word for all but the head (QLoRA's choice), or names that exist."""
    if targets == (ALL_LINEAR,):
        return ALL_LINEAR
    known = linear_names(model)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in known):
            last = {name.rpartition(".")[2] for name in known}
            raise RecipeError(f"method.targets: the model has no layer {target!r}{did_you_mean(target, last)}")
    return list(targets)


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of a model's matrices that an adapter can be put on: linear layers and embeddings."""
    kinds = (nn.Linear, nn.Embedding)
    return [name for name, part in model.named_modules() if isinstance(part, kinds) or type(part).__name__ == "Conv1D"]


def _ia3_targets(model: nn.Module, targets: tuple[str, ...]) -> dict[str, list[str]]:
    """Return IA3's layers: keys, values and the last of the feed-forward (arXiv 2205.05638), by peft's table of names.

    A feed-forward layer is scaled at its input, another at its output.
    """
    from peft.utils import constants

    kind = base(model).config.get_text_config().model_type
    all_names = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    inputs = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    if targets != (ALL_LINEAR,):
        names = list(_targets(model, targets))
        scaled = {name for one in inputs.values() for name in one}
        return {"target_modules": names, "feedforward_modules": [name for name in names if name in scaled]}
    if kind not in all_names:
        raise RecipeError(f"ia3 knows no layers of a {kind!r} model; name keys, values and the last feed-forward layer")
    return {"target_modules": list(all_names[kind]), "feedforward_modules": list(inputs[kind])}


def _any_config(model: nn.Module, method: MethodSettings) -> Any:
    """Return the settings of any of peft's methods by `method.peft`: its peft_type and what its class takes."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {kind.value: made for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(method.peft.get("peft_type", "")).upper()
    if name not in known:
        raise RecipeError(f"method.peft: peft {peft.__version__} has no peft_type {name!r}{did_you_mean(name, known)}")
    if name in _REFUSED:
        raise RecipeError(f"method.peft: {name} cannot be used with packed rows: {_REFUSED[name]}; use lora")
    fields = {field.name for field in dataclasses.fields(known[name]) if field.init}
    given = {"task_type": "CAUSAL_LM", **{key: value for key, value in method.peft.items() if key != "peft_type"}}
    for key in given:
        if key not in fields:
            raise RecipeError(f"method.peft: {name} takes no {key!r}{did_you_mean(key, fields)}")
    named = method.targets != (ALL_LINEAR,) or name not in _OWN_TARGETS
    if "target_modules" in fields and "target_modules" not in given and named:
        given["target_modules"] = _targets(model, method.targets)
    try:
        with _quietly():
            return known[name](**given)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"method.peft: {_line(error)}") from None
