"""A model's files: what a folder holds, which of its files are the weights, and how they come from the Hub.

Nothing here reads a weight. What is wrong with a folder is told before anything is loaded from it, in one line.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curate.errors import ModelError, did_you_mean
from curate.tokenization.files import CONFIG_FILES, VOCABULARY_FILES
from curate.tokenization.hub import HUB_NAME, download

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
SAFE, LEGACY = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
_SMALL = (
    CONFIG,
    ADAPTER,
    "generation_config.json",
    "curate.json",
    "*.jinja",
    f"*{INDEX}",
    *VOCABULARY_FILES,
    *CONFIG_FILES,
)
_POINTER = b"version https://git-lfs"
_WHAT = "config.json, tokenizer and weights"

Kind = Literal["model", "adapter", "run", "checkpoint"]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Weights:
    """The files that hold a model's weights, in the order of its index, and their size."""

    files: tuple[Path, ...]
    form: Literal["safetensors", "bin"]
    bytes: int


def kind(folder: Path) -> Kind | None:
    """Tell what a folder is: a model, a peft adapter, a training run of ours or one of its checkpoints, or none."""
    if (folder / ADAPTER).is_file():
        return "adapter"
    if (folder / CONFIG).is_file():
        return "model"
    if (folder / "manifest.json").is_file() and (folder / "state.json").is_file():
        return "checkpoint"
    made = any((folder / part).is_dir() for part in ("checkpoints", "model", "adapter"))
    return "run" if made and (folder / "config.toml").is_file() else None


def locate(name: str) -> Path:
    """Return the folder of a model by its path, or by its Hub name, of which only the small files are fetched.

    Raises ModelError with what to type instead.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise ModelError(_no_folder(path))
    if not path.is_dir():
        if HUB_NAME.fullmatch(name) and not path.parent.is_dir():
            path = download(name, _SMALL, what=_WHAT, error=ModelError)
        else:
            raise ModelError(f"no model at {name!r}{_nearest(path)}")
    if kind(path) != "model":
        raise ModelError(_not_a_model(path, name))
    return path


def _no_folder(path: Path) -> str:
    if path.suffix == ".gguf":
        return _gguf(str(path))
    return f"{str(path)!r} is a file; give the folder that holds it, with config.json and the tokenizer beside it"


def _gguf(name: str) -> str:
    return f"{name!r} is GGUF, made for inference alone; give the Hugging Face folder or Hub name it was converted from"


def _nearest(path: Path) -> str:
    """Return a hint: the nearest name in the folder that was meant, or the forms that are allowed."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, [*names, "tiny"])
    if "did you mean" in hint:
        return hint
    return "; give a folder in Hugging Face's format, a Hub name such as 'meta-llama/Llama-2-7b-hf', or 'tiny'"


def _not_a_model(folder: Path, name: str) -> str:
    """Say what a folder is that is no model, and what to do with it."""
    what = kind(folder)
    if what == "adapter":
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        return f"{name!r} is an adapter, not a model: type --init {name} to train on from it (its base is {base!r})"
    if what is not None:
        return f"{name!r} is a {what} of curate, not a model: type --init {name} to train on from it"
    names = {entry.name for entry in folder.iterdir()}
    if any(entry.endswith(".gguf") for entry in names):
        return _gguf(name)
    if "params.json" in names:
        return (
            f"{name!r} is in Meta's own format; convert it to Hugging Face's with transformers' "
            "convert_llama_weights_to_hf, or give its Hub name ending in -hf"
        )
    return f"{name!r} holds no config.json, so it is no model in Hugging Face's format"


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; raises ModelError that names the file."""
    try:
        data = path.read_bytes()
        if data.startswith(_POINTER):
            raise ModelError(_pointer(path))
        found = json.loads(data)
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{str(path)!r} holds a {type(found).__name__}, not an object")
    return found


def _pointer(path: Path) -> str:
    return f"{str(path)!r} is a Git LFS pointer, not the file itself; type: git lfs pull"


# ---- the weights


def weights(folder: Path) -> Weights:
    """Find a model's weights and hold each file against its header, so that half a download is named before loading.

    Raises ModelError for what is missing, damaged or of a form that cannot be trained.
    """
    for single, form in ((SAFE, "safetensors"), (LEGACY, "bin")):
        index, file = folder / f"{single}{INDEX}", folder / single
        if index.is_file():
            names = sorted(set(_weight_map(index).values()))
            return _checked([folder / name for name in names], form)
        if file.is_file():
            return _checked([file], form)
    if any(entry.suffix == ".gguf" for entry in folder.iterdir()):
        raise ModelError(_gguf(str(folder)))
    raise ModelError(f"{str(folder)!r} holds no weights: neither {SAFE} nor {LEGACY}, in one file or with an index")


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{str(index)!r} names no weights; download it again")
    outside = [name for name in found.values() if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise ModelError(f"{str(index)!r} names {outside[0]!r}, which is no file beside it")
    return found


def _checked(files: Sequence[Path], form: Any) -> Weights:
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        folder = str(files[0].parent)
        raise ModelError(f"{folder!r} lacks {absent[0]} ({len(absent)} of {len(files)} files of weights are missing)")
    for file in files:
        _check(file, form)
    return Weights(tuple(files), form, sum(file.stat().st_size for file in files))


def _check(file: Path, form: str) -> None:
    with file.open("rb") as stream:
        start = stream.read(32)
        if start.startswith(_POINTER):
            raise ModelError(_pointer(file))
        if form != "safetensors":
            return
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
        size = file.stat().st_size
        stream.seek(8)
        try:
            header = json.loads(stream.read(length)) if 0 < length <= size - 8 else None
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]  # type: ignore[union-attr]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            raise ModelError(f"{str(file)!r} is no safetensors file, or a damaged one; download it again") from None
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        raise ModelError(f"{str(file)!r} has {size:,} bytes, its header says {wanted:,}; download it again")


def fetch(name: str, folder: Path, say: Say) -> Path:
    """Return a folder with the weights in it: as it is, or for a Hub name after their download.

    `say` is told what is fetched. The revision is that of the small files, which the folder's name tells.
    """
    if Path(name).expanduser().is_dir():
        return folder
    say(f"fetching the weights of {name} from the Hub, unless they are in its cache")
    for single in (SAFE, LEGACY):
        index = folder / f"{single}{INDEX}"
        files = sorted(set(_weight_map(index).values())) if index.is_file() else [single]
        folder = download(name, files, what=_WHAT, error=ModelError, revision=folder.name)
        if (folder / files[0]).is_file():
            break
    return folder
