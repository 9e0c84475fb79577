"""A model to talk to or to merge: found by run, folder or Hub name, told from an adapter, and loaded with its base."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curate.errors import CurateError, ModelError
from curate.model import files, serving
from curate.model import find as model_find
from curate.model import load as models
from curate.model.device import DTYPES
from curate.model.files import Say
from curate.model.serving import Note, Serving
from curate.rendering.factory import make_renderer
from curate.rendering.renderer import Renderer
from curate.schemas import prompts
from curate.tokenization.files import CONFIG_FILES, VOCABULARY_FILES
from curate.tokenization.hub import HUB_NAME, download

MODEL, ADAPTER = "model", "adapter"  # folders of a run's result
_SMALL = ("*config.json", "curate.json", "*.jinja", "*.index.json", *VOCABULARY_FILES, *CONFIG_FILES, "adapter_model.*")


@dataclass(frozen=True)
class Result:
    """A model or an adapter in a folder; `base` is the adapter's, by folder or Hub name, and null for a model.

    `note` is what curate wrote beside it, null for a model of others. `quantised`: its base was held in 4 bits.
    """

    name: str
    folder: Path
    base: str | None
    note: Note | None

    @property
    def quantised(self) -> bool:
        """Whether the adapter was trained over a base in 4 bits."""
        return self.note is not None and self.note.quantised

    @property
    def method(self) -> str:
        """How the adapter or model was trained, as far as that is known."""
        if self.note is not None:
            return self.note.method
        if self.base is None:
            return ""
        return str(files.read_json(self.folder / files.ADAPTER).get("peft_type", "")).lower()

    def __str__(self) -> str:
        if self.base is None:
            return f"model {str(self.folder)!r}" if self.folder.name != self.name else f"model {self.name!r}"
        held = ", held in 4 bits" if self.quantised else ""
        return f"{self.method} adapter {str(self.folder)!r} on its base {self.base!r}{held}"


def find(name: str, *, base: str | None = None) -> Result:
    """Find a model by folder, run folder or Hub name, no weight touched; `base` is another base for an adapter.

    Raises ModelError with what to type.
    """
    folder = _folder(name)
    kind = files.kind(folder)
    if kind == "run":
        folder = _of_run(folder)
        kind = files.kind(folder)
    if kind == "checkpoint":
        run = folder.parent.parent
        raise ModelError(f"{name!r} is a checkpoint of a run that can go on: curate finetune --resume {run}")
    if kind not in ("model", "adapter"):
        raise ModelError(f"{name!r} is neither a model, an adapter nor a run: it holds no config.json")
    if kind == "model" and base is not None:
        raise ModelError(f"{name!r} is a model and needs no base; leave --base {base} away")
    found = (base or _base(folder)) if kind == "adapter" else None
    return Result(name, folder, found, serving.note(folder))


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file() or not HUB_NAME.fullmatch(name) or path.parent.is_dir():
        return files.locate(name)  # which says what is wrong with it
    return download(name, _SMALL, what="config.json, tokenizer and weights", error=ModelError)


def _of_run(run: Path) -> Path:
    """Return the folder with a run's result: the newer one, should a run have been told both kinds."""
    made = [run / kind for kind in (MODEL, ADAPTER) if files.kind(run / kind)]
    if not made:
        raise ModelError(f"the run {str(run)!r} has no result yet; let it go on: curate finetune --resume {run}")
    return max(made, key=lambda folder: folder.stat().st_mtime)


def _base(adapter: Path) -> str:
    """Return an adapter's base: beside it, or as it names it."""
    said = serving.note(adapter)
    names = [said.base] if said else []
    names.append(str(files.read_json(adapter / files.ADAPTER).get("base_model_name_or_path") or ""))
    for name in names:
        if name and (adapter / name).is_dir():
            return str(adapter / name)
    known = [name for name in names if name]
    if not known:
        raise ModelError(f"the adapter {str(adapter)!r} does not name its base; give it: --base FOLDER")
    return known[0]


def served(result: Result, template: str | None = None) -> Serving:
    """Return how a result is asked: as it was trained, or by a built-in template of another name.

    An adapter of others ships no tokenizer; its base's is taken, and the template that suits the base.
    """
    try:
        return serving.read(result.folder, template=template)
    except CurateError:
        if result.base is None:
            raise
    source = model_find.find(result.base)
    if template or source.template in prompts.TEMPLATES:
        return serving.of(source.tokenizer, template or source.template)
    ends = [source.tokenizer.info.eos_id]
    return serving.of_own(source.tokenizer, source.chat_template or "", ends)


def renderer(how: Serving) -> Renderer:
    """Return the renderer that writes prompts as training did."""
    if how.template is not None:
        return make_renderer(how.template, how.tokenizer)
    return make_renderer(model_find.OWN_TEMPLATE, how.tokenizer, chat_template=how.chat_template)


# ---- loaded


def device(name: str = "auto") -> torch.device:
    """Return a device by name; `auto` is CUDA where there is one. Raises ModelError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(name)
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise ModelError(f"device {name!r} cannot be used here ({why}); use 'auto' or 'cpu'") from None
    return wanted


def dtype(name: str, config: Any, place: torch.device) -> torch.dtype:
    """Return the numbers to compute in; `auto` is what the weights are in, but what the device is slow at."""
    if name != "auto":
        return DTYPES[name]
    stored = getattr(config, "dtype", None)
    stored = stored if isinstance(stored, torch.dtype) else torch.float32
    if place.type == "cuda":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return half if stored in (torch.float32, torch.bfloat16) else stored
    return torch.float32 if stored == torch.float16 else stored


def load(
    result: Result,
    *,
    place: torch.device,
    numbers: str = "auto",
    quantise: bool | None = None,
    inference: bool = False,
    say: Say = model_find.ignore_message,
) -> nn.Module:
    """Load a model, or an adapter onto its base; `quantise` holds the base in 4 bits, by default as in training.

    `inference` is that of `models.load`.
    """
    source = model_find.find(result.base or str(result.folder))
    held = dtype(numbers, source.config, place)
    in_four = result.quantised if quantise is None else quantise
    model = models.load(source, dtype=held, device=place, quantise=in_four, inference=inference, say=say)
    return model.eval() if result.base is None else with_adapter(model, result.folder)


def with_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Put an adapter from a folder onto its base; raises ModelError where the two do not belong together."""
    import peft

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)  # peft asks transformers
            # Its numbers stay in their own type: peft would make fp32 of them, and round otherwise than in training.
            found: nn.Module = peft.PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"the adapter {str(folder)!r} does not fit its base: {lines[min(1, len(lines) - 1)]}"
        ) from None
    return found.eval()
