"""Load a model's weights with one copy in memory, or measure a model without them.

transformers loads: modules start on the meta device, and tensors go from memory-mapped safetensors files straight to
their device. If a weight is missing, transformers only logs that and initializes it at random; here it is an error.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from curate.errors import ModelError
from curate.model import files, four_bit
from curate.model.files import OnMessage
from curate.model.gguf.folder import header_of
from curate.model.gguf.weights import LazyTensor, check_library, state_dict
from curate.model.sizes import Linear, Shape
from curate.model.sources import ModelSource, ignore_message, quietly

# ---- load


def load_model(
    source: ModelSource,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    quantise: bool = False,
    inference: bool = False,
    seed: int = 0,
    say: OnMessage = ignore_message,
) -> nn.Module:
    """Load a model's weights in `dtype` onto a device; `tiny` gets random weights from `seed`.

    `quantise` keeps the matrices of the layers in 4 bits (see `nf4_config`). With `inference`, a CPU may repack them
    for speed, after which they can be neither trained nor dequantised. `say` gets messages about downloads and unused
    weights. Raises ModelError for weights that are missing, damaged or do not fit.
    """
    device = _with_index(torch.device(device))
    if source.folder is None:
        model = _random_weights(source, dtype, device, quantise, seed)
    else:
        model = _stored_weights(source, source.folder, dtype, device, quantise, say)
    if quantise and device.type == "cpu":
        four_bit.adapt_for_cpu(model, inference=inference)
    return model


def _stored_weights(
    source: ModelSource, folder: Path, dtype: torch.dtype, device: torch.device, quantise: bool, say: OnMessage
) -> nn.Module:
    _check_quantised(source, quantise)
    folder = files.fetch(source.name, folder, say)
    if (header := header_of(folder)) is not None:
        check_library(header)
        say(f"{source.name} is GGUF ({', '.join(header.encodings)}); its weights become {str(dtype)[6:]} in memory")
        return _from_files(source, folder, dtype, device, quantise, say, state_dict(header, source.config))
    if files.weights(folder).form == "bin":
        say(f"{source.name} has its weights in legacy .bin files, which load more slowly than safetensors")
    return _from_files(source, folder, dtype, device, quantise, say)


def _random_weights(
    source: ModelSource, dtype: torch.dtype, device: torch.device, quantise: bool, seed: int
) -> nn.Module:
    if not quantise:
        return random_model(source.config, dtype=dtype, device=device, seed=seed)
    model: Any = random_model(source.config, dtype=dtype, device="cpu", seed=seed)
    with TemporaryDirectory() as folder, quietly():  # transformers quantises only weights from files
        model.save_pretrained(folder)
        return _from_files(source, Path(folder), dtype, device, True, ignore_message)


def _with_index(device: torch.device) -> torch.device:
    """Return a GPU with its index, by default the current one of this rank; other devices unchanged."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_quantised(source: ModelSource, quantise: bool) -> None:
    """Refuse weights that are quantised on disk, except bitsandbytes' 4 bits for QLoRA."""
    settings: Any = getattr(source.config, "quantization_config", None)
    if not settings:
        return
    values = settings if isinstance(settings, dict) else vars(settings)  # as in config.json, or parsed
    method = values.get("quant_method")
    if not (quantise and (values.get("load_in_4bit") or values.get("_load_in_4bit"))):
        raise ModelError(
            f"the weights of {source.name!r} are quantised already ({getattr(method, 'value', method)}); "
            "give the model they were made from"
        )


def _from_files(
    source: ModelSource,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantise: bool,
    say: OnMessage,
    state: Mapping[str, LazyTensor] | None = None,
) -> nn.Module:
    """Load weights from the files in a folder, or from `state` instead."""
    model_class = _model_class(source.config)
    try:
        with quietly():
            model, info = model_class.from_pretrained(
                folder if state is None else None,
                state_dict=state,
                config=copy.deepcopy(source.config),  # transformers writes into it
                dtype=dtype,
                device_map={"": device},
                attn_implementation="sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that `info` lists them all; _check_loaded raises
                local_files_only=True,
                weights_only=True,  # a .bin file is a pickle, which could run code
                **({"quantization_config": nf4_config(dtype)} if quantise else {}),
            )
    except torch.OutOfMemoryError:
        raise  # a RuntimeError, but not the fault of the weights
    except pickle.UnpicklingError:
        raise ModelError(
            f"the legacy .bin files of {source.name!r} contain code, or are damaged; give a model with safetensors"
        ) from None
    except Exception as error:  # transformers raises anything for a config.json with odd values
        why = str(error).strip().partition("\n")[0]
        raise ModelError(f"the weights of {source.name!r} cannot be loaded: {why}") from error
    _check_loaded(source.name, info, say)
    loaded: nn.Module = model
    return loaded


def _model_class(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as KNOWN

    return KNOWN[type(config)]


def nf4_config(dtype: torch.dtype) -> Any:
    """Return QLoRA's quantisation (arXiv 2305.14314): 4-bit NormalFloat, scales in 8 bits, products in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def _check_loaded(name: str, info: dict[str, Any], say: OnMessage) -> None:
    """Raise ModelError for weights that are missing or have another shape; report those that the model does not use."""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the weights of {name!r} lack {_first(missing)}; download it again")
    if mismatched := sorted(info["mismatched_keys"]):
        key, shape, expected = mismatched[0]
        raise ModelError(f"{key} of {name!r} has shape {tuple(shape)}, its config.json says {tuple(expected)}")
    if errors := sorted(map(str, info["error_msgs"])):
        raise ModelError(f"the weights of {name!r} cannot be loaded: {_first(errors)}")
    if unused := sorted(map(str, info["unexpected_keys"])):
        say(f"ignoring weights of {name} that the model does not use: {_first(unused)}")


def _first(names: Sequence[str]) -> str:
    """Return the first name and the number of the others, for a message."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def random_model(config: Any, *, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> nn.Module:
    """Return a model with random weights from `seed`; torch's own random state does not change."""
    from transformers import AutoModelForCausalLM

    device = _with_index(torch.device(device))
    gpus = [device.index] if device.type == "cuda" else []  # whose random states are saved besides the CPU's
    with torch.random.fork_rng(devices=gpus), device, quietly():
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    return model.eval()


# ---- measure


def shape_from_config(config: Any) -> Shape:
    """Return the sizes of a model of transformers from its configuration, without allocating weights."""
    return shape_from_model(meta_model(config))


def meta_model(config: Any) -> nn.Module:
    """Return a model on the meta device: modules and shapes that take no memory.

    Raises ModelError for a configuration that transformers makes no model of.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"), quietly():
            model: nn.Module = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    except Exception as error:  # transformers raises anything for odd values
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"transformers can make no model of this config.json ({config.model_type}): {why}") from error
    return model


def shape_from_model(model: Any) -> Shape:
    """Return the sizes of a model on any device, before adapters are added."""
    config = model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    # Configurations name sizes differently, or leave out those that follow from others.
    heads = config.num_attention_heads if getattr(config, "num_attention_heads", None) else 1
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embeddings=embedding.numel(),
        head=0 if head is embedding else head.numel(),  # tied weights are one tensor
        linears=_linears(model.base_model),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,  # GPT-2's default
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=len(embedding),
        positions=getattr(config, "max_position_embeddings", None) or 2048,
    )


def _linears(body: nn.Module) -> tuple[Linear, ...]:
    """Return the matrices of the layers, grouped by name and size, in order of first appearance."""
    counts: dict[tuple[str, int, int], int] = {}  # (name, inputs, outputs) → how many
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        elif type(module).__name__ == "Conv1D":  # GPT-2's linear layer, with a transposed weight
            inputs, outputs = (int(size) for size in module.weight.shape)
        else:
            continue
        key = (name.rpartition(".")[2], inputs, outputs)
        counts[key] = counts.get(key, 0) + 1
    return tuple(Linear(*key, count) for key, count in counts.items())
