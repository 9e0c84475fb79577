"""NEFTune (arXiv 2310.05914): uniform noise on the embeddings in training, weaker in longer documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curate.model.attention import selection
from curate.train.objectives.loss import CausalLoss


def add(module: CausalLoss, alpha: float) -> None:
    """Add noise to a model's embeddings in training, uniform within ±alpha / sqrt(tokens × size).

    `tokens` is the length of a document, as a packed row has several; `size` is that of an embedding. Padding gets no
    noise. Evaluation and generation have none.
    """
    hooks = _Hooks(alpha)
    module.register_forward_pre_hook(hooks.set_documents, with_kwargs=True)
    # Also after an error: a repeated step must not find the documents of another micro-batch.
    module.register_forward_hook(hooks.clear_documents, always_call=True)
    selection.base_model(module.model).get_input_embeddings().register_forward_hook(hooks.add_noise)


class _Hooks:
    """Pass the documents from the loss module, whose input has them, to the embeddings, whose input has only ids."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.documents: Tensor | None = None  # [rows, tokens]; None while no noise is wanted

    def set_documents(self, module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        batch = arguments[0] if arguments else keywords["batch"]
        self.documents = batch.documents if module.training and torch.is_grad_enabled() else None

    def clear_documents(self, module: Any, arguments: Any, output: Any) -> None:
        self.documents = None

    def add_noise(self, module: Any, arguments: Any, embeddings: Tensor) -> Tensor:
        if self.documents is None:
            return embeddings
        return embeddings + noise(embeddings, self.documents, self.alpha)


def noise(embeddings: Tensor, documents: Tensor, alpha: float) -> Tensor:
    """Return noise for embeddings [rows, tokens, size]; `documents` [rows, tokens] numbers documents, -1 is padding."""
    size = embeddings.shape[-1]
    width = alpha / (lengths(documents).float().clamp_min(1) * size).sqrt()
    width = torch.where(documents < 0, 0.0, width)[..., None]  # [rows, tokens, 1]
    # in fp32: bf16 draws take few distinct values
    uniform = torch.rand(embeddings.shape, dtype=torch.float32, device=embeddings.device)
    return ((2 * uniform - 1) * width).to(embeddings.dtype)


def lengths(documents: Tensor) -> Tensor:
    """Return the length of the document at each position, int64 [rows, tokens]."""
    columns = documents.long() + 1  # from 0; padding is counted in column 0
    counts = torch.zeros(documents.shape[0], documents.shape[1] + 1, dtype=torch.int64, device=documents.device)
    return counts.scatter_add_(1, columns, torch.ones_like(columns)).gather(1, columns)
