"""What a checkpoint records, besides tensors, for an exact resumption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curate.model.choices import ATTENTION, DTYPES, OPTIMIZER_FORMS
from curate.model.fingerprint import Fingerprint
from curate.settings import decode_json

ACTIVATIONS = ("none", "full", "auto")  # of `train.checkpointing`


@dataclass(frozen=True)
class Facts:
    """The facts in a checkpoint's `state.json`: the run's choices, its data, and what the trainer has counted."""

    kind: str  # of the device
    ranks: int
    dtype: str
    attention: str
    form: str  # of the optimizer
    compiled: bool
    micro_batch: int
    checkpointing: str
    scale: float  # of an fp16 loss
    good: int  # steps since the scale changed
    data: dict[str, Any]  # which determines the packed rows of each step
    seconds: float = 0.0
    loss: float | None = None
    base: Fingerprint | None = None  # None for `tiny`, and in checkpoints of earlier versions


def check(facts: Mapping[str, Any]) -> None:
    """Raise ValueError, which names the key, for facts that no run of curate writes."""
    found = decode_json(Facts, dict(facts))
    for key, allowed in (
        ("dtype", DTYPES),
        ("attention", ATTENTION),
        ("form", OPTIMIZER_FORMS),
        ("checkpointing", ACTIVATIONS),
    ):
        if (value := getattr(found, key)) not in allowed:
            raise ValueError(f"`{key}` is {value[:40]!r}, not one of {', '.join(allowed)}")
