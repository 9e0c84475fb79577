"""What the script of a text says about its language: Korean has Hangul, Japanese has kana, Chinese has neither.

langdetect's profiles confuse the three in short texts, since all of them contain Han characters. Simplified and
traditional Chinese differ in characters that only one of two national standards has: GB 2312 and Big5.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.filters.language_id import profiles

FLAGS = HAN, KANA, HANGUL, SIMPLIFIED, TRADITIONAL, LETTER = 1, 2, 4, 8, 16, 32  # of a character
CHINESE = ("zh-cn", "zh-tw")
EAST_ASIAN = (*CHINESE, "ja", "ko")
STRAY_KANA = 10  # Han characters for each kana, from which the kana is a loan (の in a Chinese name)
KANA_TEXT = 5  # Han characters for each kana, up to which a text is Japanese
EXCLUDED = -(1 << 30)  # a score that no language has
RANGES = {  # of the basic plane's characters, each without its end
    HAN: ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00)),
    KANA: ((0x3041, 0x3097), (0x30A1, 0x30FB), (0x31F0, 0x3200), (0xFF66, 0xFF9E)),
    HANGUL: ((0x1100, 0x1200), (0x3131, 0x318F), (0xA960, 0xA980), (0xAC00, 0xD7A4)),
}
_WIDE = "".join(f"{chr(start)}-{chr(stop - 1)}" for ranges in RANGES.values() for start, stop in ranges)
_EAST_ASIAN = re.compile(f"[{_WIDE}]")


class Counts(NamedTuple):
    """How many characters of each kind a text has."""

    han: int
    kana: int
    hangul: int
    simplified: int
    traditional: int
    letters: int


def settle(
    counted: Sequence[Counts | None], scores: NDArray[np.int32], groups: NDArray[np.int64], codes: Sequence[str]
) -> None:
    """Exclude languages that the script of a text rules out, in place; `scores` are (texts, languages)."""
    columns = {code: codes.index(code) for code in EAST_ASIAN}
    for row, counts in enumerate(counted):
        if counts is None:
            continue
        excluded = _exclude(counts)
        if counts.han and 2 * (counts.han + counts.kana + counts.hangul) >= counts.letters:
            kept = [columns[code] for code in EAST_ASIAN if code not in excluded]
            east_asian = scores[row, kept]
            scores[row] = EXCLUDED
            scores[row, kept] = east_asian
            groups[row] = max(1, groups[row])
        else:
            scores[row, [columns[code] for code in excluded]] = EXCLUDED


def _exclude(counts: Counts) -> set[str]:
    """Return the languages that a text with these characters is not in."""
    excluded = set() if counts.hangul else {"ko"}
    if counts.kana * STRAY_KANA < counts.han:
        excluded.add("ja")
    elif counts.kana * KANA_TEXT >= counts.han and not counts.hangul:
        excluded.update(CHINESE)
    return excluded


def chinese_variant(counts: Counts | None, code: str) -> str:
    """Return `zh-cn` for a Chinese text in simplified characters and `zh-tw` in traditional ones, else `code`."""
    if code not in CHINESE or counts is None or counts.simplified == counts.traditional:
        return code
    return "zh-cn" if counts.simplified > counts.traditional else "zh-tw"


def count(text: str) -> Counts | None:
    """Count the characters of a text by kind; None if it has no East Asian ones."""
    if text.isascii() or not _EAST_ASIAN.search(text):
        return None
    wide = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    flags = _table()[np.where(wide < 0x10000, wide, 0)]
    return Counts(*(int(np.count_nonzero(flags & flag)) for flag in FLAGS))


@functools.cache
def _table() -> NDArray[np.uint8]:
    """Return the flags of the basic plane's characters (20 ms)."""
    table = np.zeros(0x10000, np.uint8)
    table[(profiles.load().flags & (profiles.LATIN | profiles.OTHER_SCRIPT)) > 0] = LETTER
    for flag, ranges in RANGES.items():
        for start, stop in ranges:
            table[start:stop] |= flag
    for code in range(0x4E00, 0xA000):
        in_gb, in_big5 = _is_in(chr(code), "gb2312"), _is_in(chr(code), "big5")
        if in_gb != in_big5:
            table[code] |= SIMPLIFIED if in_gb else TRADITIONAL
    return table


def _is_in(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
