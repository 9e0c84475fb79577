"""Write small models as GGUF files, as llama.cpp's convert_hf_to_gguf.py does, without its library."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLOATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}  # enum ggml_type
_ALIGNMENT = 32
_NAMES = [  # transformers' name → llama.cpp's, the first that fits
    ("model.embed_tokens.", "token_embd."),
    ("model.norm.", "output_norm."),
    ("lm_head.", "output."),
    ("model.layers.", "blk."),
    (".input_layernorm.", ".attn_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
    (".self_attn.o_proj.", ".attn_output."),
    (".self_attn.q_proj.", ".attn_q."),
    (".self_attn.k_proj.", ".attn_k."),
    (".self_attn.v_proj.", ".attn_v."),
    (".self_attn.q_norm.", ".attn_q_norm."),
    (".self_attn.k_norm.", ".attn_k_norm."),
    (".mlp.gate_proj.", ".ffn_gate."),
    (".mlp.up_proj.", ".ffn_up."),
    (".mlp.down_proj.", ".ffn_down."),
]


def settings_of(model: Any) -> dict[str, Any]:
    """Return the settings of a model under llama.cpp's names."""
    config = model.config
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    named = {f"{config.model_type}.{key}": value for key, value in values.items()}
    return {"general.architecture": config.model_type, **named}


def tensors_of(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights under llama.cpp's names: matrices in `dtype`, vectors in fp32, LLaMA's rotary rows paired."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    tensors = {}
    for key, weight in model.state_dict().items():
        name = key
        for ours, theirs in _NAMES:
            name = name.replace(ours, theirs)
        count = heads.get(key.split(".")[-2], 0) if model.config.model_type == "llama" else 0
        if count:  # convert_hf_to_gguf.py: reshape(heads, 2, size / heads / 2, …).swapaxes(1, 2)
            weight = weight.reshape(count, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
        tensors[name] = weight.to(dtype if weight.ndim > 1 else torch.float32)
    if model.config.tie_word_embeddings:
        del tensors["output.weight"]
    return tensors


def sentencepiece_settings(data: bytes) -> dict[str, Any]:
    """Return the settings of a SentencePiece vocabulary."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto.FromString(data)
    values = {
        "model": "llama",
        "tokens": [piece.piece for piece in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "token_type": [piece.type for piece in model.pieces],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def write(path: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a GGUF file, version 3; return its path."""
    data, table = bytearray(), bytearray()
    for name, tensor in tensors.items():
        data += bytes(-len(data) % _ALIGNMENT)
        table += _text(name) + struct.pack("<I", tensor.ndim)
        table += struct.pack(f"<{tensor.ndim}Q", *reversed(tensor.shape))
        table += struct.pack("<IQ", FLOATS[tensor.dtype], len(data))
        data += tensor.contiguous().view(torch.uint8).numpy().tobytes()
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings))
    header += b"".join(_text(key) + _value(value) for key, value in settings.items()) + table
    path.write_bytes(header + bytes(-len(header) % _ALIGNMENT) + data)
    return path


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        items = b"".join(_value(item)[4:] for item in value)
        return struct.pack("<I", 9) + _value(value[0])[:4] + struct.pack("<Q", len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    kind, form = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}[type(value)]
    return struct.pack(f"<I{form}", kind, value)
