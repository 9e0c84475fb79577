"""The result of a run: a folder that transformers or peft loads, with all files that servers need.

A trained model is written whole (`model/`), an adapter alone (`adapter/`; that of a base made on the spot has its
base in `adapter/base`). Each is written aside, read back, and renamed into its place, so that a folder of that name is
always whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from curate import files
from curate._version import __version__
from curate.errors import CheckpointError
from curate.model import serving
from curate.model.artifact import ADAPTER, MODEL
from curate.model.serving import Note, Serving
from curate.rendering.renderer import Renderer
from curate.schemas import prompts
from curate.train import checkpoint
from curate.train.distributed import World
from curate.train.report import card
from curate.train.run import records
from curate.train.run.records import Records

BASE = "base"  # folder of an adapter's base, where the run made it
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
SHARD = "5GB"  # of one file of weights, as the Hub has them


@dataclass(frozen=True)
class Origin:
    """The base of a trained model: its name, and its `folder`, or None if the run created it.

    `quantised`: it was held in 4 bits (NF4) while its adapter was trained. `fresh` makes one without a folder again.
    """

    base: str
    folder: Path | None
    method: str
    quantised: bool = False
    fresh: Callable[[], nn.Module] | None = None


@dataclass(frozen=True)
class Making:
    """How a model is prompted, and its origin; `window` is the longest piece it was trained on, in tokens."""

    serving: Serving
    origin: Origin
    window: int
    more: Mapping[str, Any] = field(default_factory=dict)  # further facts for curate.json

    def note(self, kind: str) -> Note:
        """Return the contents of `curate.json`."""
        made, origin = self.serving, self.origin
        base = BASE if kind == ADAPTER and origin.folder is None else origin.base
        return Note(kind, base, origin.method, made.template, made.stops, origin.quantised, __version__, self.more)


def asked_as_trained(renderer: Renderer) -> Serving:
    """Return how to prompt a model that was trained with this renderer."""
    if renderer.name in prompts.TEMPLATES:
        return serving.from_template(renderer.tokenizer, renderer.name)
    return serving.from_chat_template(renderer.tokenizer, getattr(renderer, "chat_template", ""), renderer.stop_ids)


def finish(run: Path, model: nn.Module, making: Making, world: World) -> Path:
    """Write the result of a run into its folder, with a model card from the run's records; return the folder.

    model: transformers' or peft's causal model, bare or sharded; every rank calls it, and rank 0 writes.
    Raises CheckpointError where the disk is full or what was written is not what was trained.
    """
    found = records.read(run) if world.main else None
    if hasattr(model, "peft_config"):
        return write_adapter(run / ADAPTER, model, making, found, writes=world.main)
    return write_model(run / MODEL, model, making, found, writes=world.main)


# ---- written aside


def write_model(final: Path, model: Any, making: Making, found: Records | None = None, *, writes: bool = True) -> Path:
    """Write a whole model, with a card if there are records of its training; raises CheckpointError."""
    state = _whole_state(model, writes)
    if writes:
        with _replacing(final) as folder:
            save_model(folder, model, state)
            _write_words(folder, making, MODEL, found)
    return final


def write_adapter(
    final: Path, model: Any, making: Making, found: Records | None = None, *, writes: bool = True
) -> Path:
    """Write an adapter, and also its base if the run created it; raises CheckpointError."""
    if writes:
        with _replacing(final) as folder:
            _save_adapter(folder, final, model, making)
            _write_words(folder, making, ADAPTER, found)
            if making.origin.folder is None:
                _save_base(folder / BASE, making)
    return final


def _write_words(folder: Path, making: Making, kind: str, found: Records | None) -> None:
    """Write every file except the weights."""
    note = making.note(kind)
    serving.write_files(folder, making.serving, note, window=making.window, origin=making.origin.folder)
    if found is not None:
        card.write(folder, found, making.serving, note)


@contextmanager
def _replacing(final: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `final` when the block succeeds; raises CheckpointError if the disk refuses."""
    try:
        with files.replacing(final, sync=True) as folder:
            folder.mkdir(parents=True)
            yield folder
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        message = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{str(final)!r} was not written: {message}; the checkpoints are as they were: make room, and --resume"
        ) from error


def _whole_state(model: nn.Module, writes: bool) -> dict[str, Tensor] | None:
    """Gather a sharded model's weights onto the CPU of the rank that writes, one at a time; None if none are sharded.

    Tied weights stay one tensor under both names, as `save_pretrained` needs to write it once.
    """
    state = model.state_dict(keep_vars=True)  # without it, each name of a tied weight has a new tensor object
    if not any(hasattr(tensor, "full_tensor") for tensor in state.values()):
        return None
    gathered: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in gathered:
            whole = checkpoint.whole(tensor.detach())
            gathered[id(tensor)] = whole.cpu() if writes else whole.new_empty(0)
    return {name: gathered[id(tensor)] for name, tensor in state.items()} if writes else {}


def save_model(folder: Path, model: Any, state: dict[str, Tensor] | None = None) -> None:
    """Write config.json and weights, and compare their shapes with the model's."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()  # a base's own may be one that transformers refuses to write
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD)
    finally:
        model.generation_config = before
    (folder / "generation_config.json").unlink(missing_ok=True)  # serving writes the one that stops
    written = sum(_sizes(file)[1] for file in folder.glob("*.safetensors"))
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if written < wanted:
        raise CheckpointError(f"{folder.parent.name!r}: {written:,} numbers were written of the model's {wanted:,}")


def _sizes(file: Path) -> tuple[int, int]:
    """Return the number of tensors in a file, and of elements in all of them."""
    with safe_open(str(file), framework="pt") as opened:
        shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 (no mapping)
    return len(shapes), sum(torch.Size(shape).numel() for shape in shapes)


def _save_adapter(folder: Path, final: Path, model: Any, making: Making) -> None:
    config = model.peft_config["default"]
    origin = making.origin
    before = config.base_model_name_or_path, config.inference_mode
    lies = final / BASE if origin.folder is None else origin.folder if Path(origin.base).is_dir() else None
    config.base_model_name_or_path = origin.base if lies is None else str(lies.resolve())
    config.task_type = config.task_type or "CAUSAL_LM"
    try:
        # Without the word, peft asks the Hub whether the embeddings were resized.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    finally:
        config.base_model_name_or_path, config.inference_mode = before
    check_adapter(folder, model)


def check_adapter(folder: Path, model: Any) -> None:
    """Read an adapter back and compare it with the model's; raises CheckpointError if it is empty or differs."""
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    with safe_open(str(folder / ADAPTER_WEIGHTS), framework="pt") as file:
        names = set(file.keys())
        different = [name for name in wanted if name not in names or not _same(file.get_tensor(name), wanted[name])]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    held = sum(tensor.numel() for tensor in wanted.values())
    if not names or different or held < trained:
        what = f"{different[0]!r} is missing or differs" if different else f"{held:,} numbers of {trained:,} trained"
        raise CheckpointError(f"the adapter that was written is not the one that was trained: {what}")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.detach().cpu())


def _save_base(folder: Path, making: Making) -> None:
    """Write the base of an adapter, recreated from its seed, as a model."""
    if making.origin.fresh is None:
        raise CheckpointError(f"the base {making.origin.base!r} lies in no folder and cannot be made again")
    folder.mkdir()
    save_model(folder, making.origin.fresh())
    note = Note(MODEL, making.origin.base, "none", making.serving.template, making.serving.stops, version=__version__)
    serving.write_files(folder, making.serving, note, window=making.window)


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off the progress bars of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
