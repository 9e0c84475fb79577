"""Sequence classifiers of transformers, by Hub name or folder: the probability of a label for each text, in batches."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from curate.errors import MissingExtra, RecipeError, did_you_mean

NEGATED = re.compile(r"\b(?:no|non|not)\b|^(?:no|non|not)[-_ ]", re.IGNORECASE)


@functools.lru_cache(maxsize=2)
def load(name: str) -> tuple[Any, Any]:
    """Return tokenizer and model of a sequence classifier; see `load_model`."""
    return load_model(name, "AutoModelForSequenceClassification")


def load_model(name: str, kind: str) -> tuple[Any, Any]:
    """Return tokenizer and model, on a GPU if there is one; raises RecipeError, MissingExtra without transformers."""
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtra(f"the classifier {name!r}", "train") from error
    transformers.logging.set_verbosity_error()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = getattr(transformers, kind).from_pretrained(name)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"the classifier {name!r} cannot be loaded: {first}") from error
    return tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def choose_label(names: Mapping[int, str], wanted: str, word: str) -> int:
    """Return the number of the label `wanted`; if that is empty, of the only one that has `word` and is not negated."""
    if wanted:
        for number, name in names.items():
            if name == wanted:
                return number
        raise RecipeError(f"the classifier has no label {wanted!r}{did_you_mean(wanted, names.values())}")
    matches = [number for number, name in names.items() if word in name.lower() and not NEGATED.search(name)]
    if len(matches) != 1:
        raise RecipeError(f"which label means {word!r}? Set label to one of {', '.join(names.values())}")
    return matches[0]


def probabilities(
    texts: Sequence[str], name: str, label: str, word: str, batch_size: int, max_tokens: int
) -> list[float]:
    """Return the probability of a label for each text, of which the first `max_tokens` are read.

    Texts of similar length are in one batch, so that little of it is padding. With one output, it is the sigmoid.
    """
    torch: Any = importlib.import_module("torch")
    tokenizer, model = load(name)
    chosen = choose_label(model.config.id2label, label, word) if model.config.num_labels > 1 else 0
    results = [0.0] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**batch.to(model.device)).logits.float()
        values = logits.softmax(-1)[:, chosen] if logits.shape[-1] > 1 else logits[:, 0].sigmoid()
        for row, value in zip(rows, values.tolist(), strict=True):
            results[row] = value
    return results
