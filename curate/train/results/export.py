"""Write the result of a run: a folder that transformers or peft loads, with the files that servers need.

A trained model is written to `model/`, an adapter to `adapter/`. If the run created the adapter's base, as with
`--model tiny`, the base is written to `adapter/base`. Each folder is written under a temporary name, read back, and
renamed, so that a folder with the final name is always complete.
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
from curate.model import fingerprint, serving
from curate.model.fingerprint import Fingerprint
from curate.model.serving import ADAPTER, BASE, MODEL, Note, Serving
from curate.rendering.renderer import Renderer
from curate.schemas.chat_templates import NAMES
from curate.train import checkpoint
from curate.train.distributed import World
from curate.train.report import card
from curate.train.run import records
from curate.train.run.records import Records

WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
SHARD = "5GB"  # size of one file of weights, as usual on the Hub


@dataclass(frozen=True)
class Origin:
    """The base of a trained model, and how it was trained.

    `base` is a folder, a GGUF file or a Hub name; `folder` is None if the run created the base, and `create` then
    creates it again.
    """

    base: str
    folder: Path | None
    method: str
    quantised: bool = False  # the base was in 4 bits (NF4) while its adapter was trained
    create: Callable[[], nn.Module] | None = None
    fingerprint: Fingerprint | None = None  # of the base when it was loaded; None: as its folder is now


@dataclass(frozen=True)
class ResultInfo:
    """What is written next to the weights: prompt format, origin and window."""

    serving: Serving
    origin: Origin
    window: int  # tokens of the longest piece that the model was trained on
    more: Mapping[str, Any] = field(default_factory=dict)  # further facts for curate.json

    def note(self, kind: str, base_fingerprint: Fingerprint | None = None) -> Note:
        """Return the contents of `curate.json`; `kind` is MODEL or ADAPTER, which has its base's fingerprint."""
        origin = self.origin
        return Note(
            kind=kind,
            # Relative to the adapter's folder, so that the folder can be moved.
            base=BASE if kind == ADAPTER and origin.folder is None else origin.base,
            method=origin.method,
            template=self.serving.template,
            stop=self.serving.stops,
            quantised=origin.quantised,
            version=__version__,
            window=self.window,
            fingerprint=base_fingerprint,
            more=self.more,
        )


def serving_for(renderer: Renderer) -> Serving:
    """Return the prompt format of a model that was trained with this renderer."""
    if renderer.name in NAMES:
        return serving.from_template(renderer.tokenizer, renderer.name)
    return serving.from_chat_template(renderer.tokenizer, getattr(renderer, "chat_template", ""), renderer.stop_ids)


def finish(run: Path, model: nn.Module, info: ResultInfo, world: World) -> Path:
    """Write the result of a run into its folder, with a model card from the run's records; return the result's folder.

    `model` is a causal model of transformers or peft, sharded or not. Collective: every rank must call this; rank 0
    writes. Raises CheckpointError if the disk is full, or the files do not match the model.
    """
    history = records.read(run) if world.main else None
    if hasattr(model, "peft_config"):
        return write_adapter(run / ADAPTER, model, info, history, writes=world.main)
    return write_model(run / MODEL, model, info, history, writes=world.main)


# ---- folders, written whole or not at all


def write_model(
    final: Path, model: Any, info: ResultInfo, history: Records | None = None, *, writes: bool = True
) -> Path:
    """Write a whole model, with a card if there are records of its training; return `final`.

    Collective for a sharded model: every rank must call this, and the one with `writes` writes. Raises CheckpointError.
    """
    state = _gather_state(model, writes)
    if writes:
        with _replacing(final) as folder:
            save_model(folder, model, state)
            _write_metadata(folder, model, info, info.note(MODEL), history)
    return final


def write_adapter(
    final: Path, model: Any, info: ResultInfo, history: Records | None = None, *, writes: bool = True
) -> Path:
    """Write an adapter, and also its base if the run created it; return `final`. Raises CheckpointError.

    Adapters are never sharded (`distributed.wrap_model`), so ranks without `writes` do nothing.
    """
    if writes:
        with _replacing(final) as folder:
            _save_adapter(folder, final, model, info)
            if info.origin.folder is None:
                _save_base(folder / BASE, info)
            _write_metadata(folder, model, info, info.note(ADAPTER, _base_fingerprint(folder, model, info)), history)
    return final


def _base_fingerprint(folder: Path, model: Any, info: ResultInfo) -> Fingerprint:
    """Return the fingerprint of an adapter's base, which is in its folder if the run created it."""
    origin = info.origin
    base = folder / BASE if origin.folder is None else origin.folder
    return origin.fingerprint or fingerprint.fingerprint(base, model.config, info.serving.tokenizer)


def _write_metadata(folder: Path, model: Any, info: ResultInfo, note: Note, history: Records | None) -> None:
    """Write every file except the weights."""
    serving.write_files(folder, info.serving, note, positions=_positions(model), origin=info.origin.folder)
    if history is not None:
        card.write(folder, history, info.serving, note)


def _positions(model: Any) -> int:
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048)


@contextmanager
def _replacing(final: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `final` when the block succeeds; raises CheckpointError if the disk fails."""
    try:
        with files.replacing(final, folder=True, sync=True) as folder:
            folder.mkdir(parents=True)
            yield folder
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        message = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{str(final)!r} was not written: {message}; the checkpoints are as they were: make room, and --resume"
        ) from error


# ---- weights


def _gather_state(model: nn.Module, writes: bool) -> dict[str, Tensor] | None:
    """Gather a sharded model's weights on the CPU of the rank that writes; return None if no weight is sharded.

    Collective: every rank must call this. Weights are gathered one at a time, because a whole model may not fit on a
    device. Tied weights stay one tensor under both names, so that `save_pretrained` writes it once.
    """
    state = model.state_dict(keep_vars=True)  # otherwise each name of a tied weight has its own tensor object
    if not any(hasattr(tensor, "full_tensor") for tensor in state.values()):
        return None
    gathered: dict[int, Tensor] = {}  # by id of the sharded tensor
    for tensor in state.values():
        if id(tensor) not in gathered:
            full = checkpoint.gather_tensor(tensor.detach())
            gathered[id(tensor)] = full.cpu() if writes else full.new_empty(0)
    return {name: gathered[id(tensor)] for name, tensor in state.items()} if writes else {}


def save_model(folder: Path, model: Any, state: dict[str, Tensor] | None = None) -> None:
    """Write config.json and weights; `state` replaces the model's own weights if they are sharded.

    Raises CheckpointError if the files have fewer elements than the model.
    """
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()  # that of the base may be one that transformers refuses to write
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD)
    finally:
        model.generation_config = before
    files.remove(folder / "generation_config.json", folder)  # `serving` writes one with the stop tokens
    written = sum(_elements(file) for file in folder.glob("*.safetensors"))
    # Tied weights count once here, as in the files.
    expected = sum(parameter.numel() for parameter in model.parameters())
    if written < expected:
        raise CheckpointError(
            f"{folder.parent.name!r}: {written:,} parameters were written, the model has {expected:,}"
        )


def _elements(file: Path) -> int:
    """Return the number of elements of all tensors in a file."""
    with safe_open(str(file), framework="pt") as opened:
        shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 (no mapping)
    return sum(torch.Size(shape).numel() for shape in shapes)


def _save_adapter(folder: Path, final: Path, model: Any, info: ResultInfo) -> None:
    """Write an adapter's weights and adapter_config.json, with a base that can be loaded from `final`."""
    config = model.peft_config["default"]
    origin = info.origin
    before = config.base_model_name_or_path, config.inference_mode  # changed only for writing
    # A folder or file is written as an absolute path: peft resolves a relative one against the working directory.
    given = Path(origin.base).expanduser()
    local = final / BASE if origin.folder is None else given if given.exists() else None
    config.base_model_name_or_path = origin.base if local is None else str(local.resolve())
    config.task_type = config.task_type or "CAUSAL_LM"
    try:
        # Without `save_embedding_layers`, peft asks the Hub whether the embeddings were resized.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    finally:
        config.base_model_name_or_path, config.inference_mode = before
    check_adapter(folder, model)


def check_adapter(folder: Path, model: Any) -> None:
    """Read an adapter back and compare it with the model's; raises CheckpointError if it is empty or differs."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    with safe_open(str(folder / ADAPTER_WEIGHTS), framework="pt") as file:
        names = set(file.keys())
        different = [
            name for name in expected if name not in names or not _equal(file.get_tensor(name), expected[name])
        ]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    saved = sum(tensor.numel() for tensor in expected.values())
    if not names or different or saved < trained:
        problem = f"{different[0]!r} is missing or differs" if different else f"{saved:,} of {trained:,} parameters"
        raise CheckpointError(f"the adapter that was written is not the one that was trained: {problem}")


def _equal(saved: Tensor, expected: Tensor) -> bool:
    return saved.shape == expected.shape and torch.equal(saved, expected.detach().cpu())


def _save_base(folder: Path, info: ResultInfo) -> None:
    """Write the base of an adapter, created again from its seed, as a model."""
    if info.origin.create is None:
        raise CheckpointError(f"the base {info.origin.base!r} is in no folder and cannot be created again")
    folder.mkdir()
    model = info.origin.create()
    save_model(folder, model)
    note = Note(MODEL, info.origin.base, "none", info.serving.template, info.serving.stops, version=__version__)
    serving.write_files(folder, info.serving, note, positions=_positions(model))


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off the progress bars of transformers within the block."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
