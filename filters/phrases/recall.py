"""Read each answer once: a repair, a signal and a filter ask the same of the same texts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import polars as pl

T = TypeVar("T")
Reader = Callable[..., list[T]]  # of texts, and settings: what each text holds, which depends on nothing else


def recall(function: Reader[T]) -> Reader[T]:
    """Return a function that remembers what it returned for the texts of its last call, and reads equal texts once."""
    settings: tuple[Hashable, ...] = ()
    known: Mapping[str, T] = {}

    @functools.wraps(function)
    def read(texts: pl.Series, *arguments: Hashable) -> list[T]:
        nonlocal settings, known
        values: Sequence[str] = texts.to_list()
        earlier = known if arguments == settings else {}
        new = [text for text in dict.fromkeys(values) if text not in earlier]
        found = dict(zip(new, function(pl.Series(new, dtype=pl.String), *arguments), strict=True))
        settings = arguments
        known = {text: found[text] if text in found else earlier[text] for text in values}
        return [known[text] for text in values]

    return read
