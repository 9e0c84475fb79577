"""What is read of a tokenizer.json, with its types; the tokenizers library checks the rest."""

from __future__ import annotations

from typing import Annotated

import msgspec

Id = Annotated[int, msgspec.Meta(ge=0, lt=10_000_000)]  # the libraries allocate up to the largest


class _AddedToken(msgspec.Struct):
    id: Id
    content: str
    special: bool | None = None


class _Model(msgspec.Struct):
    vocab: dict[str, Id] | list[tuple[str, float]]


class _Document(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] | None = None


def count_entries(document: object) -> int:
    """Return the number of entries of a tokenizer.json's vocabulary; raises ValueError for values of other types."""
    return len(msgspec.convert(document, _Document).model.vocab)
