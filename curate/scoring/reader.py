"""A model that reads documents in packed rows, and what it makes of the tokens that are scored.

Rows have a fixed length, and a forward pass takes as many as the token budget allows, so memory does not depend on the
set. Logits are computed for scored tokens alone, in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curate.errors import CurateError
from curate.model.attention.selection import ChosenKernel, Heads, choose_kernel, install_kernel
from curate.model.device import is_out_of_memory
from curate.model.sizes import Shape
from curate.scoring.documents import Documents
from curate.train.objectives.loss import CausalLoss, check_packed_logits
from curate.train.packing import Batch, PackedData, pack

Scores = NDArray[np.float64]
Read = Callable[[Tensor, Batch], Tensor]  # of hidden states [rows, tokens, size]: values for each scored token


class Reader:
    """Reads documents with a model, at most `budget` tokens in a forward pass, or one row of `row_tokens`."""

    def __init__(self, model: nn.Module, shape: Shape, *, row_tokens: int, budget: int) -> None:
        parameter = next(model.parameters())
        self.device, dtype = parameter.device, parameter.dtype
        heads = Heads(shape.heads, shape.kv_heads, shape.head_size)
        self.attention: ChosenKernel = install_kernel(model, choose_kernel(self.device, dtype, heads=heads))
        self.module = CausalLoss(model).eval()
        self.row_tokens, self.budget = row_tokens, budget
        check_packed_logits(self.module, self.attention)

    def losses(self, documents: Documents) -> list[Scores]:
        """Return the loss of each scored token, in nats, for each document [scored]."""
        return self._by_document(documents, self.module.token_losses)

    def log_probabilities(self, documents: Documents, ids: Sequence[int]) -> list[Scores]:
        """Return the log-probability of each of some `ids` in place of each scored token [scored, ids]."""
        wanted = torch.tensor(list(ids), device=self.device)
        return self._by_document(documents, lambda hidden, batch: self.module.log_probabilities(hidden, batch, wanted))

    def _by_document(self, documents: Documents, read: Read) -> list[Scores]:
        counts = _scored(documents)
        results: list[Scores] = [np.zeros(0)] * len(counts)
        for members, values in self._read(documents, read):
            bounds = np.cumsum([counts[member] for member in members])[:-1]
            for member, scores in zip(members, np.split(values, bounds), strict=True):
                results[member] = scores
        return results

    @torch.no_grad()
    def _read(self, documents: Documents, read: Read) -> Iterator[tuple[list[int], Scores]]:
        """Yield the documents of each forward pass, by index, with the scores of all of them, in the same order."""
        on_gpu = self.device.type == "cuda"
        # On a GPU all batches have one shape, so that nothing is compiled again; on a CPU rows are as long as needed.
        row_tokens = self.row_tokens if on_gpu else min(self.row_tokens, int(documents.offsets[-1]))
        packed = PackedData(documents, pack(documents.lengths, row_tokens).rows, row_tokens)
        count = max(1, self.budget // row_tokens)
        for start in range(0, len(packed.rows), count):
            rows = range(start, min(start + count, len(packed.rows)))
            batch = packed.batch(rows, count if on_gpu else 0).to(self.device)
            try:
                values = read(self.module.body(batch, self.attention), batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise CurateError(
                    f"{count * row_tokens:,} tokens at a time do not fit the memory of {self.device}; give fewer: "
                    f"--batch-tokens {max(1, count // 2) * row_tokens}, or a smaller --max-tokens"
                ) from None
            yield [member for row in rows for member in packed.rows[row]], values.double().cpu().numpy()


def _scored(documents: Documents) -> list[int]:
    """Return the number of scored tokens of each document."""
    sums = np.concatenate([[0], np.cumsum(documents.loss_mask)])
    counts: list[int] = np.diff(sums[documents.offsets]).tolist()
    return counts
