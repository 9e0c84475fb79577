"""Base models: found by folder, Hub name or `tiny` without touching weights, then loaded with one copy in memory.

The loader is transformers' own: modules on the meta device, tensors streamed from mapped safetensors files straight to
where they stay. What it would only log (a weight that is missing and drawn at random) is an error here.
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from curate import tokens
from curate.errors import ModelError, TokenizerError
from curate.schemas import prompts
from curate.train import model_files, serving
from curate.train.model_files import Say
from curate.train.shape import Linear, Shape

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
    tokenizer: tokens.Tokenizer
    chat_template: str | None
    template: str
    reason: str

    @property
    def knows_template(self) -> bool:
        """Whether the model was trained with its template; a base model has yet to be taught one."""
        return self.reason != _UNTAUGHT


def silent(text: str) -> None:
    """Take a message and do nothing with it."""


# ---- found


def find(name: str, *, tokenizer: tokens.Tokenizer | None = None) -> Source:
    """Find a model by folder, Hub name, or `tiny`; `tokenizer` stands in for its own (`tiny` needs the set's).

    Raises ModelError or TokenizerError: one line with what to type.
    """
    if name == TINY:
        return _tiny(tokenizer)
    if not name:
        raise ModelError("no model is named; type --model with a folder, a Hub name or tiny")
    folder = model_files.locate(name)
    config = _config(name, folder)
    own = tokenizer or _tokenizer(name, folder)
    _check_vocabulary(name, config, own)
    chat_template = serving.own_chat_template(folder)
    template, reason = natural(name, serving.note(folder), chat_template, own)
    return Source(name, folder, config, own, chat_template, template, reason)


def _tiny(tokenizer: tokens.Tokenizer | None) -> Source:
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

    plain = model_files.read_json(folder / model_files.CONFIG)
    model_type = plain.get("model_type")
    try:
        with _quietly():
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


def _tokenizer(name: str, folder: Path) -> tokens.Tokenizer:
    try:
        return tokens.load(str(folder))
    except TokenizerError as error:
        if "holds neither" not in str(error):
            raise
        raise TokenizerError(
            f"model {name!r} has no tokenizer: neither a tokenizer.json nor a tokenizer.model; name one: "
            "--tokenizer FOLDER"
        ) from None


def _check_vocabulary(name: str, config: Any, tokenizer: tokens.Tokenizer) -> None:
    rows, ids = config.get_text_config().vocab_size, tokenizer.info.vocab_size
    if ids > rows:
        raise TokenizerError(
            f"tokenizer {tokenizer.info.name!r} has {ids:,} tokens, model {name!r} embeddings for {rows:,}; "
            "give the model's own with --tokenizer"
        )


def natural(
    name: str, note: serving.Note | None, chat_template: str | None, tokenizer: tokens.Tokenizer
) -> tuple[str, str]:
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


# ---- loaded


def load(
    source: Source,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    quantise: bool = False,
    seed: int = 0,
    say: Say = silent,
) -> nn.Module:
    """Load a model's weights in `dtype` straight onto a device; `tiny` is drawn from `seed`.

    `quantise` holds the layers' matrices in 4 bits (NF4, its scales quantised too: QLoRA's). `say` is told what is
    fetched and what in the files was not used. Raises ModelError for weights that are absent, damaged or do not fit.
    """
    device = _indexed(torch.device(device))
    if source.folder is None:
        return _drawn(source, dtype, device, quantise, seed)
    _check_quantised(source, quantise)
    folder = model_files.fetch(source.name, source.folder, say)
    found = model_files.weights(folder)
    if found.form == "bin":
        say(f"{source.name} has its weights in the legacy .bin form: they load more slowly, as data alone, not as code")
    return _from_files(source, folder, dtype, device, quantise, say)


def _drawn(source: Source, dtype: torch.dtype, device: torch.device, quantise: bool, seed: int) -> nn.Module:
    if not quantise:
        return fresh(source.config, dtype=dtype, device=device, seed=seed)
    model: Any = fresh(source.config, dtype=dtype, device="cpu", seed=seed)
    with TemporaryDirectory() as folder, _quietly():  # bitsandbytes quantises what comes from files
        model.save_pretrained(folder)
        return _from_files(source, Path(folder), dtype, device, True, silent)


def _indexed(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_quantised(source: Source, quantise: bool) -> None:
    """Refuse weights that were quantised by others, but for bitsandbytes' 4 bits, which qlora trains on."""
    given = getattr(source.config, "quantization_config", None)
    if not given:
        return
    method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
    four = given.get("load_in_4bit") if isinstance(given, dict) else getattr(given, "load_in_4bit", False)
    if not (quantise and four):
        raise ModelError(
            f"the weights of {source.name!r} are quantised already ({getattr(method, 'value', method)}); "
            "give the model they were made from"
        )


def _from_files(
    source: Source, folder: Path, dtype: torch.dtype, device: torch.device, quantise: bool, say: Say
) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        with _quietly():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=copy.deepcopy(source.config),
                dtype=dtype,
                device_map={"": device},
                attn_implementation="sdpa" if _takes_sdpa(source.config) else "eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told of, and are errors here
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                **({"quantization_config": nf4(dtype)} if quantise else {}),
            )
    except torch.OutOfMemoryError:
        raise
    except pickle.UnpicklingError:
        raise ModelError(
            f"the legacy .bin files of {source.name!r} hold code besides weights, or are damaged; give safetensors"
        ) from None
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ModelError(f"the weights of {source.name!r} cannot be loaded: {why}") from error
    _check_loaded(source.name, info, say)
    whole: nn.Module = model
    return whole


def _takes_sdpa(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as KNOWN

    return bool(getattr(KNOWN[type(config)], "_supports_sdpa", False))


def nf4(dtype: torch.dtype) -> Any:
    """Return QLoRA's quantisation (arXiv 2305.14314): 4-bit normal floats, their scales in 8 bits, sums in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def _check_loaded(name: str, info: dict[str, Any], say: Say) -> None:
    """Raise for weights that the files lack or have in another shape; name those that the model has no place for."""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the weights of {name!r} lack {_first(missing)}; download it again")
    if other := sorted(info["mismatched_keys"]):
        key, found, wanted = other[0]
        raise ModelError(f"{key} of {name!r} has shape {tuple(found)}, its config.json says {tuple(wanted)}")
    if wrong := sorted(map(str, info["error_msgs"])):
        raise ModelError(f"the weights of {name!r} cannot be loaded: {_first(wrong)}")
    if unused := sorted(map(str, info["unexpected_keys"])):
        say(f"weights of {name} without a place in the model are left out: {_first(unused)}")


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


@contextmanager
def _quietly() -> Iterator[None]:
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


def fresh(config: Any, *, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> nn.Module:
    """Make a model of a configuration with random weights drawn from `seed` on its device, moving no random state."""
    from transformers import AutoModelForCausalLM

    place = _indexed(torch.device(device))
    cards = [place.index] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), place, _quietly():
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    return model.eval()


# ---- measured without weights


def shape(config: Any) -> Shape:
    """Return a model's sizes from its configuration: its modules are made without memory, on the meta device."""
    return shape_of(outline(config))


def outline(config: Any) -> nn.Module:
    """Return a model's modules without memory, on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), _quietly():
        model: nn.Module = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    return model


def shape_of(model: Any) -> Shape:
    """Return the sizes of a model that is there, on whatever device, before adapters are put into it."""
    config = model.config.get_text_config()
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    heads = config.num_attention_heads if getattr(config, "num_attention_heads", None) else 1
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embeddings=table.numel(),
        head=0 if head is table else head.numel(),
        linears=_linears(model.base_model),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=len(table),
        positions=getattr(config, "max_position_embeddings", None) or 2048,
    )


def _linears(body: nn.Module) -> tuple[Linear, ...]:
    """Return the matrices of the layers, in the order they first come; GPT-2 calls its own Conv1D."""
    counts: dict[tuple[str, int, int], int] = {}
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        elif type(module).__name__ == "Conv1D":
            inputs, outputs = (int(size) for size in module.weight.shape)
        else:
            continue
        key = (name.rpartition(".")[2], inputs, outputs)
        counts[key] = counts.get(key, 0) + 1
    return tuple(Linear(*key, count) for key, count in counts.items())
