"""NEFTune (arXiv 2310.05914): noise on the embeddings while training, the less the longer the document."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curate.model.attention import choose
from curate.train.loss import CausalLoss


def add(module: CausalLoss, alpha: float) -> None:
    """Have a model's embeddings disturbed in training, uniformly within ±alpha / sqrt(tokens × size) of its document.

    Documents of a packed row are told apart, padding gets none; evaluation and generation are as without it.
    """
    noise = _Noise(alpha)
    module.register_forward_pre_hook(noise.take, with_kwargs=True)
    module.register_forward_hook(noise.forget, always_call=True)
    choose.base_model(module.model).get_input_embeddings().register_forward_hook(noise.disturb)


class _Noise:
    """What is between the loss, which knows the documents, and the embeddings, which do not."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.documents: Tensor | None = None

    def take(self, module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        batch = arguments[0] if arguments else named["batch"]
        self.documents = batch.documents if module.training and torch.is_grad_enabled() else None

    def forget(self, module: Any, arguments: Any, output: Any) -> None:
        self.documents = None

    def disturb(self, module: Any, arguments: Any, embeddings: Tensor) -> Tensor:
        if self.documents is None:
            return embeddings
        return embeddings + noise(embeddings, self.documents, self.alpha)


def noise(embeddings: Tensor, documents: Tensor, alpha: float) -> Tensor:
    """Return the noise for embeddings [rows, tokens, size] of packed documents [rows, tokens], padding -1."""
    size = embeddings.shape[-1]
    width = alpha / (lengths(documents).float().clamp_min(1) * size).sqrt()
    width = torch.where(documents < 0, 0.0, width)[..., None]
    drawn = torch.rand(embeddings.shape, dtype=torch.float32, device=embeddings.device)
    return ((2 * drawn - 1) * width).to(embeddings.dtype)


def lengths(documents: Tensor) -> Tensor:
    """Return for each position how many its document has, [rows, tokens] int64."""
    places = documents.long() + 1
    counts = torch.zeros(documents.shape[0], documents.shape[1] + 1, dtype=torch.int64, device=documents.device)
    return counts.scatter_add_(1, places, torch.ones_like(places)).gather(1, places)
