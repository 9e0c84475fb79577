"""Load a sentence model from a folder: model2vec's static ones, or any encoder of transformers with mean pooling.

Mean pooling over the tokens of the last layer is that of Sentence-BERT (Reimers and Gurevych 2019).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import MissingExtra, RecipeError

MAX_TOKENS = 256  # of a text; what follows is not read
BATCH = 64  # texts that are encoded at once
CHARACTERS = 4096  # of a text that are tokenized

Vectors = NDArray[np.float32]
Encoder = Callable[[Sequence[str]], Vectors]


def load(path: str) -> Encoder:
    """Return a function from texts to unit vectors, [texts, width].

    Raises RecipeError if the folder has no model that can be read, MissingExtra if a package is missing.
    """
    try:
        config = json.loads((Path(path) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise RecipeError(f"no sentence model in {path!r}: it has no config.json; name the model's folder") from None
    is_static = isinstance(config, dict) and config.get("model_type") == "model2vec"
    try:
        return _static(path) if is_static else _pooled(path)
    except ImportError as error:
        raise MissingExtra(f"the sentence model in {path!r}", "semantic" if is_static else "train") from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"the sentence model in {path!r} cannot be loaded: {first}") from error


def _static(path: str) -> Encoder:
    """Return the encoder of a static model, which adds up a vector for each token."""
    model = importlib.import_module("model2vec").StaticModel.from_pretrained(path)

    def encode(texts: Sequence[str]) -> Vectors:
        return _unit(np.asarray(model.encode([text[:CHARACTERS] for text in texts]), np.float32))

    return encode


def _pooled(path: str) -> Encoder:
    """Return the encoder of a transformer: the mean of its last layer over a text's tokens."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()  # it reports layers that a sentence model does not need
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModel.from_pretrained(path, local_files_only=True).eval().to(device)

    def encode_batch(texts: Sequence[str]) -> Vectors:
        options = {"padding": True, "truncation": True, "max_length": MAX_TOKENS, "return_tensors": "pt"}
        tokens = tokenizer([text[:CHARACTERS] for text in texts], **options).to(device)
        mask = tokens["attention_mask"][:, :, None].to(torch.float32)
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state.to(torch.float32)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return np.asarray(mean.cpu().numpy(), np.float32)

    def encode(texts: Sequence[str]) -> Vectors:
        order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), texts[place]))  # little padding
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        vectors = [encode_batch([texts[place] for place in batch]) for batch in batches]
        found = np.concatenate(vectors) if vectors else np.empty((0, 1), np.float32)
        return _unit(found[np.argsort(order)])

    return encode


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)
