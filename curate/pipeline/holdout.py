"""Choose the conversations that are held out for evaluation, by a keyed hash of their cluster."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from curate.pipeline.recipe import EvalSettings

NONE_HELD_OUT = "no conversation is held out"  # begins a warning
Split = Literal["train", "eval"]
MAX_OVERSHOOT = 10  # times the requested share, of the smallest cluster


def assign_split(clusters: Sequence[str], fraction: float, minimum: int, seed: str) -> list[Split]:
    """Return `train` or `eval` for each kept conversation, by a keyed hash of its cluster.

    All conversations of a cluster are in the same split, regardless of their order; conversations added later do not
    move a cluster, unless they join it or it is large. A cluster larger than the whole `fraction` is trained on, if
    smaller ones exist. If no hash is below `fraction`, the cluster with the lowest hash goes to eval. All go to train
    if there are fewer than `minimum` conversations, one cluster, or only clusters far larger than the `fraction`.
    """
    return assign_splits(clusters, np.empty(0, np.uint64), EvalSettings(fraction, minimum, seed))[0]


def assign_splits(
    clusters: Sequence[str], alone: NDArray[np.uint64], settings: EvalSettings
) -> tuple[list[Split], NDArray[np.bool_]]:
    """Return the split of each conversation, and of those that are `alone` in a cluster whether they are held out.

    `alone` has the number that is such a cluster's name in hexadecimal digits; see `assign_split`.
    """
    sizes = Counter(clusters)
    total = len(clusters) + len(alone)
    target = settings.fraction * total
    largest = max(target, 1 if len(alone) else min(sizes.values(), default=0))
    if total < settings.minimum or len(sizes) + len(alone) < 2 or largest > MAX_OVERSHOOT * target:
        return ["train"] * len(clusters), np.zeros(len(alone), bool)
    key = hashlib.blake2b(settings.seed.encode("utf-8"), digest_size=32).digest()
    positions = {cluster: _position(cluster, key) for cluster, size in sizes.items() if size <= largest}
    chosen = {cluster for cluster, position in positions.items() if position < settings.fraction}
    own = np.fromiter((_position(cluster_name(int(number)), key) for number in alone), np.float64, len(alone))
    held_out = own < settings.fraction
    if not chosen and not held_out.any():
        least = alone[own == own.min(initial=1.0)]
        positions |= {cluster_name(int(number)): _position(cluster_name(int(number)), key) for number in least}
        chosen = {min(positions, key=lambda cluster: (positions[cluster], cluster))}
        held_out = np.isin(alone, [number for number in least if cluster_name(int(number)) in chosen])
    return ["eval" if cluster in chosen else "train" for cluster in clusters], held_out


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
