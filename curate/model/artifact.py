"""A model or adapter to chat with or to merge: find it by run, folder or Hub name, and load it with its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curate.errors import CurateError, ModelError
from curate.model import files, fingerprint, loader, serving, sources
from curate.model.adapters import check_config, peft_warnings
from curate.model.device import DTYPES
from curate.model.files import OnMessage
from curate.model.gguf.folder import gguf_in
from curate.model.serving import ADAPTER, MODEL, Note, Serving
from curate.model.sources import ModelSource
from curate.rendering.factory import make_renderer
from curate.rendering.renderer import Renderer
from curate.schemas.chat_templates import NAMES
from curate.tokenization.files import CONFIG_FILES, VOCABULARY_FILES
from curate.tokenization.hub import HUB_NAME, download

# Patterns of all files except a model's weights; those of an adapter are small.
_SMALL = ("*config.json", "curate.json", "*.jinja", "*.index.json", *VOCABULARY_FILES, *CONFIG_FILES, "adapter_model.*")


@dataclass(frozen=True)
class Artifact:
    """A model or an adapter on disk."""

    name: str  # as the user wrote it
    folder: Path
    base: str | None  # folder or Hub name of an adapter's base, None for a model
    note: Note | None  # curate.json; None for a folder that curate did not write

    @property
    def quantised(self) -> bool:
        """Whether the adapter was trained on a base in 4 bits."""
        return self.note is not None and self.note.quantised

    @property
    def method(self) -> str:
        """The training method, empty if unknown."""
        if self.note is not None:
            return self.note.method
        if self.base is None:
            return ""
        # peft's names are upper case, such as LORA.
        return str(files.read_json(self.folder / files.ADAPTER).get("peft_type", "")).lower()

    def __str__(self) -> str:
        if self.base is None:
            return f"model {str(self.folder)!r}" if self.folder.name != self.name else f"model {self.name!r}"
        bits = " in 4 bits" if self.quantised else ""
        return f"{self.method} adapter {str(self.folder)!r} on its base {self.base!r}{bits}"


def find_artifact(name: str, *, base: str | None = None) -> Artifact:
    """Find a model or adapter by folder, run folder or Hub name, without reading weights.

    `base` replaces the base that an adapter names. Raises ModelError with what to type.
    """
    folder = _folder(name)
    kind = files.kind(folder)
    if kind == "run":
        folder = _result_of_run(folder)
        kind = files.kind(folder)
    if kind == "checkpoint":
        run = folder.parent.parent  # RUN/checkpoints/NAME
        raise ModelError(f"{name!r} is a checkpoint; continue its run: curate finetune --resume {run}")
    if kind not in ("model", "adapter"):
        raise ModelError(
            f"{name!r} is neither a model, an adapter nor a run: it has no config.json; give the folder of one"
        )
    # An explicit base would be ignored, which a user should know.
    if kind == "model" and base is not None:
        raise ModelError(f"{name!r} is a model, not an adapter; leave out --base {base}")
    base = (base or _base(folder)) if kind == "adapter" else None
    return Artifact(name, folder, base, serving.read_note(folder))


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir() and not (files.kind(path) is None and gguf_in(path)):
        return path
    if path.exists() or not HUB_NAME.fullmatch(name) or path.parent.is_dir():
        return files.locate(name)  # raises the error that fits
    return download(name, _SMALL, needed="config.json, tokenizer and weights", error=ModelError)


def _result_of_run(run: Path) -> Path:
    """Return the folder with a run's result; if it has both a model and an adapter, the newer one.

    Raises ModelError for a run without a result.
    """
    results = [run / kind for kind in (MODEL, ADAPTER) if files.kind(run / kind)]
    if not results:
        raise ModelError(f"the run {str(run)!r} has no result yet; continue it: curate finetune --resume {run}")
    return max(results, key=lambda folder: folder.stat().st_mtime)


def _base(adapter: Path) -> str:
    """Return the base that an adapter names: a Hub name, or a path, which may be relative to the adapter's."""
    note = serving.read_note(adapter)
    recorded = [note.base if note else "", files.read_json(adapter / files.ADAPTER).get("base_model_name_or_path")]
    names = [str(name) for name in recorded if name]  # curate's own note first
    if not names:
        raise ModelError(f"the adapter {str(adapter)!r} does not name its base; give it: --base FOLDER")
    return next((str(adapter / name) for name in names if (adapter / name).exists()), names[0])


def serving_of(result: Artifact, template: str | None = None) -> Serving:
    """Return the prompt format of a model or adapter: that of training, or a built-in template by name.

    An adapter that curate did not write may have no tokenizer; its base's tokenizer and template are used instead.
    Raises CurateError if there is no tokenizer or template.
    """
    try:
        return serving.read_serving(result.folder, template=template)
    except CurateError:
        if result.base is None:
            raise
    source = sources.find_model(result.base)
    if template or source.template in NAMES:
        return serving.from_template(source.tokenizer, template or source.template)
    return serving.from_chat_template(source.tokenizer, source.chat_template or "", [source.tokenizer.info.eos_id])


def renderer_for(prompt_format: Serving) -> Renderer:
    """Return the renderer that builds prompts as in training; raises RecipeError for a chat template that fails."""
    tokenizer = prompt_format.tokenizer
    if prompt_format.template is not None:
        return make_renderer(prompt_format.template, tokenizer)
    return make_renderer(sources.OWN_TEMPLATE, tokenizer, chat_template=prompt_format.chat_template)


# ---- load


def choose_device(name: str = "auto") -> torch.device:
    """Return a device by name; `auto` is CUDA if available, else the CPU. Raises ModelError for an unusable one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(name)
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise ModelError(f"device {name!r} cannot be used here ({why}); use 'auto' or 'cpu'") from None
    return wanted


def compute_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in; `auto` is that of the weights on disk, unless the device is slow with it.

    A GPU then computes fp32 weights in half precision, a CPU fp16 weights in fp32.
    """
    if name != "auto":
        return DTYPES[name]
    stored = getattr(config, "dtype", None)  # unknown in old configurations: taken as fp32
    stored = stored if isinstance(stored, torch.dtype) else torch.float32
    if device.type == "cuda":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return half if stored in (torch.float32, torch.bfloat16) else stored
    return torch.float32 if stored == torch.float16 else stored


def load_artifact(
    result: Artifact,
    *,
    device: torch.device,
    dtype: str = "auto",
    quantise: bool | None = None,
    inference: bool = False,
    other_base: bool = False,
    with_adapter: bool = True,
    say: OnMessage = sources.ignore_message,
) -> nn.Module:
    """Load a model, or an adapter on its base; `quantise` keeps the base in 4 bits, by default as in training.

    `dtype` is as in `compute_dtype`, `inference` and `say` are as in `load_model`; `other_base` is as in `check_base`.
    Without `with_adapter`, return only the base of an adapter. Raises ModelError for weights that are missing or
    damaged, or do not fit.
    """
    source = sources.find_model(result.base or str(result.folder))
    if result.base is not None:
        if source.folder is not None:
            files.fetch(source.name, source.folder, say)
        check_base(result, source, "--base FOLDER", None if other_base else "--other-base", say)
    quantise = result.quantised if quantise is None else quantise
    computed = compute_dtype(dtype, source.config, device)
    model = loader.load_model(source, dtype=computed, device=device, quantise=quantise, inference=inference, say=say)
    return add_adapter(model.eval(), result.folder) if result.base is not None and with_adapter else model.eval()


def check_base(result: Artifact, source: ModelSource, right: str, override: str | None, say: OnMessage) -> None:
    """Check that a model is the base that an adapter was trained on, by the fingerprint in its `curate.json`.

    Weights that are not downloaded yet are not compared. `right` is what to type for another base, `override` for this
    one all the same; None if that was typed. An adapter without a fingerprint gets a warning. Raises ModelError.
    """
    recorded = None if result.note is None else result.note.fingerprint
    if recorded is None or source.folder is None:
        say(
            f"the adapter {str(result.folder)!r} does not record on which weights it was trained, "
            f"so {source.name!r} is taken for its base without a check"
        )
        return
    found = fingerprint.fingerprint(source.folder, source.config, source.tokenizer)
    if not (difference := fingerprint.difference(recorded, found)):
        return
    named = f" {result.note.base!r}" if result.note is not None and result.note.base != serving.BASE else ""
    problem = f"{source.name!r} is not the base{named} of the adapter {str(result.folder)!r}: {difference}"
    if override is None:
        say(f"{problem}; it is used all the same")
        return
    raise ModelError(f"{problem}; give the base that it was trained on: {right}, or use this one: {override}")


def add_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Add the adapter in a folder to its base; raises ModelError where it does not fit."""
    import peft

    check_config(folder)
    try:
        with peft_warnings():
            # peft would cast the adapter to fp32, and results would be rounded differently than in training.
            adapted: nn.Module = peft.PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
    except torch.OutOfMemoryError:
        raise  # not the fault of the adapter
    except Exception as error:  # peft raises anything for odd values
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelError(
            f"the adapter {str(folder)!r} does not fit its base: {lines[min(1, len(lines) - 1)]}"
        ) from None
    return adapted.eval()
