"""ROUGE-L between short texts: which earlier text a new one is too much like.

F of ROUGE-L is 2·LCS / (m + M) for texts of m and M words whose longest common subsequence has LCS words (Lin, 2004).
As LCS is at most min(m, M), texts of very different lengths are not compared.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from rapidfuzz import process
from rapidfuzz.distance import LCSseq

# Words; scripts without blanks between words count by character: Thai, Lao, Khmer, kana, Han.
_WORD = re.compile(r"[฀-໿ក-៿぀-ヿ㐀-䶿一-鿿豈-﫿]|[^\W_]+?(?=[฀-໿ក-៿぀-ヿ㐀-䶿一-鿿豈-﫿]|[\W_]|$)")
_SURROGATES, _GAP = 0xD800, 0x800


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Near:
    """The nearest earlier text: its name, and F of ROUGE-L."""

    name: str
    score: float


class SimilarTexts:
    """Texts so far, of which the nearest to a new one is found if its F is over `limit`."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._ids: dict[str, str] = {}  # word to a character
        self._texts: defaultdict[int, dict[str, str]] = defaultdict(dict)  # by number of words: name to characters

    def nearest(self, text: str, ignored: Collection[str] = ()) -> Near | None:
        """Return the nearest text over the limit, the first of several as near; those named `ignored` do not count."""
        encoded = self._encode(text)
        best: Near | None = None
        for length in sorted(self._texts):
            total = len(encoded) + length
            if total and 2 * min(len(encoded), length) / total > self.limit:
                best = self._nearest_of(encoded, length, ignored, best)
        return best

    def _nearest_of(self, encoded: str, length: int, ignored: Collection[str], best: Near | None) -> Near | None:
        total = len(encoded) + length
        least = math.floor(self.limit * total / 2)  # F = 2·LCS / total must be over the limit
        found = process.extract(
            encoded,
            self._texts[length],
            scorer=LCSseq.similarity,
            score_cutoff=max(1, least),
            limit=None,
            processor=None,
        )
        for _, common, name in found:
            score = 2 * common / total
            if score > (self.limit if best is None else best.score) and name not in ignored:
                best = Near(name, score)
        return best

    def score(self, first: str, second: str) -> float:
        """Return F of ROUGE-L of two texts; two texts without words are equal."""
        one, other = self._encode(first), self._encode(second)
        total = len(one) + len(other)
        return 2 * LCSseq.similarity(one, other) / total if total else 1.0

    def add(self, name: str, text: str) -> None:
        """Add a text."""
        encoded = self._encode(text)
        self._texts[len(encoded)][name] = encoded

    def _encode(self, text: str) -> str:
        """Return a text with one character for each word."""
        ids = self._ids
        return "".join(ids.get(word) or ids.setdefault(word, _character(len(ids))) for word in words(text))


def _character(number: int) -> str:
    """Return a character for the number of a word; after a million words, numbers come again."""
    number %= 0x110000 - _GAP
    return chr(number if number < _SURROGATES else number + _GAP)
