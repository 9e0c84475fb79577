"""Where a tokenizer's files are: beside an installed package, on this disk, or on the Hugging Face Hub."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.errors import CurateError, TokenizerError, did_you_mean

DEFAULT = "llama3"
VOCABULARIES = ("tokenizer.json", "tokenizer.model")  # in order of preference: serving follows the first
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class TokenizerFiles:
    """A vocabulary file, a second one of the same folder to hold it against, and what names its BOS and EOS."""

    name: str
    vocabulary: Path
    other: Path | None
    folder: Path


def find(name: str | None) -> TokenizerFiles:
    """Find a tokenizer by name: `llama3` (also null), a folder, a file, or a Hub name `org/name`.

    Raises TokenizerError with what to type instead.
    """
    if name in (None, DEFAULT):
        return _installed_llama3()
    path = Path(str(name)).expanduser()
    if path.is_dir():
        return _in_folder(path, path.resolve().name)
    if path.is_file():
        return TokenizerFiles(path.name, path, None, path.parent)
    text = str(name)
    if HUB_NAME.fullmatch(text) and not path.parent.is_dir():
        return _in_folder(download(text), text)
    raise TokenizerError(f"no tokenizer at {text!r}{_nearest(path)}")


def _nearest(path: Path) -> str:
    """Return a hint: the nearest name in the folder that was meant, or the forms that are allowed."""
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    hint = did_you_mean(path.name, [*names, DEFAULT]) if names else ""
    if "did you mean" in hint:
        return hint
    return f"; give {DEFAULT!r}, a folder or file with a tokenizer, or a Hub name such as 'meta-llama/Llama-2-7b-hf'"


def _in_folder(folder: Path, name: str) -> TokenizerFiles:
    found = [folder / file for file in VOCABULARIES if (folder / file).is_file()]
    if not found:
        raise TokenizerError(f"{name!r} holds neither a tokenizer.json nor a tokenizer.model; give a folder that does")
    return TokenizerFiles(name, found[0], found[1] if len(found) > 1 else None, folder)


def _installed_llama3() -> TokenizerFiles:
    """Find LLaMA-3's file in the `llama-models` distribution, without importing its packages."""
    for package in ("llama_models", "models"):
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        for folder in spec.submodule_search_locations or () if spec else ():
            file = Path(folder) / "llama3" / "tokenizer.model"
            if file.is_file():
                return TokenizerFiles(DEFAULT, file, None, file.parent)
    raise TokenizerError(
        "LLaMA-3's tokenizer is not installed; type: pip install 'curate-chat[llama3]', or give --tokenizer FOLDER"
    )


def download(
    name: str,
    files: Sequence[str] = (*VOCABULARIES, *CONFIGS),
    *,
    what: str = "tokenizer.json or tokenizer.model",
    error: type[CurateError] = TokenizerError,
    revision: str | None = None,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Path:
    """Download some files of a Hub repository, and nothing else, into the Hub's own cache; return the folder.

    Raises `error` with what to do; `what` is then what to bring here by hand.
    """
    import huggingface_hub as hub

    utils: Any = importlib.import_module("huggingface_hub.utils")
    shown = not utils.are_progress_bars_disabled()
    utils.disable_progress_bars()  # curate prints only from its commands
    try:
        return Path(
            hub.snapshot_download(
                name, allow_patterns=list(files), revision=revision, endpoint=endpoint, cache_dir=cache
            )
        )
    except (OSError, ValueError, hub.errors.EntryNotFoundError) as cause:
        raise error(_hub_failure(name, cause, endpoint or "https://huggingface.co", what)) from None
    finally:
        if shown:
            utils.enable_progress_bars()


def _hub_failure(name: str, error: Exception, endpoint: str, what: str) -> str:
    """Say in one line why a download failed, and what to do."""
    from huggingface_hub import errors

    causes = [error]
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
        return f"the disk is full while {name!r} is downloaded from the Hub; make room, or set HF_HOME to another disk"
    return (
        f"no folder {name!r} here, and the Hub cannot be reached; download its {what} "
        "where there is a network, and give that folder"
    )


def named_token(folder: Path, key: str) -> str | None:
    """Return the token that a folder's configuration names for `bos_token` or `eos_token`, null if none does."""
    for file in CONFIGS:
        try:
            value = json.loads((folder / file).read_bytes()).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            return content
    return None
