"""Small models and packed rows for the tests of training: random weights, a vocabulary of 160, one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 160
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def model(kind: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """Return a causal model of transformers with random weights, in fp32 on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SHAPE, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@dataclass(frozen=True)
class Rows:
    """What `curate.train.packing.Batch` holds."""

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    documents: Tensor
    supervised: int

    def to(self, device: str) -> Rows:
        ids, targets = self.input_ids.to(device), self.targets.to(device)
        return Rows(ids, targets, self.position_ids.to(device), self.documents.to(device), self.supervised)


Document = tuple[Tensor, Tensor]  # ids, and which of them are supervised


def documents(lengths: Sequence[int], *, seed: int = 0) -> list[Document]:
    """Return documents of random ids; about half of the tokens are supervised, never the first."""
    source = torch.Generator().manual_seed(seed)
    drawn = []
    for length in lengths:
        trained = torch.rand(length, generator=source) < 0.5
        trained[:1] = False
        drawn.append((torch.randint(3, VOCABULARY, (length,), generator=source), trained))
    return drawn


def rows(packed: Sequence[Sequence[Document]], length: int) -> Rows:
    """Lay documents into rows of `length` tokens, one after another."""
    ids = torch.zeros(len(packed), length, dtype=torch.int64)
    targets, positions = torch.full_like(ids, -100), torch.zeros_like(ids)
    numbers = torch.full(ids.shape, -1, dtype=torch.int32)
    for row, parts in enumerate(packed):
        start = 0
        for number, (tokens, trained) in enumerate(parts):
            stop = start + len(tokens)
            ids[row, start:stop] = tokens
            positions[row, start:stop] = torch.arange(len(tokens))
            numbers[row, start:stop] = number
            targets[row, start : stop - 1] = torch.where(trained[1:], tokens[1:], -100)
            start = stop
    return Rows(ids, targets, positions, numbers, int((targets >= 0).sum()))


def plain_loss(model: Any, parts: Sequence[Document]) -> Tensor:
    """Return the sum of the token losses from transformers' own forward, one document at a time."""
    total = torch.zeros(())
    for ids, trained in parts:
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        wanted = torch.where(trained[1:], ids[1:], -100)
        total = total + nn.functional.cross_entropy(logits, wanted, reduction="sum", ignore_index=-100)
    return total
