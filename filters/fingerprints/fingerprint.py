"""A benchmark's fingerprint: the hashes of its items' words, without their text, in one file.

    {"curate_fingerprint": 1, "benchmark": "gsm8k", …, "sha256": "…"}\\n    the header: one line of JSON, ASCII
    ids          UTF-8, one on each line; an item that has several texts is there once for each
    words        uint32, little-endian: the number of words of each text
    hashes       48 bits each, little-endian: those of each text's 8-grams in order, or one for a text of fewer words
    texts        JSON, a list of the texts; only in a user's own file that was written with them

A gram's position in its text is its place in the text's hashes. Every size is in the header or follows from it, and the
digest covers all that follows the header, so a file that was cut or changed is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.filters.fingerprints.grams import GRAM, HASH_BITS, Hashes
from curate.filters.fingerprints.header import Header, damaged, read_parts

MAX_ID = 200  # characters
HASH_BYTES = HASH_BITS // 8


@dataclass(frozen=True)
class Fingerprint:
    """The texts of a benchmark's items as hashes: `hashes` has those of the first text, then of the second, …"""

    benchmark: str
    ids: Sequence[str]
    words: NDArray[np.int64]
    hashes: Hashes
    texts: Sequence[str] = ()  # empty, or one for each id

    @property
    def items(self) -> int:
        """The number of items."""
        return len(set(self.ids))


def count_grams(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many hashes texts of these numbers of words have."""
    return np.maximum(words - GRAM + 1, 1)


def write(fingerprint: Fingerprint, target: Path) -> int:
    """Write a fingerprint whole or not at all; return its number of bytes."""
    words = fingerprint.words.astype("<u4").tobytes()
    hashes = fingerprint.hashes.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :HASH_BYTES].tobytes()
    ids = "\n".join(fingerprint.ids).encode()
    texts = json.dumps(list(fingerprint.texts)).encode() if fingerprint.texts else b""
    body = b"".join((ids, words, hashes, texts))
    digest = hashlib.sha256(body).hexdigest()
    header = Header(fingerprint.benchmark, len(fingerprint.ids), len(fingerprint.hashes), len(ids), digest)
    data = header.encode() + body
    with files.replacing(target, follow_link=True) as partial:
        partial.write_bytes(data)
    return len(data)


def read(path: Path) -> Fingerprint:
    """Read a fingerprint; raises InputError if the file is missing, damaged, too large or none."""
    header, body = read_parts(path)
    count, hash_count, id_bytes = header.texts, header.hashes, header.id_bytes
    words_end = id_bytes + 4 * count
    hashes_end = words_end + HASH_BYTES * hash_count
    if len(body) < hashes_end:
        raise damaged(path, f"it has {len(body):,} bytes after its header, fewer than the {hashes_end:,} announced")
    ids = _read_ids(path, body[:id_bytes], count)
    words = np.frombuffer(body[id_bytes:words_end], "<u4").astype(np.int64)
    if count == 0 or int(words.min()) < 1 or int(count_grams(words).sum()) != hash_count:
        raise damaged(path, "its numbers of words and of hashes do not agree")
    hashes = np.zeros((hash_count, 8), np.uint8)
    hashes[:, :HASH_BYTES] = np.frombuffer(body[words_end:hashes_end], np.uint8).reshape(-1, HASH_BYTES)
    texts = _read_texts(path, body[hashes_end:], count)
    return Fingerprint(header.benchmark, ids, words, hashes.view("<u8").ravel().astype(np.uint64), texts)


def _read_ids(path: Path, data: bytes, count: int) -> list[str]:
    try:
        ids = data.decode().split("\n")
    except UnicodeDecodeError:
        ids = []
    if len(ids) != count or not all(map(is_id, ids)):
        raise damaged(path, "its ids cannot be read")
    return ids


def _read_texts(path: Path, data: bytes, count: int) -> list[str]:
    try:
        texts = json.loads(data) if data else []
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or len(texts) not in (0, count) or not all(isinstance(text, str) for text in texts):
        raise damaged(path, "its texts cannot be read")
    return texts


def is_id(text: str) -> bool:
    """Return whether a text can be an item's id: printable, on one line, not too long."""
    return 0 < len(text) <= MAX_ID and text.isprintable()
