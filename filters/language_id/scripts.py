"""What the script of a text says about its language: Korean has Hangul, Japanese has kana, Chinese has neither.

langdetect's profiles confuse the three in short texts, since all of them contain Han characters. Simplified and
traditional Chinese differ in characters that only one of two national standards has: GB 2312 and Big5. Characters that
neither has, but JIS X 0208 among its common ones, are Japanese (庁, 駅, 図), and count as kana.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

from curate.filters.language_id import profiles

KINDS = NO_LETTER, LATIN, HAN, SIMPLIFIED, TRADITIONAL, JAPANESE, KANA, HANGUL, OTHER = range(9)  # of a character
CHINESE = ("zh-cn", "zh-tw")
EAST_ASIAN = (*CHINESE, "ja", "ko")
STRAY_KANA = 10  # Han characters for each kana, from which the kana is a loan (の in a Chinese name)
KANA_TEXT = 5  # Han characters for each kana, up to which a text is Japanese
FOREIGN = 4  # times as many Latin letters, in weight, as a text of another script may have in names and code
HONG_KONG = "説衞鋭閲産裏啓鈎舘録緑増歳黙"  # written there too, although Big5 lacks them
LEVEL_1 = b"\x98\x72"  # the last of it, in Shift JIS
EXCLUDED = -1e9  # a score that no language has
RANGES = {  # of the basic plane's characters, each without its end
    HAN: ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00)),
    KANA: ((0x3041, 0x3097), (0x30A1, 0x30FB), (0x31F0, 0x3200), (0xFF66, 0xFF9E)),
    HANGUL: ((0x1100, 0x1200), (0x3131, 0x318F), (0xA960, 0xA980), (0xAC00, 0xD7A4)),
}


def han(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of Han characters of each text."""
    return np.asarray(counts[:, HAN : JAPANESE + 1].sum(axis=1))


def east_asian(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of Han, kana and Hangul characters of each text."""
    return han(counts) + counts[:, KANA] + counts[:, HANGUL]


def weights(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the letters of each text, an East Asian one counted as two: it says about as much as two others."""
    return 2 * east_asian(counts) + counts[:, LATIN] + counts[:, OTHER]


def spoken(counts: NDArray[np.int64], votes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the letters by kind, (texts, kinds), without Latin ones of names and code in other scripts.

    `votes` are the letters of windows that are surely in each language, (texts, languages).
    """
    counts = counts.copy()
    latin = np.minimum(counts[:, LATIN], votes[:, latin_columns()].sum(axis=1))
    among = FOREIGN * (2 * east_asian(counts) + counts[:, OTHER]) >= counts[:, LATIN]
    counts[:, LATIN] = np.where(among, latin, counts[:, LATIN])
    return counts


def is_east_asian(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether at least half of the letters of each text are East Asian."""
    wide = east_asian(counts)
    decided: NDArray[np.bool_] = (wide > 0) & (wide >= counts[:, LATIN] + counts[:, OTHER])
    return decided


def minor_share(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each text in the second of its scripts: Latin, East Asian, Hangul among Chinese, others."""
    hangul = 2 * np.where(is_chinese_with_hangul(counts), counts[:, HANGUL], 0)
    wide = 2 * east_asian(counts) - hangul
    shares = np.sort(np.stack([counts[:, LATIN], wide, hangul, counts[:, OTHER]], axis=1), axis=1)
    return np.asarray(shares[:, -2] / np.maximum(1, shares.sum(axis=1)))


def is_chinese_with_hangul(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether the Hangul of each text is quoted in simplified Chinese: Korean writes traditional characters."""
    simplified = counts[:, SIMPLIFIED] > counts[:, TRADITIONAL]
    return np.asarray(simplified & (counts[:, HANGUL] > 0) & (counts[:, KANA] == 0) & (han(counts) > counts[:, HANGUL]))


def settle(counts: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
    """Exclude languages that the script of each text rules out, in place; `scores` are (texts, languages)."""
    ideographs, wide = han(counts), east_asian(counts)
    kana, hangul = counts[:, KANA] + counts[:, JAPANESE], counts[:, HANGUL]
    settled = is_east_asian(counts)
    excluded = {
        "ko": (hangul == 0) | is_chinese_with_hangul(counts),
        "ja": kana * STRAY_KANA < ideographs,
        **dict.fromkeys(CHINESE, (kana * KANA_TEXT >= ideographs) & (kana > 0) & (hangul == 0)),
    }
    scores[np.ix_(2 * counts[:, OTHER] > weights(counts), latin_columns())] = EXCLUDED
    for column, code in enumerate(profiles.codes()):
        if code in EAST_ASIAN:
            scores[excluded[code] & (wide > 0), column] = EXCLUDED
        else:
            scores[settled, column] = EXCLUDED


def variants(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 1 for each text whose Chinese is simplified, -1 if it is traditional, 0 if nothing tells."""
    return np.asarray(np.sign(counts[:, SIMPLIFIED] - counts[:, TRADITIONAL]))


def count(text: str) -> NDArray[np.int64]:
    """Return the number of characters of each kind, (kinds,)."""
    return np.bincount(table()[np.frombuffer(text.encode("utf-16-le", "replace"), np.uint16)], minlength=len(KINDS))


def count_all(characters: NDArray[np.uint16], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of characters of each kind, (texts, kinds), in concatenated texts of these sizes."""
    kinds = table()[characters] + np.repeat(np.arange(len(sizes)) * len(KINDS), sizes)
    return np.bincount(kinds, minlength=len(sizes) * len(KINDS)).reshape(-1, len(KINDS))


@functools.cache
def latin_columns() -> NDArray[np.int64]:
    """Return the columns of the languages that are written in Latin letters."""
    known = profiles.load()
    single = np.flatnonzero(known.keys < 0x10000)[:-1]  # the last key is that of unknown groups
    shares = np.expm1(known.weights[single] / profiles.STEPS)  # (letters, languages) in proportion
    latin = table()[known.keys[single]] == LATIN
    return np.flatnonzero(shares[latin].sum(axis=0) > shares[~latin].sum(axis=0))


@functools.cache
def table() -> NDArray[np.uint8]:
    """Return the kinds of the basic plane's characters (50 ms)."""
    kinds = np.zeros(0x10000, np.uint8)
    for code in range(0x10000):
        if unicodedata.category(chr(code))[0] in "LM":
            kinds[code] = LATIN if code < 0x250 or 0x1E00 <= code < 0x1F00 else OTHER
    for kind, ranges in RANGES.items():
        for start, stop in ranges:
            kinds[start:stop] = kind
    for code in range(0x4E00, 0xA000):
        in_gb, in_big5 = _is_in(chr(code), "gb2312"), _is_in(chr(code), "big5")
        if in_gb != in_big5:
            kinds[code] = SIMPLIFIED if in_gb else TRADITIONAL
        elif not in_gb and _is_japanese(chr(code)):
            kinds[code] = JAPANESE
    return kinds


def _is_japanese(character: str) -> bool:
    """Return whether a character that Chinese standards lack is of the first level of JIS X 0208, the common ones."""
    return character not in HONG_KONG and b"\x88\x9f" <= character.encode("shift_jis", "ignore") <= LEVEL_1


def _is_in(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
