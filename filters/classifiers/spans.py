"""Token classifiers of transformers, such as OpenAI's Privacy Filter: the spans of labels in texts of any length."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from curate.errors import RecipeError
from curate.filters.classifiers import load_model

OUTSIDE = "O"
OVERLAP = 128  # tokens that two windows of a text share: each label is taken where it is further from a border


class Span(NamedTuple):
    """A label, and the start and end of its span in characters."""

    label: str
    start: int
    end: int


class _Token(NamedTuple):
    label: str  # as BIOES: B-, I-, E- or S- before it, or O
    start: int
    end: int


@functools.lru_cache(maxsize=2)
def load(name: str) -> tuple[Any, Any]:
    """Return tokenizer and model; raises RecipeError, also for a tokenizer that does not tell characters."""
    tokenizer, model = load_model(name, "AutoModelForTokenClassification")
    if not tokenizer.is_fast:
        raise RecipeError(f"the classifier {name!r} has a tokenizer without offsets; save its fast one beside it")
    return tokenizer, model


def find_spans(texts: Sequence[str], name: str, batch_size: int, max_tokens: int) -> list[list[Span]]:
    """Return the spans of each text, in order; a text is read in windows of `max_tokens` tokens that overlap."""
    if not texts:
        return []
    tokenizer, model = load(name)
    overlap = min(OVERLAP, max_tokens // 4)
    windows = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_tokens,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners = windows["overflow_to_sample_mapping"]
    labels = _label(tokenizer, model, windows["input_ids"], batch_size)
    tokens: list[list[_Token]] = [[] for _ in texts]
    for place, owner in enumerate(owners):
        is_last = place + 1 == len(owners) or owners[place + 1] != owner
        window = [
            _Token(model.config.id2label[label], start, end)
            for label, (start, end) in zip(labels[place], windows["offset_mapping"][place], strict=True)
            if end > start  # not a control token
        ]
        known = tokens[owner][-1].start if tokens[owner] else -1
        kept = window if is_last else window[: len(window) - overlap // 2]
        tokens[owner] += (token for token in kept if token.start > known)
    return [list(_join(of_text)) for of_text in tokens]


def _label(tokenizer: Any, model: Any, windows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return the most likely label of each token; windows of similar length are in one batch."""
    torch: Any = importlib.import_module("torch")
    order = sorted(range(len(windows)), key=lambda index: len(windows[index]), reverse=True)
    labels: list[list[int]] = [[] for _ in windows]
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        padded = tokenizer.pad(
            {"input_ids": [windows[row] for row in rows]}, padding_side="right", return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            chosen = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits.argmax(-1)
        for row, values in zip(rows, chosen.tolist(), strict=True):
            labels[row] = values[: len(windows[row])]
    return labels


def _join(tokens: Sequence[_Token]) -> Iterator[Span]:
    """Yield the spans of neighbouring tokens with one label; B- and S- begin a new one."""
    open_span: Span | None = None
    for token in tokens:
        mark, name = token.label.split("-", 1) if token.label[1:2] == "-" else ("I", token.label)
        if open_span is not None and (name != open_span.label or mark in "BS"):
            yield open_span
            open_span = None
        if name != OUTSIDE:
            open_span = Span(name, open_span.start if open_span else token.start, token.end)
    if open_span is not None:
        yield open_span
