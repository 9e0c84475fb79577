"""The configuration of a model in GGUF, in transformers' terms.

Only settings that are understood are accepted: a model with another one would be computed otherwise than it was
trained. The names of settings are those of llama.cpp's gguf-py (constants.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import ModelError
from curate.model.gguf.header import Header

ROPE_FACTORS = "rope_freqs.weight"  # by which LLaMA-3.1's and 3.2's frequencies are divided
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_SIZES = {  # settings that must be positive whole numbers, with their names in config.json
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_READ = {  # further settings that `config_values` reads or checks
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "expert_count",
    "expert_used_count",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "vocab_size",
}
_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}  # of llama, where it has them
_HARMLESS = {"attention.causal", "tensor_data_layout", "rope.scaling.finetuned"}  # do not change what is computed
_DTYPES = {"F32": "float32", "F16": "float16"}  # of config.json; the quantised models were bf16 before


def config_values(header: Header) -> dict[str, Any]:
    """Return the contents of config.json; raises ModelError for an architecture or a setting that is not known."""
    settings = _Settings(header)
    settings.check_names()
    sizes = {name: settings.size(key) for key, name in _SIZES.items()}
    heads = sizes["num_attention_heads"]
    head_size = settings.size("attention.key_length", sizes["hidden_size"] // heads)
    settings.check_heads(head_size)
    theta = float(settings.values.get("rope.freq_base", 10_000.0))  # llama.cpp's default
    tensors = header.tensors
    return {
        "architectures": [_CLASSES[header.architecture]],
        "model_type": header.architecture,
        **sizes,
        "head_dim": head_size,
        "num_key_value_heads": settings.size("attention.head_count_kv", heads),
        "rms_norm_eps": _shortest(settings.number("attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_theta": theta, **_rope_scaling(header, head_size, theta)},
        "vocab_size": _rows(header),
        **({key: name in tensors for key, name in _BIASES.items()} if header.architecture == "llama" else {}),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": header.metadata.get("tokenizer.ggml.eos_token_id"),
        "dtype": _DTYPES.get(header.encodings[0], "bfloat16"),
    }


class _Settings:
    """The settings of a model's architecture, without its name before each."""

    def __init__(self, header: Header) -> None:
        self.header, self.path = header, str(header.path)
        if header.metadata.get("split.count", 1) != 1:
            raise ModelError(
                f"{self.path!r} is one part of several; join them: llama-gguf-split --merge {header.path.name} OUT.gguf"
            )
        if header.architecture not in _CLASSES:
            raise ModelError(
                f"{self.path!r} is of the architecture {header.architecture[:40]!r}; curate reads GGUF of "
                f"{', '.join(_CLASSES)}: give the Hugging Face folder or Hub name that it was converted from"
            )
        prefix = f"{header.architecture}."
        self.values: Mapping[str, Any] = {
            key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)
        }

    def check_names(self) -> None:
        unknown = sorted(self.values.keys() - _SIZES.keys() - _READ - _HARMLESS)
        if self.values.get("expert_count", 0):
            unknown = ["expert_count", *unknown]  # a mixture of experts, such as Mixtral, has llama's name
        scaling = self.values.get("rope.scaling.type", "none")
        if unknown or scaling != "none":
            setting = unknown[0] if unknown else "rope.scaling.type"
            name, value = _one_line(f"{self.header.architecture}.{setting}"), _one_line(self.values.get(setting))
            raise ModelError(
                f"{self.path!r} has the setting {name} = {value}, which curate does not read from GGUF; give the "
                "Hugging Face folder or Hub name that it was converted from"
            )

    def size(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise self.wrong(key, value)
        return value

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise self.wrong(key, value)
        return value

    def wrong(self, key: str, value: object) -> ModelError:
        shown = "no value" if value is None else _one_line(value)
        return ModelError(f"{self.path!r} has {shown} for {self.header.architecture}.{key}; download it again")

    def check_heads(self, head_size: int) -> None:
        """Refuse heads whose values have another size than their keys, or that are rotated in part."""
        for key in ("attention.value_length", "rope.dimension_count"):
            if (value := self.values.get(key, head_size)) != head_size:
                raise self.wrong(key, f"{value} (its heads have the size {head_size})")


def _shortest(value: float) -> float:
    """Return what was most likely written before it became fp32, such as 1e-05 for 9.999999747378752e-06."""
    return float(f"{value:.6g}")


def _rows(header: Header) -> int:
    """Return the rows of the embedding, which may be more than the tokens."""
    tensor = header.tensors.get("token_embd.weight")
    if tensor is None:
        raise ModelError(f"{str(header.path)!r} has no token_embd.weight; give a file with a whole language model")
    return tensor.shape[0]


def _rope_scaling(header: Header, head_size: int, theta: float) -> dict[str, Any]:
    """Return transformers' `llama3` scaling for a file that has factors instead of its settings.

    They are the settings of LLaMA 3.1 and 3.2, except `factor`, which is the largest of the stored factors. Raises
    ModelError if the stored factors do not follow from them.
    """
    tensor = header.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return {"rope_type": "default"}
    factors = np.frombuffer(header.read(tensor), np.float32) if tensor.encoding.name == "F32" else np.zeros(0)
    factor = _shortest(float(factors.max(initial=0.0)))
    values: dict[str, Any] = {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = _llama3_factors(head_size, theta, **values) if factor else np.ones(0)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise ModelError(
            f"{ROPE_FACTORS} of {str(header.path)!r} is not that of LLaMA 3.1 or 3.2; give the Hugging Face folder or "
            "Hub name that it was converted from"
        )
    return {"rope_type": "llama3", **values}


def _llama3_factors(
    head_size: int,
    theta: float,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> NDArray[np.float64]:
    """Return what LLaMA-3.1 divides each frequency by: [head_size / 2] (`apply_scaling` in Meta's llama-models)."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_size, 2) / head_size)
    turns = original_max_position_embeddings / wavelengths
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _one_line(value: object) -> str:
    """Return the beginning of a text or number from a file, quoted if it has control characters."""
    text = str(value)[:60]
    return text if text.isprintable() else repr(text)
