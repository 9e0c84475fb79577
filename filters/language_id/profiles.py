"""langdetect's own profiles as one matrix: what each letter group says for each language, kept ready on disk.

The profiles are counts of groups of one, two and three letters in Wikipedia's text, by language (Shuyo,
language-detection, Apache-2.0; langdetect is its Python port). Here group g speaks for language l with

    weight = round(256 * ln(1 + p / alpha)),   p = share of g among l's groups of its length, alpha = 0.5 / 10,000

which is langdetect's own log-probability less the constant ln(alpha). Whole numbers add up to the same sum in any
order, so that a score depends on the text alone: not on the batch, the machine or the number of threads.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
import unicodedata
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1  # of the files on disk; a change here makes old ones be left alone
ALPHA = 0.5 / 10_000  # langdetect's ALPHA_DEFAULT / BASE_FREQ
STEPS = 256  # weight steps per natural logarithm
HASH_BITS = 19  # buckets of groups: 2^19 for 88 thousand, five in the fullest
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, Fibonacci hashing)
SPACE = 32

# what a character is to the cleaning, as flags
LATIN, OTHER_SCRIPT, UPPER = 1, 2, 4


@dataclass(frozen=True)
class Profiles:
    """The matrix and the tables around it, one row of `weights` for each letter group and a last one of zeros."""

    weights: NDArray[np.int16]  # (groups + 1, languages)
    keys: NDArray[np.uint64]  # (groups + 1,) the letters of each group, 16 bits each, in order of bucket
    starts: NDArray[np.int32]  # (2^HASH_BITS + 1,) where each bucket begins in `keys`
    letters: NDArray[np.uint16]  # (65536,) each character as langdetect folds it
    flags: NDArray[np.uint8]  # (65536,) LATIN, OTHER_SCRIPT, UPPER

    def rows(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Return the row of each letter group in `weights`; the last row for those that no profile knows."""
        flat = keys.ravel()
        bucket = buckets(flat)
        rows = self.starts[bucket]
        end = self.starts[bucket + 1]
        left = np.flatnonzero(self.keys[rows] != flat)
        while len(left):
            rows[left] += 1
            over = rows[left] >= end[left]
            rows[left[over]] = len(self.keys) - 1
            left = left[~over]
            left = left[self.keys[rows[left]] != flat[left]]
        return rows.reshape(keys.shape)


def buckets(keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Return the bucket each letter group hashes to."""
    return ((keys * MULTIPLIER) >> np.uint64(64 - HASH_BITS)).astype(np.int32)


def _folder() -> Path:
    spec = importlib.util.find_spec("langdetect")
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0], "profiles")


@functools.cache
def codes() -> tuple[str, ...]:
    """Return the codes of the languages langdetect knows, in alphabetical order."""
    return tuple(sorted(path.name for path in _folder().iterdir() if not path.name.startswith((".", "_"))))


@functools.cache
def load() -> Profiles:
    """Return the profiles, mapped from the user's cache (shared between processes), or built where there is none."""
    try:
        folder = cache_folder()
    except RuntimeError:  # a user without a home
        return build()
    found = _read(folder)
    if found is None:
        found = build()
        if _write(folder, found):
            found = _read(folder) or found  # mapped, so that processes share it
    return found


def cache_folder() -> Path:
    """Return where the built arrays are kept: `$XDG_CACHE_HOME/curate`, or `~/.cache/curate`."""
    home = os.environ.get("XDG_CACHE_HOME", "")  # a relative one is to be ignored (XDG base directories)
    return Path(
        home if Path(home).is_absolute() else Path("~/.cache").expanduser(),
        "curate",
        f"langdetect-{importlib.metadata.version('langdetect')}-{FORMAT}",
    )


def _read(folder: Path) -> Profiles | None:
    try:
        arrays = {
            field.name: np.asarray(np.load(folder / f"{field.name}.npy", mmap_mode="r")) for field in fields(Profiles)
        }
    except (OSError, ValueError, EOFError):
        return None
    found = Profiles(**arrays)
    return found if found.weights.shape == (len(found.keys), len(codes())) else None


def _write(folder: Path, profiles: Profiles) -> bool:
    """Write the arrays aside and rename them into place; false where that is not possible."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
            ready = Path(aside, "ready")
            ready.mkdir()
            for field in fields(profiles):
                with (ready / f"{field.name}.npy").open("wb") as file:
                    np.save(file, getattr(profiles, field.name))
                    file.flush()
                    os.fsync(file.fileno())  # or a crash could leave arrays of zeros behind, of the right shape
            if folder.exists() and _read(folder) is None:
                shutil.rmtree(folder)
            ready.rename(folder)
    except OSError:
        return False  # read-only, full, or another process was first
    return True


def build() -> Profiles:
    """Build the arrays from langdetect's profile files (0.5 s)."""
    weights = _weights()
    keys = np.fromiter(map(_key, weights), np.uint64, len(weights))
    order = np.lexsort((keys, buckets(keys)))
    matrix = np.zeros((len(weights) + 1, len(codes())), np.int16)
    matrix[:-1] = np.stack(list(weights.values()))[order]
    starts = np.searchsorted(buckets(keys)[order], np.arange((1 << HASH_BITS) + 1)).astype(np.int32)
    return Profiles(matrix, np.append(keys[order], np.uint64(0)), starts, _letters(), _flags())


def _weights() -> dict[str, NDArray[np.int16]]:
    """Return each letter group's weights, one for each language."""
    weights: dict[str, NDArray[np.int16]] = {}
    for column, code in enumerate(codes()):
        profile: dict[str, Any] = json.loads(Path(_folder(), code).read_text(encoding="utf-8"))
        groups = [group for group in profile["freq"] if 1 <= len(group) <= 3]
        counts = np.array([profile["freq"][group] for group in groups], np.float64)
        totals = np.array([profile["n_words"][len(group) - 1] for group in groups], np.float64)
        steps = np.rint(np.log1p(counts / totals / ALPHA) * STEPS).astype(np.int16)
        for group, step in zip(groups, steps, strict=True):
            weights.setdefault(group, np.zeros(len(codes()), np.int16))[column] = step
    return weights


def _key(group: str) -> int:
    """Pack a group's letters, 16 bits each, the last one lowest."""
    key = 0
    for letter in group:
        key = key << 16 | ord(letter)
    return key


def _letters() -> NDArray[np.uint16]:
    """Fold every character of the basic plane as langdetect does: punctuation to space, Hangul to one letter…"""
    from langdetect.utils.ngram import NGram  # type: ignore[import-untyped]

    folded = (SPACE if 0xD800 <= code < 0xE000 else ord(NGram.normalize(chr(code))) for code in range(0x10000))
    return np.fromiter(folded, np.uint16, 0x10000)


def _flags() -> NDArray[np.uint8]:
    """Say of every character of the basic plane whether it is basic Latin, of another script, a folded capital."""
    code = np.arange(0x10000)
    letter = np.fromiter((unicodedata.category(chr(c))[0] in "LM" for c in range(0x10000)), bool, 0x10000)
    # langdetect's bounds: 'A' to 'z' with what lies between, and all from U+0300 but Vietnamese; symbols and
    # emoji, which it counts as another script, are left out here
    latin = (code >= ord("A")) & (code <= ord("z"))
    other = letter & (code >= 0x300) & ~((code >= 0x1E00) & (code <= 0x1EFF))
    upper = np.fromiter((chr(c).isupper() for c in _letters()), bool, 0x10000)
    flags: NDArray[np.uint8] = (latin * LATIN + other * OTHER_SCRIPT + upper * UPPER).astype(np.uint8)
    return flags
