"""Merge an adapter into its base: one model that any server loads, written only if its logits match the adapter's.

Each layer is merged in fp32 and rounded once. The base of a QLoRA adapter is quantised to NF4 as in training, then
dequantised and merged: the adapter has learnt to correct the errors of the quantised base. An adapter is merged only
into the base that it was trained on (`artifact.check_base`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curate.display.figures import percent
from curate.errors import ModelError
from curate.files import check_replaceable
from curate.model import artifact, files, four_bit, sources
from curate.model.artifact import Artifact
from curate.model.device import DTYPES
from curate.model.files import OnMessage
from curate.progress import stage
from curate.train.results import export
from curate.train.results.export import Origin, ResultInfo
from curate.train.run import records
from curate.train.run.records import Records

# The largest distance of logits that rounding explains, relative to their norm, by the dtype of the merged model: its
# weights are rounded once, and sums run in another order.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
PROBE = (2, 64)  # sequences, tokens: the random ids whose logits are compared


@dataclass(frozen=True)
class Merged:
    """A merged model, and its logits compared with those of base and adapter.

    `difference` is the distance from the logits of base with adapter, `effect` that of the adapter from the base alone.
    Both are relative to the norm of the logits with the adapter; `difference` is at most `tolerance`.
    """

    folder: Path
    base: str  # folder or Hub name
    method: str
    dtype: str  # bf16, fp16 or fp32
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
    other_base: bool = False,
    say: OnMessage = sources.ignore_message,
) -> Merged:
    """Merge an adapter (a folder, a run or a Hub name) into its base, and write the model to `out`.

    `base` replaces the base that the adapter names; `other_base` accepts one that it was not trained on.
    `dtype` is bf16, fp16 or fp32, by default that of the base. Raises ModelError if there is nothing to merge, `out`
    exists, the base is another, or the merged model's logits differ by more than rounding.
    """
    result = artifact.find_artifact(adapter, base=base)
    if result.base is None:
        raise ModelError(f"{adapter!r} is a model, not an adapter; there is nothing to merge")
    folder = Path(out)
    check_replaceable(folder, folder=True)
    if folder.exists():
        raise ModelError(f"{str(folder)!r} exists already; give a folder that does not")
    serving = artifact.serving_of(result)
    with stage("loading the base"):
        model = _load(result, artifact.choose_device(device), dtype, other_base, say)
    compute_dtype: torch.dtype = model.dtype
    expected = _logits(model)
    with model.disable_adapter():
        effect = _distance(_logits(model), expected)
    merged = merge_layers(model, compute_dtype)
    difference = _distance(_logits(merged), expected)
    tolerance = TOLERANCE[compute_dtype]
    if not difference <= tolerance:  # true for NaN too
        raise ModelError(
            f"the merged model's logits differ by {percent(difference)} from base and adapter, "
            f"{percent(tolerance)} is allowed; nothing was written: keep the adapter, or give --dtype fp32"
        )
    if difference > effect / 2:
        say(
            f"rounding to {_dtype_name(compute_dtype)} changes the logits by {percent(difference, digits=2)}, "
            f"the adapter by {percent(effect, digits=2)}: keep the adapter, or give --dtype fp32"
        )
    window = result.note.window if result.note else 0  # unknown for an adapter of another program
    info = ResultInfo(serving, Origin(result.base, files.locate(result.base), result.method), window)
    with stage("writing"):
        export.write_model(folder, merged, info, _read_records(result, folder))
    return Merged(folder, result.base, result.method, _dtype_name(compute_dtype), difference, effect, tolerance)


def _dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, value in DTYPES.items() if value == dtype)


def _read_records(result: Artifact, out: Path) -> Records:
    """Return the records of the adapter's run for the model card, empty ones if the run no longer exists."""
    run = result.folder.parent  # RUN/adapter
    return records.read(run) if (run / records.CONFIG).is_file() else Records(out.name)


def _load(result: Artifact, device: torch.device, dtype: str, other_base: bool, say: OnMessage) -> Any:
    """Return the base with its adapter; the base of a QLoRA adapter is dequantised, after it was quantised.

    So the merged weights are compared with the same weights, not with the 4-bit kernels of this device, which round
    otherwise. Raises ModelError if the adapter cannot be merged.
    """
    base: Any = artifact.load_artifact(
        result, device=device, dtype=dtype, other_base=other_base, with_adapter=False, say=say
    )
    if result.quantised:
        base = dequantise_model(base, base.dtype)
    model: Any = artifact.add_adapter(base, result.folder)
    if getattr(model.peft_config["default"], "is_prompt_learning", False):
        raise _unmergeable(model, "it puts tokens before the prompt")
    return model


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Return the logits of a fixed probe [sequences, tokens, vocabulary], fp32 on the CPU."""
    device = next(model.parameters()).device
    # Drawn on the CPU, whose generator gives the same ids for every device.
    ids = torch.randint(model.config.vocab_size, PROBE, generator=torch.Generator().manual_seed(0)).to(device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float().cpu()


def _distance(logits: Tensor, reference: Tensor) -> float:
    """Return the 2-norm of the difference, relative to that of the reference."""
    return float(((logits - reference).norm() / reference.norm()).item())


def dequantise_model(model: Any, dtype: torch.dtype) -> nn.Module:
    """Replace a model's 4-bit matrices with dequantised ones, in place; return the model."""
    for name, module in four_bit.linear_layers(model):
        model.set_submodule(name, four_bit.to_linear(module, dtype))
    # What transformers and peft read to decide whether a model is quantised.
    for attribute in ("is_loaded_in_4bit", "is_quantized"):
        setattr(model, attribute, False)
    model.hf_quantizer = None
    del model.config.quantization_config
    dequantised: nn.Module = model
    return dequantised


def merge_layers(model: Any, dtype: torch.dtype) -> Any:
    """Merge a peft model's adapter into its base, layer by layer in fp32; return the base, in `dtype`.

    Raises ModelError for a kind of adapter that peft cannot merge.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All adapters are already merged|Already ", UserWarning)
            layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
            with stage("merging", len(layers), "layers") as current:
                for layer in layers:
                    layer.to(torch.float32)  # one layer at a time: an fp32 copy of the model may not fit
                    layer.merge(safe_merge=True)  # safe: refuses a result that is not finite
                    layer.to(dtype)
                    current.done += 1
            return model.merge_and_unload(safe_merge=True)  # removes the adapter layers, unwraps `modules_to_save`
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise _unmergeable(model, str(error)) from error


def _unmergeable(model: Any, why: str) -> ModelError:
    kind = getattr(model.peft_config["default"], "peft_type", "")
    return ModelError(f"an adapter of type {getattr(kind, 'value', kind)} cannot be merged ({why}); serve it as it is")
