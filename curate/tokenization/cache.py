"""Keep built tokenizers on disk, so that the next process loads them at once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from curate import files
from curate.tokenization.vocabulary import Vocabulary

if TYPE_CHECKING:
    pass


_FORMAT = 1  # of the cached tokenizer.json; raise it whenever what is built changes


# ---- the cache of built tokenizer.json files


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "curate" / "tokenizers"


def built_document(vocab: Vocabulary, digest: str) -> str:
    """Return tokenizer.json, from the cache where it holds it whole, else built and put there."""
    if vocab.kind == "json":
        return vocab.build()
    try:
        file = _cache_folder() / f"{digest[:32]}.{_FORMAT}.json"
        seal, _, cached = file.read_text(encoding="utf-8").partition("\n")
        if seal == hashlib.sha256(cached.encode()).hexdigest():
            return cached
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home directory
        pass
    built = vocab.build()
    _store(built, digest)
    return built


def _store(document: str, digest: str) -> None:
    """Put a built tokenizer.json into the cache, whole or not at all; without a writable cache, do nothing."""
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may write at once: the checksum in the first line tells a damaged file when it is read.
        seal = hashlib.sha256(document.encode()).hexdigest()
        files.write_text(folder / f"{digest[:32]}.{_FORMAT}.json", f"{seal}\n{document}")
    except (OSError, RuntimeError):
        return
