"""The model that measures: found, with its prompt format, and loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from curate.dataset.manifest import Manifest, ModelFacts
from curate.errors import ModelError
from curate.model import fingerprint, loader, sources
from curate.model.artifact import (
    Artifact,
    choose_device,
    find_artifact,
    load_artifact,
    renderer_for,
    serving_of,
)
from curate.model.device import choose_dtype
from curate.model.files import OnMessage
from curate.model.sizes import Shape
from curate.model.sources import OWN_TEMPLATE, ModelSource
from curate.rendering.factory import make_renderer
from curate.rendering.renderer import Renderer

ADAPTER_WEIGHTS = "adapter_model.*"


@dataclass(frozen=True)
class Choice:
    """The model as the user names it, and how it is loaded."""

    model: str
    base: str | None = None  # in place of the one that an adapter names
    other_base: bool = False
    template: str | None = None
    dtype: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class FoundModel:
    """A model on disk, without its weights."""

    choice: Choice
    artifact: Artifact
    source: ModelSource  # of the base, if it is an adapter
    shape: Shape
    device: torch.device
    dtype: str  # one of `choices.DTYPES`

    def load(self, say: OnMessage) -> nn.Module:
        """Load the weights; raises ModelError for those that are missing, damaged or do not fit."""
        return load_artifact(
            self.artifact, device=self.device, dtype=self.dtype, other_base=self.choice.other_base, say=say
        )

    def facts(self, signal: str, template: str, window: int) -> ModelFacts:
        """Return what the manifest says of the model; its weights must be on this machine."""
        folder = self.source.folder
        assert folder is not None  # an artifact is a folder
        found = fingerprint.fingerprint(folder, self.source.config, self.source.tokenizer)
        return ModelFacts(
            signal=signal,
            model=self.choice.model,
            architecture=found.architecture,
            weights=found.weights,
            vocabulary=found.vocabulary,
            adapter=_adapter_hash(self.artifact),
            template=template,
            window=window,
            dtype=self.dtype,
        )


def find_scorer(choice: Choice) -> FoundModel:
    """Find the model; raises ModelError or TokenizerError with what to type."""
    if choice.model == sources.TINY:
        raise ModelError("'tiny' has random weights, which measure nothing; give --model a folder or a Hub name")
    artifact = find_artifact(choice.model, base=choice.base)
    source = sources.find_model(artifact.base or str(artifact.folder))
    device = choose_device(choice.device)
    dtype, _ = choose_dtype(device, choice.dtype)
    return FoundModel(choice, artifact, source, loader.shape_from_config(source.config), device, dtype)


def make_scoring_renderer(found: FoundModel, manifest: Manifest) -> Renderer:
    """Return the renderer of the model's own prompt format, as far as it has one, otherwise that of the set.

    Raises RecipeError for an unknown template, ModelError for `model` where the model has none.
    """
    source, template = found.source, found.choice.template
    if template is None and found.artifact.note is not None:
        return renderer_for(serving_of(found.artifact))
    name = template or (source.template if source.knows_template else manifest.template)
    if name == OWN_TEMPLATE and source.chat_template is None:
        raise ModelError(f"model {source.name!r} has no chat template; give a built-in one: --template vicuna")
    chat_template = source.chat_template if name == OWN_TEMPLATE else None
    return make_renderer(name, source.tokenizer, chat_template=chat_template)


def _adapter_hash(artifact: Artifact) -> str:
    """Return the SHA-256 of an adapter's weights, empty for a model."""
    if artifact.base is None:
        return ""
    digest = hashlib.sha256()
    for file in sorted(artifact.folder.glob(ADAPTER_WEIGHTS)):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
