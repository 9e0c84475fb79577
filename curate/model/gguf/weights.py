"""The weights of a model in GGUF under transformers' names, each dequantised when it is loaded."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curate.errors import MissingExtra, ModelError
from curate.model.gguf.config import ROPE_FACTORS
from curate.model.gguf.header import Header, TensorInfo

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {  # within a layer
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class LazyTensor:
    """A weight that is read when transformers asks for it, as it asks a safetensors file."""

    header: Header
    tensor: TensorInfo
    heads: int = 0  # whose rotary halves llama.cpp interleaves

    @property
    def shape(self) -> torch.Size:
        """Its shape in the model."""
        return torch.Size(self.tensor.shape)

    def __getitem__(self, _: object) -> Tensor:
        """Return the values: fp32 where they were quantised, otherwise as stored."""
        values = _values(self.header, self.tensor).reshape(self.shape)
        return split_halves(values, self.heads) if self.heads else values


def split_halves(values: Tensor, heads: int) -> Tensor:
    """Return the rows of a query or key matrix in transformers' order, [heads × size, …].

    llama.cpp rotates neighbouring rows together, transformers those of the two halves of a head
    (`LlamaModel.permute` in convert_hf_to_gguf.py).
    """
    rest = values.shape[1:]
    pairs = values.reshape(heads, -1, 2, *rest)
    return pairs.transpose(1, 2).reshape(-1, *rest)


def _values(header: Header, tensor: TensorInfo) -> Tensor:
    """Return a tensor's values, flat."""
    data = header.read(tensor)
    if tensor.encoding.name in _PLAIN:
        return torch.frombuffer(data, dtype=_PLAIN[tensor.encoding.name])
    return torch.from_numpy(_library().dequantize(np.frombuffer(data, np.uint8), tensor.type).reshape(-1).copy())


def _library() -> Any:
    """Return the package gguf, which dequantises every encoding; raises MissingExtra."""
    try:
        return importlib.import_module("gguf.quants")
    except ImportError:
        raise MissingExtra("quantised GGUF", "gguf") from None


def check_library(header: Header) -> None:
    """Raise MissingExtra if a package is needed to read the weights, and absent."""
    if set(header.encodings) - _PLAIN.keys():
        _library()


def state_dict(header: Header, config: Any) -> Mapping[str, LazyTensor]:
    """Return the weights under transformers' names; raises ModelError for one that the model does not have."""
    state = {}
    for tensor in header.tensors.values():
        if tensor.name != ROPE_FACTORS:  # part of the configuration
            state[_name(header, tensor)] = LazyTensor(header, tensor, _heads(header, tensor, config))
    return state


def _name(header: Header, tensor: TensorInfo) -> str:
    match = _NAME.fullmatch(tensor.name)
    layer, part, kind = match.groups() if match else (None, "", "")
    name = _INNER.get(part) if layer else _OUTER.get(part)
    if name is None:
        raise ModelError(
            f"{str(header.path)!r} has the tensor {tensor.name[:60]!r}, which {header.architecture} of transformers "
            "lacks; give the Hugging Face folder or Hub name that it was converted from"
        )
    return f"model.layers.{layer}.{name}.{kind}" if layer else f"{name}.{kind}"


def _heads(header: Header, tensor: TensorInfo, config: Any) -> int:
    """Return the number of heads whose rows are interleaved: of LLaMA's queries and keys only."""
    if header.architecture != "llama":
        return 0
    part = tensor.name.rpartition(".")[0].rpartition(".")[2]
    return int({"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part, 0))
