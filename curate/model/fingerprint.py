"""The fingerprint of a base model, by which an adapter knows the model that it was trained on.

Two models may have the same shape (LLaMA-3 and 3.1, a base and its instruct model), so sizes are not enough: weights
are compared too. A few blocks of every tensor are read, a few MB for a model of any size, rounded to bf16 and hashed
with the tensor's name and shape. The same weights as fp32 or bf16, in safetensors or .bin files, in one file or many,
have the same hash. So has a copy in fp16, unless rounding to fp16 has changed its values. Other types, such as 4 bits,
are compared as the bytes that are stored. So is GGUF, whose tensors also have other names: it equals only itself.
The same weights may compute something else with other settings, such as the base of rotary embeddings: these are
compared by value, with transformers' defaults filled in, as far as both fingerprints have them.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from curate.model import files, tensors
from curate.model.gguf.folder import header_of
from curate.model.tensors import Values
from curate.tokenization.tokenizer import Tokenizer

BLOCKS, BLOCK = 4, 512  # blocks of a tensor, evenly spread from its first value to its last; values in each
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
# Further settings that change what the same weights compute, in the families that transformers has.
SETTINGS = (
    *("hidden_act", "hidden_activation", "activation_function", "tie_word_embeddings", "query_pre_attn_scalar"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "use_qk_norm"),
    *("head_dim", "attention_bias", "qkv_bias", "use_bias", "mlp_bias", "use_parallel_residual", "clip_qkv"),
    *("sliding_window", "layer_types", "attention_chunk_size", "no_rope_layers", "partial_rotary_factor"),
    *("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling", "attention_multiplier"),
    *("embedding_multiplier", "residual_multiplier", "num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor"),
)
# Buffers that follow from the configuration; some versions of transformers stored them.
_DERIVED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Fingerprint:
    """What identifies a base model. Empty texts are unknown, and equal to any other."""

    architecture: str  # transformers' model type
    sizes: dict[str, int] = field(default_factory=dict)  # by their names in config.json
    vocabulary: str = ""  # SHA-256 of the tokens by id
    weights: str = ""  # SHA-256 of sampled weights
    settings: dict[str, Any] = field(default_factory=dict)  # others that change what is computed; None is a value


def fingerprint(folder: Path, config: Any, tokenizer: Tokenizer | None) -> Fingerprint:
    """Return the fingerprint of the model in a folder; without weights there, theirs is unknown.

    `config` is that of transformers. A tokenizer from elsewhere is not the model's own, so its vocabulary is left out.
    Raises ModelError for damaged weights.
    """
    text_config = config.get_text_config()
    own = tokenizer is not None and Path(tokenizer.info.source).parent.absolute() == folder.absolute()
    return Fingerprint(
        str(config.model_type),
        {key: value for key in SIZES if isinstance(value := getattr(text_config, key, None), int)},
        tokenizer.vocabulary_hash if tokenizer is not None and own else "",
        weights_hash(folder, tied=bool(getattr(config, "tie_word_embeddings", False)))
        if files.has_weights(folder)
        else "",
        _settings(text_config),
    )


def _settings(config: Any) -> dict[str, Any]:
    """Return the settings of a text model that change what it computes; transformers has filled in its defaults."""
    values = {key: getattr(config, key) for key in SETTINGS if hasattr(config, key)}
    if values.get("head_dim", 0) is None:  # means the usual one
        values["head_dim"] = config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    # Some models have one for each type of layer.
    by_layer = rope if rope and all(isinstance(part, dict) for part in rope.values()) else {"": rope}
    for layer, part in by_layer.items():
        values |= {".".join(filter(None, ("rope", layer, key))): value for key, value in _rope(part).items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of rotary embeddings, whose type earlier configurations have under another name."""
    values = {key: value for key, value in parameters.items() if value is not None and key != "type"}
    return {"rope_type": parameters.get("type") or "default", **values} if values else {}


def weights_hash(folder: Path, *, tied: bool) -> str:
    """Return the hash of sampled weights; `tied`: the head is the embedding, and may be stored or not."""
    if (header := header_of(folder)) is not None:
        return header.weights_hash()
    digests = {}
    with ExitStack() as stack:
        for name, values in tensors.stored(files.weights(folder).files, stack):
            if not name.endswith(_DERIVED) and not (tied and name == _HEAD):
                digests[name] = _digest(values)
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(f"{name}\0{digests[name]}\0".encode())
    return whole.hexdigest()


def _digest(values: Values) -> str:
    """Return the hash of a tensor's shape and of its blocks, in bf16."""
    digest = hashlib.sha256(repr(values.shape).encode())
    last = max(torch.Size(values.shape).numel() - BLOCK, 0)
    for start in sorted({last * index // (BLOCKS - 1) for index in range(BLOCKS)}):
        block = values.read(start, BLOCK)
        block = block.to(torch.bfloat16).view(torch.uint8) if block.is_floating_point() else block
        digest.update(block.numpy().data)
    return digest.hexdigest()


def difference(expected: Fingerprint, found: Fingerprint) -> str:
    """Return in words how a model differs from the one that is expected, empty if it does not."""
    if found.architecture != expected.architecture:
        return f"it is of type {found.architecture}, not {expected.architecture}"
    for key, size in expected.sizes.items():
        if found.sizes.get(key, size) != size:
            return f"its {key} is {found.sizes[key]:,}, not {size:,}"
    if expected.vocabulary and found.vocabulary and found.vocabulary != expected.vocabulary:
        return "its sizes are the same, but its vocabulary has other tokens"
    if expected.weights and found.weights and found.weights != expected.weights:
        return f"its sizes are the same, but it has other weights ({found.weights[:8]}, not {expected.weights[:8]})"
    for key in sorted(expected.settings.keys() & found.settings.keys()):
        if (right := expected.settings[key]) != found.settings[key]:
            return f"its sizes are the same, but its {key} is {found.settings[key]}, not {right}"
    return ""
