"""Cache built tokenizer.json files on disk, so that later processes load them quickly."""

from __future__ import annotations

import hashlib
from pathlib import Path

from curate import files
from curate.errors import UnsafePathError
from curate.tokenization.vocabulary import Vocabulary

_FORMAT = 1  # version of the cache; raise it when `Vocabulary.build` changes its result


def tokenizers_folder() -> Path:
    """Return the folder of the cached files; raises RuntimeError for a user without a home."""
    return files.cache_folder() / "tokenizers"


def load_or_build(vocab: Vocabulary, digest: str) -> str:
    """Return a vocabulary's tokenizer.json, from the cache if it is intact there, else built and cached.

    `digest` is the SHA-256 of the vocabulary file.
    """
    if vocab.kind == "json":
        return vocab.build()
    try:
        file = tokenizers_folder() / f"{digest[:32]}.{_FORMAT}.json"
        with files.open_own(file) as opened:
            checksum, _, document = opened.read().decode().partition("\n")
        if checksum == hashlib.sha256(document.encode()).hexdigest():
            return document
    except (OSError, ValueError, RuntimeError, UnsafePathError):  # RuntimeError: no home
        pass
    document = vocab.build()
    _store(document, digest)
    return document


def _store(document: str, digest: str) -> None:
    """Write a tokenizer.json to the cache; do nothing if the cache is not writable."""
    try:
        folder = tokenizers_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may write at once: the checksum in the first line reveals a damaged file.
        checksum = hashlib.sha256(document.encode()).hexdigest()
        files.write_text(folder / f"{digest[:32]}.{_FORMAT}.json", f"{checksum}\n{document}")
    except (OSError, RuntimeError, UnsafePathError):
        return
