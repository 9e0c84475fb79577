"""Find a model by folder, Hub name or `tiny`, and read everything about it but its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.errors import ModelError, TokenizerError
from curate.model import files, serving
from curate.schemas import prompts
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer

TINY = "tiny"
OWN_TEMPLATE = "model"  # the model's own chat template, by the name that `data.template` has for it
# LLaMA's form; 8.6M parameters with LLaMA-3's vocabulary, 2.4M with LLaMA-2's.
_TINY_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
_NAMED = (  # what released models are called, and the prompt they were trained with
    (r"vicuna", "vicuna"),
    (r"alpaca", "alpaca"),
    (r"llama-?2.*chat|code-?llama.*instruct", "llama2"),
    (r"llama-?3.*instruct", "llama3"),
)
_UNTAUGHT = "it has no chat template, so Vicuna's is taught"
_HEADS = ("forcausallm", "lmheadmodel", "withlmhead")  # how classes that end in a language model's head are called


@dataclass(frozen=True)
class Source:
    """A model as its folder tells it, no weight touched.

    `config` is transformers' configuration, `folder` null for `tiny`. `template` is the model's natural prompt: a
    built-in one by name, or `model` for its own `chat_template`; `reason` says why that one.
    """

    name: str
    folder: Path | None
    config: Any
    tokenizer: Tokenizer
    chat_template: str | None
    template: str
    reason: str

    @property
    def knows_template(self) -> bool:
        """Whether the model was trained with its template; a base model has yet to be taught one."""
        return self.reason != _UNTAUGHT


def ignore_message(text: str) -> None:
    """Take a message and do nothing with it."""


# ---- found


def find(name: str, *, tokenizer: Tokenizer | None = None) -> Source:
    """Find a model by folder, Hub name, or `tiny`; `tokenizer` stands in for its own (`tiny` needs the set's).

    Raises ModelError or TokenizerError: one line with what to type.
    """
    if name == TINY:
        return _tiny(tokenizer)
    if not name:
        raise ModelError("no model is named; type --model with a folder, a Hub name or tiny")
    folder = files.locate(name)
    config = _config(name, folder)
    own = tokenizer or _tokenizer(name, folder)
    _check_vocabulary(name, config, own)
    chat_template = serving.own_chat_template(folder)
    template, reason = natural(name, serving.note(folder), chat_template, own)
    return Source(name, folder, config, own, chat_template, template, reason)


def _tiny(tokenizer: Tokenizer | None) -> Source:
    from transformers import LlamaConfig

    if tokenizer is None:
        raise ModelError("model 'tiny' has no tokenizer of its own; it takes the set's, so name a curated set")
    info = tokenizer.info
    config = LlamaConfig(
        vocab_size=info.vocab_size, bos_token_id=info.bos_id, eos_token_id=info.eos_id, pad_token_id=None, **_TINY_SHAPE
    )
    config.architectures = ["LlamaForCausalLM"]
    template, reason = natural(TINY, None, None, tokenizer)
    return Source(TINY, None, config, tokenizer, None, template, reason)


def _config(name: str, folder: Path) -> Any:
    """Return a model's configuration; raises ModelError for one that is not a causal language model of transformers."""
    from transformers import AutoConfig, __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    plain = files.read_json(folder / files.CONFIG)
    model_type = plain.get("model_type")
    try:
        with quietly():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError) as error:
        if plain.get("auto_map"):
            raise ModelError(f"{name!r} needs Python code from its own folder, which is not run here") from None
        if model_type is None:
            raise ModelError(f"the config.json of {name!r} names no model_type; give a model of transformers") from None
        why = str(error).strip().partition("\n")[0]
        raise ModelError(f"transformers {__version__} cannot read the config.json of {name!r}: {why}") from None
    said = [str(one) for one in config.architectures or []]
    wanted = KNOWN.get(config.model_type)
    wanted = wanted if isinstance(wanted, str) else None
    if wanted is None or (said and wanted not in said and not any(_has_head(one) for one in said)):
        what = said[0] if said else f"of type {config.model_type!r}"
        raise ModelError(f"{name!r} is {what}, not a causal language model; give one such as a LLaMA")
    return config


def _has_head(architecture: str) -> bool:
    return architecture.lower().endswith(_HEADS)  # LLaMA-1's first conversions wrote LLaMAForCausalLM


def _tokenizer(name: str, folder: Path) -> Tokenizer:
    try:
        return load_tokenizer(str(folder))
    except TokenizerError as error:
        if "holds neither" not in str(error):
            raise
        raise TokenizerError(
            f"model {name!r} has no tokenizer: neither a tokenizer.json nor a tokenizer.model; name one: "
            "--tokenizer FOLDER"
        ) from None


def _check_vocabulary(name: str, config: Any, tokenizer: Tokenizer) -> None:
    rows, ids = config.get_text_config().vocab_size, tokenizer.info.vocab_size
    if ids > rows:
        raise TokenizerError(
            f"tokenizer {tokenizer.info.name!r} has {ids:,} tokens, model {name!r} embeddings for {rows:,}; "
            "give the model's own with --tokenizer"
        )


def natural(name: str, note: serving.Note | None, chat_template: str | None, tokenizer: Tokenizer) -> tuple[str, str]:
    """Return the prompt template that suits a model, and why: what it was trained with, as far as that is known."""
    if note is not None and note.template is not None:
        return note.template, "its curate.json says so"
    if chat_template is not None:
        return OWN_TEMPLATE, "it ships a chat template"
    for pattern, template in _NAMED:
        needs = prompts.get(template).needs
        if re.search(pattern, Path(name).name.lower()) and all(one in tokenizer.control_ids for one in needs):
            return template, f"models named like {Path(name).name!r} were trained with it"
    return "vicuna", _UNTAUGHT


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from drawing bars and from logging what is told here by errors and messages."""
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
