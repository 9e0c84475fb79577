"""Choose the conversations that are held out for evaluation, by a keyed hash of their cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.pipeline.recipe import EvalSettings

NONE_HELD_OUT = "no conversation is held out"  # begins a warning
Split = Literal["train", "eval"]
Mask = NDArray[np.bool_]
MAX_OVERSHOOT = 10  # times the requested share, of the smallest cluster


def assign_split(clusters: Sequence[str], fraction: float, minimum: int, seed: str) -> list[Split]:
    """Return `train` or `eval` for each kept conversation, by a keyed hash of its cluster.

    All conversations of a cluster are in the same split, regardless of their order; conversations added later do not
    move a cluster, unless they join it or it is large. A cluster larger than the whole `fraction` is trained on, if
    smaller ones exist. If no hash is below `fraction`, the cluster with the lowest hash goes to eval. All go to train
    if there are fewer than `minimum` conversations, one cluster, or only clusters far larger than the `fraction`.
    """
    names = pl.Series(clusters, dtype=pl.String)
    held_out, _ = hold_out(names, np.empty(0, np.uint64), EvalSettings(fraction, minimum, seed))
    return ["eval" if held else "train" for held in held_out]


def hold_out(clusters: pl.Series, alone: NDArray[np.uint64], settings: EvalSettings) -> tuple[pl.Series, Mask]:
    """Return which conversations are held out, by their clusters, and which of those `alone` in a cluster.

    `alone` has the number that is such a cluster's name in hexadecimal digits; see `assign_split`.
    """
    sizes = clusters.rename("cluster").value_counts(name="size")
    total = len(clusters) + len(alone)
    target = settings.fraction * total
    smallest = int(sizes["size"].min() or 0)  # type: ignore[arg-type]  # a number
    largest = max(target, 1 if len(alone) else smallest)
    if total < settings.minimum or sizes.height + len(alone) < 2 or largest > MAX_OVERSHOOT * target:
        return pl.repeat(False, len(clusters), eager=True), np.zeros(len(alone), bool)
    key = hashlib.blake2b(settings.seed.encode("utf-8"), digest_size=32).digest()
    small = sizes.filter(pl.col("size") <= largest)["cluster"]
    positions = np.fromiter((_position(cluster, key) for cluster in small), np.float64, len(small))
    chosen = small.filter(pl.Series(positions < settings.fraction))
    own = np.fromiter((_position(cluster_name(int(number)), key) for number in alone), np.float64, len(alone))
    held_out = own < settings.fraction
    if chosen.is_empty() and not held_out.any():
        lowest = min(positions.min(initial=1.0), own.min(initial=1.0))
        least = alone[own == lowest]
        named = [cluster_name(int(number)) for number in least]
        first = min([*small.filter(pl.Series(positions == lowest)), *named])
        chosen = pl.Series([first])
        held_out = np.isin(alone, [number for number, name in zip(least, named, strict=True) if name == first])
    return clusters.is_in(chosen.implode()), held_out


def cluster_name(prompt: int) -> str:
    """Return the name of the cluster whose lowest hash of a prompt this is."""
    return f"{prompt:016x}"


def explain_none(settings: EvalSettings, conversations: int) -> list[str]:
    """Return a warning if no conversation is held out although the settings ask for it."""
    if not conversations or not settings.fraction:
        return []
    if conversations < settings.minimum:
        asked = settings.fraction != EvalSettings.fraction
        few = f"{NONE_HELD_OUT}: a set of fewer than {settings.minimum:,} holds none out"
        return [f"{few}; for one of {conversations:,}, give a recipe with eval.minimum = 0"] if asked else []
    return [
        f"{NONE_HELD_OUT}: the {conversations:,} share so few first prompts or ids that the smallest "
        f"cluster has more than {MAX_OVERSHOOT} times {settings.fraction:g} of them; give a larger --eval"
    ]


def _position(cluster: str, key: bytes) -> float:
    """Return a cluster's keyed hash as a number in [0, 1)."""
    digest = hashlib.blake2b(cluster.encode("utf-8"), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # a float has 53 bits of precision
