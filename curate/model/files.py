"""The files of a model: what kind of folder it is, which files are the weights, and downloads from the Hub.

No weights are loaded here. A damaged or incomplete folder is an error of one line before loading begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from curate.errors import ModelError, did_you_mean
from curate.files import read_whole
from curate.model import tensors
from curate.model.gguf.folder import gguf_in, header_of, is_gguf, is_stand_in, open_gguf
from curate.tokenization.files import CONFIG_FILES, VOCABULARY_FILES
from curate.tokenization.hub import HUB_NAME, download

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
SAFE, LEGACY = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # suffix of the file that lists the shards of a large model
_SMALL = (  # patterns of the files next to the weights
    CONFIG,
    ADAPTER,
    "generation_config.json",
    "curate.json",
    "*.jinja",
    f"*{INDEX}",
    *VOCABULARY_FILES,
    *CONFIG_FILES,
)
_LFS_HEADER = b"version https://git-lfs"  # the first bytes of a Git LFS pointer file
_NEEDED = "config.json, tokenizer and weights"  # what a model folder must have, for error messages

Kind = Literal["model", "adapter", "run", "checkpoint"]
OnMessage = Callable[[str], object]


@dataclass(frozen=True)
class Weights:
    """The files with a model's weights."""

    files: tuple[Path, ...]  # sorted by name
    form: Literal["safetensors", "bin", "gguf"]
    bytes: int  # of all files


def kind(folder: Path) -> Kind | None:
    """Return what a folder is: a model, a peft adapter, a training run or one of its checkpoints, or None."""
    if (folder / ADAPTER).is_file():
        return "adapter"
    if (folder / CONFIG).is_file():
        return "model"
    # The files that a run of curate writes; a checkpoint is a folder within a run.
    if (folder / "manifest.json").is_file() and (folder / "state.json").is_file():
        return "checkpoint"
    has_results = any((folder / part).is_dir() for part in ("checkpoints", "model", "adapter"))
    return "run" if has_results and (folder / "config.toml").is_file() else None


def locate(name: str) -> Path:
    """Return the folder of a model, given its path or Hub name; from the Hub, download all files except the weights.

    For a GGUF file, or a folder that holds one, it is a folder in the user's cache. Raises ModelError with what to type
    instead.
    """
    path = Path(name).expanduser()
    if is_gguf(path):
        return open_gguf(path)
    if path.is_file():
        raise ModelError(f"{str(path)!r} is a file; give its folder, with config.json, tokenizer and weights")
    if not path.is_dir():
        if HUB_NAME.fullmatch(name) and not path.parent.is_dir():
            path = download(name, _SMALL, needed=_NEEDED, error=ModelError)
        else:
            raise ModelError(f"no model at {name!r}{_nearest(path)}")
    folder_kind = kind(path)
    if folder_kind is None and (file := gguf_in(path)) is not None:
        return open_gguf(file)
    if folder_kind != "model":
        raise ModelError(_not_a_model(path, name))
    return path


def _nearest(path: Path) -> str:
    """Return a hint: the nearest name in the same folder, or what a model's name may be."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, [*names, "tiny"])
    if "did you mean" in hint:
        return hint
    return "; give a folder in Hugging Face's format, a Hub name such as 'meta-llama/Llama-2-7b-hf', or 'tiny'"


def _not_a_model(folder: Path, name: str) -> str:
    """Return an error message: what the folder is instead of a model, and how to use it."""
    folder_kind = kind(folder)
    if folder_kind == "adapter":
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        return f"{name!r} is an adapter, not a model: to continue training from it, type --init {name} (base: {base!r})"
    if folder_kind is not None:
        return f"{name!r} is a {folder_kind} of curate, not a model: to continue training from it, type --init {name}"
    names = {entry.name for entry in folder.iterdir()}
    if "params.json" in names:
        return (
            f"{name!r} is in Meta's format; convert it to Hugging Face's with transformers' "
            "convert_llama_weights_to_hf, or give its Hub name ending in -hf"
        )
    return f"{name!r} has no config.json; give a model in Hugging Face's format"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises ModelError with the path."""
    try:
        data = read_whole(path)
        if data.startswith(_LFS_HEADER):
            raise ModelError(_pointer(path))
        values = json.loads(data)
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{str(path)!r} is a JSON {type(values).__name__}, not an object; download it again")
    return values


def _pointer(path: Path) -> str:
    return f"{str(path)!r} is a Git LFS pointer, not the file itself; type: git lfs pull"


# ---- weights


def weights(folder: Path) -> Weights:
    """Return a model's weight files, each checked against its header, so that a partial download is noticed early.

    Raises ModelError for files that are missing, damaged or in a format that cannot be trained.
    """
    if (header := header_of(folder)) is not None:
        return Weights((header.path,), "gguf", header.path.stat().st_size)
    # Safetensors first: a .bin file is a pickle, which could run code.
    for single, form in ((SAFE, "safetensors"), (LEGACY, "bin")):
        index, file = folder / f"{single}{INDEX}", folder / single
        if index.is_file():
            names = sorted(set(_weight_map(index).values()))
            return _check_files([folder / name for name in names], form)
        if file.is_file():
            return _check_files([file], form)
    if (other := next(folder.glob("*.gguf"), None)) is not None:
        raise ModelError(f"{str(folder)!r} has weights as GGUF only; give that file: {str(other)!r}")
    raise ModelError(f"{str(folder)!r} has no weights: neither {SAFE} nor {LEGACY}, in one file or with an index")


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each weight, by the weight's name, from an index.

    Raises ModelError for a damaged index, or a file name that leads out of the folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{str(index)!r} lists no weights; download it again")
    outside = [name for name in weight_map.values() if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise ModelError(f"{str(index)!r} lists {outside[0]!r}, which is not a file of its folder; download it again")
    return weight_map


def _check_files(files: Sequence[Path], form: Any) -> Weights:
    """Return files as weights; raises ModelError if any is missing or damaged."""
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        folder = str(files[0].parent)
        raise ModelError(
            f"{folder!r} lacks {absent[0]} ({len(absent)} of {len(files)} files of weights are missing); "
            "download it again"
        )
    for file in files:
        _check_header(file, form)
    return Weights(tuple(files), form, sum(file.stat().st_size for file in files))


def _check_header(file: Path, form: str) -> None:
    """Raise ModelError unless a file is as long as its safetensors header says."""
    with file.open("rb") as stream:
        if stream.read(len(_LFS_HEADER)) == _LFS_HEADER:
            raise ModelError(_pointer(file))
    if form != "safetensors":
        return
    try:
        entries, start = tensors.read_header(file)
    except ValueError:
        raise ModelError(f"{str(file)!r} is damaged, or not a safetensors file; download it again") from None
    size, expected = file.stat().st_size, start + max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if size != expected:
        raise ModelError(f"{str(file)!r} has {size:,} bytes, its header says {expected:,}; download it again")


def has_weights(folder: Path) -> bool:
    """Return whether a folder has all its weight files, without checking them."""
    stored = any(all((folder / name).is_file() for name in _weight_names(folder, single)) for single in (SAFE, LEGACY))
    return stored or is_stand_in(folder)


def _weight_names(folder: Path, single: str) -> list[str]:
    """Return the names of the weight files of one form: those of its index, or `single`."""
    index = folder / f"{single}{INDEX}"
    return sorted(set(_weight_map(index).values())) if index.is_file() else [single]


def fetch(name: str, folder: Path, say: OnMessage) -> Path:
    """Return the folder of a model with its weights, which are downloaded for a Hub name.

    The revision is that of the files downloaded before: the name of their folder in the Hub's cache. Raises ModelError
    if the download fails.
    """
    if Path(name).expanduser().exists() or has_weights(folder):
        return folder
    say(f"downloading the weights of {name} from the Hub, unless they are in its cache")
    for single in (SAFE, LEGACY):
        files = _weight_names(folder, single)
        folder = download(name, files, needed=_NEEDED, error=ModelError, revision=folder.name)
        if (folder / files[0]).is_file():  # a pattern that matches no file is not an error of the Hub
            break
    return folder
