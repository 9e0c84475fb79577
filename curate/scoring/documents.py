"""Documents to read: token ids, and the tokens whose probability is wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Document:
    """One text as a model reads it: `ids` and `loss_mask`, both [tokens]; the first token is never masked in."""

    ids: Ids
    loss_mask: Mask  # tokens that are scored, each by the state of the token before it

    @property
    def scored(self) -> int:
        """The number of tokens that are scored."""
        return int(self.loss_mask.sum())


@dataclass(frozen=True)
class Documents:
    """Documents in one array each, as packing takes them; number i is `offsets[i]` to `offsets[i + 1]`."""

    ids: Ids  # [tokens]
    loss_mask: Mask  # [tokens]
    offsets: NDArray[np.int64]  # [documents + 1]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document [documents]."""
        return np.diff(self.offsets)

    def digest(self) -> str:
        """Return a hash of ids, masks and lengths."""
        digest = hashlib.sha256()
        for array in (self.offsets, self.ids, self.loss_mask):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def concatenate(documents: Sequence[Document]) -> Documents:
    """Concatenate documents in their order."""
    offsets = np.zeros(len(documents) + 1, dtype=np.int64)
    np.cumsum([len(document.ids) for document in documents], out=offsets[1:])
    return Documents(
        np.concatenate([np.zeros(0, np.int32), *(document.ids for document in documents)]),
        np.concatenate([np.zeros(0, np.bool_), *(document.loss_mask for document in documents)]),
        offsets,
    )
