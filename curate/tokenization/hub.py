"""Download named files of a Hugging Face Hub repository."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate.errors import CurateError, TokenizerError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def download(
    name: str,
    files: Sequence[str],
    *,
    needed: str = "tokenizer.json or tokenizer.model",
    error: type[CurateError] = TokenizerError,
    revision: str | None = None,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Path:
    """Download the files of a Hub repository that match `files` into the Hub's own cache; return the folder.

    Raises `error` with what to do; `needed` names the files to get by hand.
    """
    import huggingface_hub as hub

    utils: Any = importlib.import_module("huggingface_hub.utils")
    bars_enabled = not utils.are_progress_bars_disabled()
    utils.disable_progress_bars()  # curate prints only from its commands
    try:
        return Path(
            hub.snapshot_download(
                name, allow_patterns=list(files), revision=revision, endpoint=endpoint, cache_dir=cache
            )
        )
    except (OSError, ValueError, hub.errors.EntryNotFoundError) as cause:
        raise error(_hub_failure(name, cause, endpoint or "https://huggingface.co", needed)) from None
    finally:
        if bars_enabled:
            utils.enable_progress_bars()


def _hub_failure(name: str, error: Exception, endpoint: str, needed: str) -> str:
    """Return an error message of one line: why a download failed, and what to do."""
    from huggingface_hub import errors

    causes = [error]  # huggingface_hub wraps the first cause in general errors
    while causes[-1].__cause__ is not None and isinstance(causes[-1].__cause__, Exception):
        causes.append(causes[-1].__cause__)
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return f"{name!r} is gated: ask for access at {endpoint}/{name}, then log in with: hf auth login"
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
        return (
            f"no folder {name!r} here, and no such repository at {endpoint}/{name} (private ones need: hf auth login)"
        )
    if isinstance(error, ValueError):
        return f"{name!r} is neither a folder, a file nor a Hub name of the form org/name"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        problem = f"the disk is full, so {name!r} cannot be downloaded from the Hub"
        return f"{problem}; free some space, or set HF_HOME to another disk"
    return (
        f"no folder {name!r} here, and the Hub cannot be reached; download its {needed} "
        "on a machine with a network, and give that folder"
    )
