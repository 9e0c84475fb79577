"""Where a tokenizer's files are: beside an installed package, on this disk, or on the Hugging Face Hub."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from curate.errors import TokenizerError, did_you_mean
from curate.tokenization.hub import HUB_NAME, download

DEFAULT = "llama3"
VOCABULARIES = ("tokenizer.json", "tokenizer.model")  # in order of preference: serving follows the first
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")


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
        return _in_folder(download(text, (*VOCABULARIES, *CONFIGS)), text)
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
