"""Base models: found by folder, Hub name or `tiny` without touching weights, then loaded with one copy in memory.

The loader is transformers' own: modules on the meta device, tensors streamed from mapped safetensors files straight to
where they stay. What it would only log (a weight that is missing and drawn at random) is an error here.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from curate.errors import ModelError
from curate.model import files, four_bit
from curate.model.files import Say
from curate.model.find import Source, ignore_message, quietly
from curate.model.sizes import Linear, Shape

# ---- loaded


def load(
    source: Source,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    quantise: bool = False,
    inference: bool = False,
    seed: int = 0,
    say: Say = ignore_message,
) -> nn.Module:
    """Load a model's weights in `dtype` straight onto a device; `tiny` is drawn from `seed`.

    `quantise` holds the layers' matrices in 4 bits (NF4, its scales quantised too: QLoRA's); with `inference` a CPU may
    repack them for speed, after which they can be neither trained nor dequantised. `say` is told what is fetched and
    what in the files was not used. Raises ModelError for weights that are absent, damaged or do not fit.
    """
    device = _indexed(torch.device(device))
    if source.folder is None:
        model = _drawn(source, dtype, device, quantise, seed)
    else:
        model = _fetched(source, source.folder, dtype, device, quantise, say)
    if quantise and device.type == "cpu":
        four_bit.adapt(model, inference=inference)
    return model


def _fetched(
    source: Source, folder: Path, dtype: torch.dtype, device: torch.device, quantise: bool, say: Say
) -> nn.Module:
    _check_quantised(source, quantise)
    folder = files.fetch(source.name, folder, say)
    found = files.weights(folder)
    if found.form == "bin":
        say(f"{source.name} has its weights in the legacy .bin form: they load more slowly, as data alone, not as code")
    return _from_files(source, folder, dtype, device, quantise, say)


def _drawn(source: Source, dtype: torch.dtype, device: torch.device, quantise: bool, seed: int) -> nn.Module:
    if not quantise:
        return fresh(source.config, dtype=dtype, device=device, seed=seed)
    model: Any = fresh(source.config, dtype=dtype, device="cpu", seed=seed)
    with TemporaryDirectory() as folder, quietly():  # bitsandbytes quantises what comes from files
        model.save_pretrained(folder)
        return _from_files(source, Path(folder), dtype, device, True, ignore_message)


def _indexed(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_quantised(source: Source, quantise: bool) -> None:
    """Refuse weights that were quantised by others, but for bitsandbytes' 4 bits, which qlora trains on."""
    given = getattr(source.config, "quantization_config", None)
    if not given:
        return
    method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
    four = given.get("load_in_4bit") if isinstance(given, dict) else getattr(given, "load_in_4bit", False)
    if not (quantise and four):
        raise ModelError(
            f"the weights of {source.name!r} are quantised already ({getattr(method, 'value', method)}); "
            "give the model they were made from"
        )


def _from_files(
    source: Source, folder: Path, dtype: torch.dtype, device: torch.device, quantise: bool, say: Say
) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        with quietly():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=copy.deepcopy(source.config),
                dtype=dtype,
                device_map={"": device},
                attn_implementation="sdpa" if _takes_sdpa(source.config) else "eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told of, and are errors here
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                **({"quantization_config": nf4(dtype)} if quantise else {}),
            )
    except torch.OutOfMemoryError:
        raise
    except pickle.UnpicklingError:
        raise ModelError(
            f"the legacy .bin files of {source.name!r} hold code besides weights, or are damaged; give safetensors"
        ) from None
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ModelError(f"the weights of {source.name!r} cannot be loaded: {why}") from error
    _check_loaded(source.name, info, say)
    whole: nn.Module = model
    return whole


def _takes_sdpa(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as KNOWN

    return bool(getattr(KNOWN[type(config)], "_supports_sdpa", False))


def nf4(dtype: torch.dtype) -> Any:
    """Return QLoRA's quantisation (arXiv 2305.14314): 4-bit normal floats, their scales in 8 bits, sums in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def _check_loaded(name: str, info: dict[str, Any], say: Say) -> None:
    """Raise for weights that the files lack or have in another shape; name those that the model has no place for."""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the weights of {name!r} lack {_first(missing)}; download it again")
    if other := sorted(info["mismatched_keys"]):
        key, found, wanted = other[0]
        raise ModelError(f"{key} of {name!r} has shape {tuple(found)}, its config.json says {tuple(wanted)}")
    if wrong := sorted(map(str, info["error_msgs"])):
        raise ModelError(f"the weights of {name!r} cannot be loaded: {_first(wrong)}")
    if unused := sorted(map(str, info["unexpected_keys"])):
        say(f"weights of {name} without a place in the model are left out: {_first(unused)}")


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def fresh(config: Any, *, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> nn.Module:
    """Make a model of a configuration with random weights drawn from `seed` on its device, moving no random state."""
    from transformers import AutoModelForCausalLM

    place = _indexed(torch.device(device))
    cards = [place.index] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), place, quietly():
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    return model.eval()


# ---- measured without weights


def shape(config: Any) -> Shape:
    """Return a model's sizes from its configuration: its modules are made without memory, on the meta device."""
    return shape_of(outline(config))


def outline(config: Any) -> nn.Module:
    """Return a model's modules without memory, on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quietly():
        model: nn.Module = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    return model


def shape_of(model: Any) -> Shape:
    """Return the sizes of a model that is there, on whatever device, before adapters are put into it."""
    config = model.config.get_text_config()
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    heads = config.num_attention_heads if getattr(config, "num_attention_heads", None) else 1
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embeddings=table.numel(),
        head=0 if head is table else head.numel(),
        linears=_linears(model.base_model),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=len(table),
        positions=getattr(config, "max_position_embeddings", None) or 2048,
    )


def _linears(body: nn.Module) -> tuple[Linear, ...]:
    """Return the matrices of the layers, in the order they first come; GPT-2 calls its own Conv1D."""
    counts: dict[tuple[str, int, int], int] = {}
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        elif type(module).__name__ == "Conv1D":
            inputs, outputs = (int(size) for size in module.weight.shape)
        else:
            continue
        key = (name.rpartition(".")[2], inputs, outputs)
        counts[key] = counts.get(key, 0) + 1
    return tuple(Linear(*key, count) for key, count in counts.items())
