"""langdetect's profiles as one matrix: the weight of each letter group for each language, cached on disk.

The profiles count groups of one, two and three letters in Wikipedia's text, by language (Shuyo,
language-detection, Apache-2.0; langdetect is its Python port). The weight of group g for language l is

    weight = round(256 * ln(1 + p / alpha)),   p = share of g among l's groups of its length, alpha = 0.5 / 10,000

which is langdetect's log-probability minus the constant ln(alpha). Integers add up to the same sum in any
order, so a score depends on the text alone, not on the batch, the machine or the number of threads.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import tempfile
import unicodedata
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files

FORMAT = 1  # version of the cached files; other versions are ignored
ALPHA = 0.5 / 10_000  # langdetect's ALPHA_DEFAULT / BASE_FREQ
STEPS = 256  # weight steps per natural logarithm
HASH_BITS = 19  # 2^19 buckets for 88 thousand groups; at most five share a bucket
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, Fibonacci hashing)
SPACE = 32

# flags of a character
LATIN, OTHER_SCRIPT, UPPER = 1, 2, 4


@dataclass(frozen=True)
class Profiles:
    """The matrix of weights and its lookup tables; the last row of `weights` is zero."""

    weights: NDArray[np.int16]  # (groups + 1, languages)
    keys: NDArray[np.uint64]  # (groups + 1,) letters of each group, 16 bits each, sorted by bucket
    starts: NDArray[np.int32]  # (2^HASH_BITS + 1,) start of each bucket in `keys`
    letters: NDArray[np.uint16]  # (65536,) each character as langdetect folds it
    flags: NDArray[np.uint8]  # (65536,) LATIN, OTHER_SCRIPT, UPPER

    def rows(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Return each letter group's row in `weights`; the last row for unknown groups."""
        flat = keys.ravel()
        bucket = buckets(flat)
        rows = self.starts[bucket]
        end = self.starts[bucket + 1]
        open_keys = np.flatnonzero(self.keys[rows] != flat)  # indices still to look up
        while len(open_keys):
            rows[open_keys] += 1
            missing = rows[open_keys] >= end[open_keys]
            rows[open_keys[missing]] = len(self.keys) - 1
            open_keys = open_keys[~missing]
            open_keys = open_keys[self.keys[rows[open_keys]] != flat[open_keys]]
        return rows.reshape(keys.shape)


def buckets(keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Return the hash bucket of each letter group."""
    return ((keys * MULTIPLIER) >> np.uint64(64 - HASH_BITS)).astype(np.int32)


def _folder() -> Path:
    spec = importlib.util.find_spec("langdetect")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0], "profiles")


@functools.cache
def codes() -> tuple[str, ...]:
    """Return langdetect's language codes, sorted."""
    return tuple(sorted(path.name for path in _folder().iterdir() if not path.name.startswith((".", "_"))))


@functools.cache
def load() -> Profiles:
    """Return the profiles, memory-mapped from the user's cache, or built where there is no cache."""
    try:
        folder = profiles_folder()
    except RuntimeError:  # a user without a home
        return build()
    profiles = _read(folder)
    if profiles is None:
        profiles = build()
        if _write(folder, profiles):
            profiles = _read(folder) or profiles  # mapped memory is shared between processes
    return profiles


def profiles_folder() -> Path:
    """Return the folder of the cached arrays; raises RuntimeError for a user without a home."""
    return files.cache_folder() / f"langdetect-{importlib.metadata.version('langdetect')}-{FORMAT}"


def _read(folder: Path) -> Profiles | None:
    try:
        arrays = {
            field.name: np.asarray(np.load(folder / f"{field.name}.npy", mmap_mode="r")) for field in fields(Profiles)
        }
    except (OSError, ValueError, EOFError):
        return None
    profiles = Profiles(**arrays)
    return profiles if profiles.weights.shape == (len(profiles.keys), len(codes())) else None


def _write(folder: Path, profiles: Profiles) -> bool:
    """Write the arrays to a temporary folder and rename it; return False if that is not possible."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            ready = Path(temporary, "ready")
            ready.mkdir()
            for field in fields(profiles):
                with (ready / f"{field.name}.npy").open("wb") as file:
                    np.save(file, getattr(profiles, field.name))
                    file.flush()
                    os.fsync(file.fileno())  # a crash could otherwise leave arrays of zeros of the right shape
            if folder.exists() and _read(folder) is None:
                files.remove(folder, folder.parent)
            ready.rename(folder)
    except OSError:
        return False  # read-only or full disk, or another process was faster
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
    """Return the weights of each letter group, (languages,)."""
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
    """Return a group's letters as one integer, 16 bits each, the last letter lowest."""
    key = 0
    for letter in group:
        key = key << 16 | ord(letter)
    return key


def _letters() -> NDArray[np.uint16]:
    """Return langdetect's folding of the basic plane: punctuation becomes a space, all Hangul one letter, and so on."""
    from langdetect.utils.ngram import NGram  # type: ignore[import-untyped]

    folded = (SPACE if 0xD800 <= code < 0xE000 else ord(NGram.normalize(chr(code))) for code in range(0x10000))
    return np.fromiter(folded, np.uint16, 0x10000)


def _flags() -> NDArray[np.uint8]:
    """Return the flags of all characters of the basic plane: basic Latin, another script, folds to a capital."""
    code = np.arange(0x10000)
    letter = np.fromiter((unicodedata.category(chr(c))[0] in "LM" for c in range(0x10000)), bool, 0x10000)
    # langdetect's bounds: all from 'A' to 'z', and all from U+0300 except Vietnamese. In contrast to langdetect,
    # symbols and emoji are not another script.
    latin = (code >= ord("A")) & (code <= ord("z"))
    other_script = letter & (code >= 0x300) & ~((code >= 0x1E00) & (code <= 0x1EFF))
    upper = np.fromiter((chr(c).isupper() for c in _letters()), bool, 0x10000)
    flags: NDArray[np.uint8] = (latin * LATIN + other_script * OTHER_SCRIPT + upper * UPPER).astype(np.uint8)
    return flags
