"""Models and data for the training benchmarks: random weights, and packed documents of random ids.

Documents have a fixed length, or the lengths of real conversations. `toy` shrinks every size, so that it runs on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from curate.model import four_bit, loader
from curate.model.sizes import Work, work
from curate.train import packing
from curate.train.examples import Examples
from curate.train.packing import PackedData
from curate.train.planning.inputs import Load

LENGTHS = Path(__file__).resolve().parent / "data" / "lengths.json"
WINDOW = 2048  # of the real lengths
ANSWERS = 0.6  # supervised share of a real conversation, at its end; of other documents: all but the first token

SHAPES: dict[str, dict[str, Any]] = {
    "7B": {  # LLaMA-2's
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "8B": {  # LLaMA-3's
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    "tiny": {  # `--model tiny` with LLaMA-2's vocabulary
        "vocab_size": 32_000,
        "hidden_size": 64,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    },
}
TOY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def model_config(toy: bool, name: str) -> Any:
    """Return transformers' configuration of a shape."""
    from transformers import LlamaConfig

    sizes = dict(SHAPES[name])
    if toy:
        sizes |= TOY | {"num_key_value_heads": 4 * sizes["num_key_value_heads"] // sizes["num_attention_heads"]}
    config = LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    config.architectures = ["LlamaForCausalLM"]
    return config


def lengths(toy: bool, documents: str) -> tuple[list[int], int]:
    """Return the lengths of the documents and of a row, in tokens."""
    part = 16 if toy else 1
    if documents == "real":
        real = json.loads(LENGTHS.read_text("utf-8"))["lengths"]
        return [max(4, length // part) for length in real], WINDOW // part
    size = {"1k": 1024, "4k": 4096}[documents] // part
    return [size] * (128 * 4096 // part // size), 4096 // part


def examples(sizes: Sequence[int], vocabulary: int, share: float) -> Examples:
    """Return documents of random ids, the last `share` of each supervised."""
    source = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    ids = source.integers(3, vocabulary, int(offsets[-1]), dtype=np.int32)
    position = np.arange(len(ids)) - np.repeat(offsets[:-1], sizes)
    mask = position >= np.maximum(1, np.repeat(np.asarray(sizes) * (1 - share), sizes).astype(np.int64))
    names = [str(number) for number in range(len(sizes))]
    return Examples(ids, mask, offsets, names, [None] * len(names), np.ones(len(names), np.int32))


def packed_data(toy: bool, documents: str, vocabulary: int) -> tuple[PackedData, Load]:
    """Return packed rows, and their facts for the plan."""
    sizes, row_tokens = lengths(toy, documents)
    data = examples(sizes, vocabulary, ANSWERS if documents == "real" else 1.0)
    packed = packing.pack(data.lengths, row_tokens)
    supervised = np.add.reduceat(data.loss_mask, data.offsets[:-1])
    most = max(int(supervised[row].sum()) for row in packed.rows)
    total_work = work(sizes, int(data.loss_mask.sum()))
    load = Load(
        examples=len(sizes),
        rows=len(packed.rows),
        row_tokens=row_tokens,
        work=total_work,
        held_out=Work(0, 0, 0),
        utilisation=packed.utilisation,
        padded_utilisation=packed.padded_utilisation,
        most_supervised=most,
    )
    return PackedData(data, packed.rows, row_tokens), load


def work_of(packed: PackedData, rows: Sequence[int]) -> Work:
    """Return the work of these rows, without padding."""
    members = [index for row in rows for index in packed.rows[row]]
    supervised = sum(
        int(packed.examples.loss_mask[begin + 1 : end].sum())
        for begin, end in (packed.examples.offsets[index : index + 2] for index in members)
    )
    return work(packed.lengths(rows), supervised)


def in_4_bits(described: Any, dtype: torch.dtype, torch_device: torch.device) -> nn.Module:
    """Return a model with random weights, quantised like `load_model(quantise=True)`, one matrix at a time."""
    import bitsandbytes

    model: Any = loader.random_model(described, dtype=dtype, device="meta")
    settings = loader.nf4_config(dtype)
    quantised = {
        "quant_type": settings.bnb_4bit_quant_type,
        "compress_statistics": settings.bnb_4bit_use_double_quant,
        "quant_storage": settings.bnb_4bit_quant_storage,
    }
    torch.manual_seed(0)

    def random_like(meta: torch.Tensor) -> torch.Tensor:
        return torch.empty(meta.shape, dtype=dtype, device=torch_device).normal_(std=0.02)

    for layer in model.model.layers:
        for name, part in [(name, part) for name, part in layer.named_modules() if isinstance(part, nn.Linear)]:
            sizes = part.in_features, part.out_features
            linear = bitsandbytes.nn.Linear4bit(*sizes, bias=False, compute_dtype=dtype, device="meta", **quantised)
            weight = bitsandbytes.nn.Params4bit(
                random_like(part.weight), requires_grad=False, module=linear, **quantised
            )
            linear.weight = weight.to(torch_device)
            layer.set_submodule(name, linear)
    if torch_device.type == "cpu":
        four_bit.adapt_for_cpu(model)
    for name, parameter in [item for item in model.named_parameters() if item[1].is_meta]:
        values = torch.ones_like(parameter, device=torch_device) if parameter.ndim == 1 else random_like(parameter)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.Parameter(values, requires_grad=False))
    model.tie_weights()
    with torch_device:
        model.model.rotary_emb = type(model.model.rotary_emb)(config=described)  # its buffers are not parameters
    quantised_model: nn.Module = model
    return quantised_model
