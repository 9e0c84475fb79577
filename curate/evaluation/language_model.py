"""A model of curate as a language model of lm-eval: its own weights, adapter, tokenizer and chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from torch import nn

from curate.errors import InputError
from curate.evaluation import stderr
from curate.model import artifact as artifacts
from curate.model import files, fingerprint, sources
from curate.model.artifact import Artifact
from curate.model.files import OnMessage
from curate.model.serving import Serving, training_tokenizer
from curate.progress import Stage, stage

CHUNK = 1 << 24  # bytes


class LanguageModel(HFLM):  # type: ignore[misc]  # lm-eval is not typed
    """A loaded model with its own tokenizer; `name` is shown beside the progress of what it is asked."""

    name = ""

    def __init__(self, model: nn.Module, tokenizer: Any, *, is_chat: bool, batch: int) -> None:
        with stderr.without_log():
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch,
                backend="causal",
                # A chat template writes the begin token itself, where training has one.
                add_bos_token=False if is_chat else None,
            )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        return self._counted(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """Return the log-likelihood of each text."""
        return self._counted(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        """Return the answer to each request."""
        return self._counted(super().generate_until, requests)

    def _counted(self, ask: Callable[..., Any], requests: Sequence[Any]) -> Any:
        with stage(self.name, total=len(requests), unit="requests") as current:
            self.cache_hook = _Counter(current)
            return ask(requests, disable_tqdm=True)


class _Counter(CacheHook):  # type: ignore[misc]
    """Counts what lm-eval would put into its cache: each request that is answered."""

    def __init__(self, current: Stage) -> None:
        super().__init__(None)
        self._current = current

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._current.done += 1


def prompt_format(
    found: Artifact, template: str | None, is_chat: bool | None, say: OnMessage
) -> tuple[Serving | None, Any]:
    """Return the model's prompt format, None for prompts that are plain text, and its tokenizer for transformers.

    By default (`is_chat` is None) prompts are chats if the model has a template. Raises CurateError.
    """
    try:
        serving = artifacts.serving_of(found, template)
    except InputError:
        if is_chat or template:
            raise
        serving = None
        say(f"{found.name} has no chat template, so it is asked with plain text")
    tokenizer = serving.tokenizer if serving else sources.find_model(found.base or str(found.folder)).tokenizer
    if tokenizer is None:
        raise InputError(f"{found.name!r} has no tokenizer; give a folder with one")
    made = training_tokenizer(tokenizer, serving)
    return (serving if is_chat is not False else None), made


def weights_sha256(found: Artifact) -> str:
    """Return a hash of a model's weights, and of its adapter's where it has one."""
    source = sources.find_model(found.base or str(found.folder))
    digest = hashlib.sha256()
    if source.folder is not None and files.has_weights(source.folder):
        tied = bool(getattr(source.config, "tie_word_embeddings", False))
        digest.update(fingerprint.weights_hash(source.folder, tied=tied).encode())
    if found.base is not None:
        for path in sorted(found.folder.glob("adapter_model.*")):
            with path.open("rb") as file:
                while data := file.read(CHUNK):
                    digest.update(data)
    return digest.hexdigest()


def load_model(found: Artifact, say: OnMessage, device: str, **loading: Any) -> nn.Module:
    """Load the weights on a device; raises ModelError, for an adapter on another base too."""
    chosen = artifacts.choose_device(device)
    return artifacts.load_artifact(found, device=chosen, inference=True, say=say, **loading)
