"""A model as it is on disk: found by folder, Hub name or `tiny`, with configuration, tokenizer and template.

No weights are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.errors import ModelError, TokenizerError
from curate.model import files, serving
from curate.model.gguf.folder import tokenizer_problem
from curate.schemas import prompts
from curate.tokenization.files import VOCABULARY_FILES
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer

TINY = "tiny"
OWN_TEMPLATE = "model"  # value of `data.template` for the model's own chat template
# LLaMA's architecture: 8.6M parameters with LLaMA-3's vocabulary, 2.4M with LLaMA-2's.
_TINY_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
_TEMPLATE_BY_NAME = (  # patterns of released models' names, and the template that they were trained with
    (r"vicuna", "vicuna"),
    (r"alpaca", "alpaca"),
    (r"llama-?2.*chat|code-?llama.*instruct", "llama2"),
    (r"llama-?3.*instruct", "llama3"),
)
_UNTAUGHT = "it has no chat template, so it learns Vicuna's"
# The largest sizes that a config.json may have, several times those of any released model.
_LARGEST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "max_position_embeddings": 1 << 31,
}
_HEADS = ("forcausallm", "lmheadmodel", "withlmhead")  # endings of the class names of language models, in lower case


@dataclass(frozen=True)
class ModelSource:
    """A model on disk, without its weights."""

    name: str  # as the user wrote it
    folder: Path | None  # None for `tiny`
    config: Any  # of transformers
    tokenizer: Tokenizer
    chat_template: str | None  # Jinja, where the model has its own
    template: str  # the template that suits the model: a built-in one, or `model` for its own
    reason: str  # for that template

    @property
    def knows_template(self) -> bool:
        """Whether the model was trained with its template; a base model was trained with none."""
        return self.reason != _UNTAUGHT


def ignore_message(text: str) -> None:
    """Take a message and do nothing with it."""


def find_model(name: str, *, tokenizer: Tokenizer | None = None) -> ModelSource:
    """Find a model by folder, GGUF file, Hub name or `tiny`.

    `tokenizer` replaces the model's own; `tiny` has none, so it must be given one.
    Raises ModelError or TokenizerError with what to type.
    """
    if name == TINY:
        return _tiny(tokenizer)
    if not name:
        raise ModelError("no model is given; type --model with a folder, a GGUF file, a Hub name or tiny")
    folder = files.locate(name)
    config = _config(name, folder)
    tokenizer = tokenizer or _tokenizer(name, folder)
    _check_vocabulary(name, config, tokenizer)
    chat_template = serving.own_chat_template(folder)
    template, reason = natural_template(name, serving.read_note(folder), chat_template, tokenizer)
    return ModelSource(name, folder, config, tokenizer, chat_template, template, reason)


def _tiny(tokenizer: Tokenizer | None) -> ModelSource:
    from transformers import LlamaConfig

    if tokenizer is None:
        raise ModelError("model 'tiny' uses the tokenizer of a curated set; give a set")
    info = tokenizer.info
    config = LlamaConfig(
        vocab_size=info.vocab_size, bos_token_id=info.bos_id, eos_token_id=info.eos_id, pad_token_id=None, **_TINY_SHAPE
    )
    config.architectures = ["LlamaForCausalLM"]
    template, reason = natural_template(TINY, None, None, tokenizer)
    return ModelSource(TINY, None, config, tokenizer, None, template, reason)


def _config(name: str, folder: Path) -> Any:
    """Return a model's configuration; raises ModelError unless transformers has it as a causal language model."""
    from transformers import AutoConfig, __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    values = files.read_json(folder / files.CONFIG)
    model_type = values.get("model_type")
    try:
        with quietly():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything for a config.json with odd values
        if values.get("auto_map"):
            raise ModelError(
                f"{name!r} needs Python code from its own folder, which curate does not run; "
                "give a model that transformers supports"
            ) from None
        if model_type is None:
            raise ModelError(
                f"the config.json of {name!r} has no model_type; give a model that transformers supports"
            ) from None
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"transformers {__version__} cannot read the config.json of {name!r}: {why}") from None
    _check_sizes(name, config.get_text_config())
    _check_causal(name, config, KNOWN.get(config.model_type))
    return config


def _check_sizes(name: str, config: Any) -> None:
    """Raise ModelError for a size that no model has: building one, even without memory, would never end."""
    for key, largest in _LARGEST.items():
        value = getattr(config, key, None)
        if value is not None and not (type(value) is int and 0 < value <= largest):
            raise ModelError(
                f"{key} in the config.json of {name!r} is {str(value)[:40]!r}, not a number from 1 to {largest:,}; "
                "download it again"
            )


def _check_causal(name: str, config: Any, expected: object) -> None:
    """Raise ModelError unless a model is causal; `expected` is transformers' class name for its type, if it has one."""
    listed = config.architectures if isinstance(config.architectures, (list, tuple)) else []
    architectures = [str(architecture) for architecture in listed]
    causal = isinstance(expected, str) and (not architectures or expected in architectures)
    if causal or (isinstance(expected, str) and any(map(_has_head, architectures))):
        return
    description = architectures[0] if architectures else f"of type {config.model_type!r}"
    raise ModelError(f"{name!r} is {description}, not a causal language model; give one such as a LLaMA")


def _has_head(architecture: str) -> bool:
    return architecture.lower().endswith(_HEADS)  # LLaMA-1's first conversions wrote LLaMAForCausalLM


def _tokenizer(name: str, folder: Path) -> Tokenizer:
    if (problem := tokenizer_problem(folder)) is not None:
        raise TokenizerError(problem)
    if not any((folder / file).is_file() for file in VOCABULARY_FILES):
        raise TokenizerError(
            f"model {name!r} has no tokenizer: neither a tokenizer.json nor a tokenizer.model; give one: "
            "--tokenizer FOLDER"
        )
    return load_tokenizer(str(folder))


def _check_vocabulary(name: str, config: Any, tokenizer: Tokenizer) -> None:
    # An embedding may have more rows than there are ids, for speed; more ids than rows would fail in training.
    rows, ids = config.get_text_config().vocab_size, tokenizer.info.vocab_size
    if ids > rows:
        raise TokenizerError(
            f"tokenizer {tokenizer.info.name!r} has {ids:,} tokens, but model {name!r} has embeddings for {rows:,}; "
            "give the model's own tokenizer: --tokenizer FOLDER"
        )


def natural_template(
    name: str, note: serving.Note | None, chat_template: str | None, tokenizer: Tokenizer
) -> tuple[str, str]:
    """Return the template that a model was trained with, as far as that is known, and the reason.

    `note` is the model's `curate.json`; `chat_template` its own Jinja template. The first that applies: the note, the
    chat template, the model's name, and otherwise Vicuna's.
    """
    if note is not None and note.template is not None:
        return note.template, "its curate.json says so"
    if chat_template is not None:
        return OWN_TEMPLATE, "it comes with a chat template"
    for pattern, template in _TEMPLATE_BY_NAME:
        needs = prompts.get(template).needs
        if re.search(pattern, Path(name).name.lower()) and all(token in tokenizer.control_ids for token in needs):
            return template, f"models named like {Path(name).name!r} were trained with it"
    return "vicuna", _UNTAUGHT


@contextmanager
def quietly() -> Iterator[None]:
    """Turn off transformers' progress bars and logs within the block; curate reports the same in its own words."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
