"""Make a fingerprint of a benchmark's items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from curate.errors import InputError
from curate.filters.fingerprints.fingerprint import Fingerprint
from curate.filters.fingerprints.grams import BLOCK, GRAM, Hashes, count_words, hash_grams

MIN_WORDS = 3  # a shorter text ("Yes.") says nothing about where it comes from


@dataclass(frozen=True)
class Item:
    """An item of a benchmark: its id and its texts. Each is looked for by itself.

    `choices` are added to the first text, as a further one.
    """

    id: str
    texts: Sequence[str]
    choices: Sequence[str] = ()

    def all_texts(self) -> list[str]:
        """Return the texts, and the first with its choices as A, B, C, … if it is too short to be told by itself."""
        if not self.choices or count_words(self.texts[0][:BLOCK]) >= GRAM:
            return list(self.texts)
        lettered = [f"{_letter(place)}. {choice}" for place, choice in enumerate(self.choices)]
        return [*self.texts, "\n".join([self.texts[0], *lettered])]


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


@dataclass(frozen=True)
class Built:
    """A fingerprint, and what of the items is not in it, or not whole: numbers of texts."""

    fingerprint: Fingerprint
    repeated: int  # the same words as an earlier text
    too_short: int
    cut: int  # after BLOCK characters


def build(benchmark: str, items: Iterable[Item], *, with_texts: bool = False) -> Built:
    """Make a fingerprint; raises InputError if no text has enough words."""
    ids: list[str] = []
    words: list[int] = []
    hashes: list[Hashes] = []
    texts: list[str] = []
    seen: set[bytes] = set()
    repeated = too_short = cut = 0
    for item in items:
        for text in item.all_texts():
            cut += len(text) > BLOCK
            count, grams = count_words(text[:BLOCK]), hash_grams([text[:BLOCK]]).hashes
            if count < MIN_WORDS:
                too_short += 1
            elif (key := grams.tobytes()) in seen:
                repeated += 1
            else:
                seen.add(key)
                ids.append(item.id)
                words.append(count)
                hashes.append(grams)
                texts.append(text)
    if not ids:
        raise InputError(f"benchmark {benchmark!r} has no text of at least {MIN_WORDS} words; is it the right column?")
    fingerprint = Fingerprint(benchmark, ids, np.array(words), np.concatenate(hashes), texts if with_texts else ())
    return Built(fingerprint, repeated, too_short, cut)
