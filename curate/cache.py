"""The folder of the user's cache, where built tokenizers and language profiles are stored."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/curate`, or else `~/.cache/curate`; raises RuntimeError for a user without a home."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))  # the XDG specification says to ignore a relative path
    return (root if root.is_absolute() else Path.home() / ".cache") / "curate"
