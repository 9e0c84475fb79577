"""Find a tokenizer's files: in an installed package, on disk, or on the Hugging Face Hub."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from curate.errors import TokenizerError, did_you_mean, install_command
from curate.files import read_whole
from curate.tokenization.hub import HUB_NAME, download

DEFAULT_TOKENIZER = "llama3"
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")  # in order of preference, which is that of serving engines
CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of one tokenizer."""

    name: str
    vocabulary: Path
    second_vocabulary: Path | None  # of the same folder, to compare with the first
    folder: Path  # with the configuration that names BOS and EOS


def find_tokenizer_files(name: str | None) -> TokenizerFiles:
    """Find a tokenizer: `llama3` (the default, None), a folder, a file, or a Hub name `org/name`.

    Raises TokenizerError with what to type instead.
    """
    if name in (None, DEFAULT_TOKENIZER):
        return _installed_llama3()
    path = Path(str(name)).expanduser()
    if path.is_dir():
        return _in_folder(path, path.resolve().name)
    if path.is_file():
        return TokenizerFiles(path.name, path, None, path.parent)
    text = str(name)
    if HUB_NAME.fullmatch(text) and not path.parent.is_dir():
        return _in_folder(download(text, (*VOCABULARY_FILES, *CONFIG_FILES)), text)
    raise TokenizerError(f"no tokenizer at {text!r}{_nearest(path)}")


def _nearest(path: Path) -> str:
    """Return a hint: the nearest name in the same folder, or the forms that are allowed."""
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    hint = did_you_mean(path.name, [*names, DEFAULT_TOKENIZER]) if names else ""
    if "did you mean" in hint:
        return hint
    hub_name = "a Hub name such as 'meta-llama/Llama-2-7b-hf'"
    return f"; give {DEFAULT_TOKENIZER!r}, a folder or file with a tokenizer, or {hub_name}"


def _in_folder(folder: Path, name: str) -> TokenizerFiles:
    paths = [folder / file for file in VOCABULARY_FILES if (folder / file).is_file()]
    if not paths:
        raise TokenizerError(f"{name!r} has neither a tokenizer.json nor a tokenizer.model; give a folder that has one")
    return TokenizerFiles(name, paths[0], paths[1] if len(paths) > 1 else None, folder)


def _installed_llama3() -> TokenizerFiles:
    """Find LLaMA-3's vocabulary in the `llama-models` distribution, without importing its packages."""
    for package in ("llama_models", "models"):
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        for folder in spec.submodule_search_locations or () if spec else ():
            file = Path(folder) / "llama3" / "tokenizer.model"
            if file.is_file():
                return TokenizerFiles(DEFAULT_TOKENIZER, file, None, file.parent)
    raise TokenizerError(
        f"LLaMA-3's tokenizer is not installed; type: {install_command('llama3')}, or give --tokenizer FOLDER"
    )


def configured_token(folder: Path, key: str) -> str | None:
    """Return the `bos_token` or `eos_token` of a folder's configuration, None if it has none."""
    for file in CONFIG_FILES:
        try:
            value = json.loads(read_whole(folder / file)).get(key)
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        # A string, or an object with the token's flags.
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            return content
    return None
