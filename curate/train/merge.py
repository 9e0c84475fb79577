"""Merge an adapter into its base: one model that any server loads, compared with base and adapter before it is kept.

Each layer is merged in fp32 and rounded once. For QLoRA the base is quantised to NF4 as in training, then made whole
again from that: the adapter has learnt to mend that base, not the one before quantisation.
"""

from __future__ import annotations

import gc
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curate.errors import ModelError
from curate.model import artifact, files, four_bit, loader, sources
from curate.model.artifact import Artifact
from curate.model.device import DTYPES
from curate.model.files import OnMessage
from curate.train import export
from curate.train.export import Making, Origin
from curate.train.run import records
from curate.train.run.records import Records

# How far logits may move by rounding alone, relative to their norm: weights rounded once, sums in another order.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
PROBE = (2, 64)  # sequences and tokens that are compared


@dataclass(frozen=True)
class Merged:
    """A merged model: `difference` of its logits from base with adapter, `effect` of the adapter on its base's.

    Both are relative to the norm of the logits. What was checked is within `tolerance`.
    """

    folder: Path
    base: str
    method: str
    dtype: str
    difference: float
    effect: float
    tolerance: float


def merge(
    adapter: str,
    out: str | Path,
    *,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    say: OnMessage = sources.ignore_message,
) -> Merged:
    """Merge an adapter (a folder, a run or a Hub name) into its base, and write the model to `out`.

    `base` is another base than the adapter names, `dtype` bf16, fp16 or fp32, by default the base's own. Raises
    ModelError where there is nothing to merge, `out` is taken, or the merged model answers otherwise.
    """
    found = artifact.find_artifact(adapter, base=base)
    if found.base is None:
        raise ModelError(f"{adapter!r} is a model, not an adapter; there is nothing to merge")
    folder = Path(out)
    if folder.exists():
        raise ModelError(f"{str(folder)!r} exists already; give a folder that does not")
    how = artifact.serving_of(found)
    place = artifact.choose_device(device)
    model, before, effect = _loaded(found, place, dtype, say)
    held: torch.dtype = model.dtype
    merged = fold(model, held)
    difference = _distance(_logits(merged), before)
    tolerance = TOLERANCE[held]
    if not difference <= tolerance:
        raise ModelError(
            f"merged, the model's logits differ by {difference:.1%} from base and adapter, {tolerance:.1%} is allowed; "
            "nothing was written: keep the adapter, or give --dtype fp32"
        )
    if difference > effect / 2:
        say(
            f"rounding to {_name(held)} moves the logits by {difference:.2%}, the adapter by {effect:.2%}: keep the "
            "adapter, or give --dtype fp32"
        )
    origin = Origin(found.base, Path(found.base) if Path(found.base).is_dir() else None, found.method)
    window = files.read_json(found.folder / "tokenizer_config.json").get("model_max_length", 0) if found.note else 0
    making = Making(how, origin, int(window) or merged.config.max_position_embeddings)
    export.write_model(folder, merged, making, _records(found, folder))
    return Merged(folder, found.base, found.method, _name(held), difference, effect, tolerance)


def _name(dtype: torch.dtype) -> str:
    return next(name for name, one in DTYPES.items() if one == dtype)


def _records(found: Artifact, out: Path) -> Records:
    """Return the records of the adapter's run for the model card, if the run still exists."""
    run = found.folder.parent
    return records.read(run) if (run / records.CONFIG).is_file() else Records(out.name)


def _loaded(found: Artifact, place: torch.device, dtype: str, say: OnMessage) -> tuple[Any, Tensor, float]:
    """Return the base with its adapter, the logits of both together, and how far the adapter moves them."""
    model: Any = artifact.load_artifact(found, place=place, numbers=dtype, say=say)
    if getattr(model.peft_config["default"], "is_prompt_learning", False):
        raise _unmergeable(model, "it puts tokens before the prompt")
    before = _logits(model)
    with model.disable_adapter():
        effect = _distance(_logits(model), before)
    if found.quantised:
        del model
        gc.collect()
        source = sources.find_model(str(found.base))
        held = artifact.compute_dtype(dtype, source.config, place)
        whole = dequantised(loader.load_model(source, dtype=held, device=place, quantise=True, say=say), held)
        model = artifact.add_adapter(whole, found.folder)
    return model, before, effect


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Return logits of a fixed probe, fp32 on the CPU."""
    place = next(model.parameters()).device
    ids = torch.randint(model.config.vocab_size, PROBE, generator=torch.Generator().manual_seed(0)).to(place)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float().cpu()


def _distance(one: Tensor, other: Tensor) -> float:
    return float(((one - other).norm() / other.norm()).item())


def dequantised(model: Any, dtype: torch.dtype) -> nn.Module:
    """Replace a model's 4-bit matrices with dequantised ones, in place."""
    for name, module in four_bit.linear_layers(model):
        model.set_submodule(name, four_bit.to_linear(module, dtype))
    for mark in ("is_loaded_in_4bit", "is_quantized"):
        setattr(model, mark, False)
    model.hf_quantizer = None
    del model.config.quantization_config
    whole: nn.Module = model
    return whole


def fold(model: Any, dtype: torch.dtype) -> Any:
    """Merge a peft model's adapter into its base, layer by layer in fp32; return the base, in `dtype`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All adapters are already merged|Already ", UserWarning)
            for layer in model.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.to(torch.float32)
                    layer.merge(safe_merge=True)
                    layer.to(dtype)
            return model.merge_and_unload(safe_merge=True)  # modules that are saved whole next to the adapter
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise _unmergeable(model, str(error)) from error


def _unmergeable(model: Any, why: str) -> ModelError:
    kind = getattr(model.peft_config["default"], "peft_type", "")
    return ModelError(f"an adapter of type {getattr(kind, 'value', kind)} cannot be merged ({why}); serve it as it is")
