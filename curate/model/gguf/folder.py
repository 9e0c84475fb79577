"""A folder in Hugging Face's format for a GGUF file, in the user's cache: everything but the weights.

The weights stay in the file, which the folder's `gguf.json` names, and are dequantised whenever they are loaded: that
takes about as long as to read them, and a copy would need several times the file's space.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from curate import files
from curate.errors import ModelError, TokenizerError
from curate.model.generation import read_object
from curate.model.gguf.config import config_values
from curate.model.gguf.header import MAGIC, Header, read_header
from curate.model.gguf.vocabulary import generation_config, tokenizer_config, tokenizer_files

POINTER = "gguf.json"
SUFFIX = ".gguf"
_FORMAT = 1  # version of the folders; raise it when this package writes others


def is_gguf(path: Path) -> bool:
    """Return whether a file is GGUF, by name or by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == SUFFIX or file.read(len(MAGIC)) == MAGIC


def gguf_in(folder: Path) -> Path | None:
    """Return the GGUF file of a folder without a config.json; raises ModelError where it has several."""
    if (folder / "config.json").exists():
        return None
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise ModelError(f"{str(folder)!r} holds {len(found)} GGUF files; give one, such as {str(found[0])!r}")
    return found[0] if found else None


def open_gguf(path: Path) -> Path:
    """Return the folder of a GGUF file, which is written if it is not in the cache.

    Raises ModelError for a file that is damaged or of a kind that curate does not read, or a cache that cannot be
    written.
    """
    header = read_header(path.resolve())
    config = config_values(header)
    try:
        # Named like the file, as messages name a tokenizer by its folder.
        folder = files.cache_folder() / "gguf" / f"{header.digest[:32]}.{_FORMAT}" / path.stem
        if read_object(folder / POINTER).get("file") != str(header.path):
            _write(folder, header, config)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        why = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"the configuration of {str(path)!r} cannot be written to curate's cache: {why}; name a folder for it: "
            "export XDG_CACHE_HOME=FOLDER"
        ) from None
    return folder


def _write(folder: Path, header: Header, config: dict[str, Any]) -> None:
    """Write the files, the pointer last; each whole, so that several ranks may write at once."""
    contents: dict[str, Any] = {
        "config.json": config,
        "tokenizer_config.json": tokenizer_config(header, config["max_position_embeddings"]),
        "generation_config.json": generation_config(header),
    }
    texts = {name: json.dumps(values, indent=1, ensure_ascii=False).encode() for name, values in contents.items()}
    pointer = {"file": str(header.path), "digest": header.digest}
    try:
        texts |= tokenizer_files(header)
    except TokenizerError as error:
        pointer["tokenizer"] = str(error)  # for those who do not give another
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**texts, POINTER: json.dumps(pointer).encode()}.items():
        _replace(folder / name, data)


def _replace(path: Path, data: bytes) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(partial).replace(path)


def is_stand_in(folder: Path) -> bool:
    """Return whether a folder is of this cache, so that its weights are in a GGUF file; that file is not read."""
    return "file" in read_object(folder / POINTER)


def header_of(folder: Path) -> Header | None:
    """Return the header of the file that a folder of this cache stands for, None for another folder.

    Raises ModelError if the file is gone or has changed.
    """
    pointer = read_object(folder / POINTER)
    if "file" not in pointer:
        return None
    header = read_header(Path(str(pointer["file"])))
    if header.digest != pointer.get("digest"):
        raise ModelError(f"{str(header.path)!r} has changed; start again")
    return header


def tokenizer_problem(folder: Path) -> str | None:
    """Return why a folder of this cache has no tokenizer, None where it has one."""
    problem = read_object(folder / POINTER).get("tokenizer")
    return None if problem is None else str(problem)
