"""Choose the conversations that are held out for evaluation, by a keyed hash of their cluster."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from curate.pipeline.recipe import EvalSettings

NONE_HELD_OUT = "no conversation is held out"  # begins a warning
MAX_OVERSHOOT = 10  # times the requested share, of the smallest cluster


def assign_split(clusters: Sequence[str], fraction: float, minimum: int, seed: str) -> list[Literal["train", "eval"]]:
    """Return `train` or `eval` for each kept conversation, by a keyed hash of its cluster.

    All conversations of a cluster are in the same split, regardless of their order; conversations added later do not
    move a cluster, unless they join it or it is large. A cluster larger than the whole `fraction` is trained on, if
    smaller ones exist. If no hash is below `fraction`, the cluster with the lowest hash goes to eval. All go to train
    if there are fewer than `minimum` conversations, one cluster, or only clusters far larger than the `fraction`.
    """
    sizes = Counter(clusters)
    target = fraction * len(clusters)
    largest = max(target, min(sizes.values(), default=0))
    if len(clusters) < minimum or len(sizes) < 2 or largest > MAX_OVERSHOOT * target:
        return ["train"] * len(clusters)
    key = hashlib.blake2b(seed.encode("utf-8"), digest_size=32).digest()
    positions = {cluster: _position(cluster, key) for cluster, size in sizes.items() if size <= largest}
    chosen = {cluster for cluster, position in positions.items() if position < fraction}
    if not chosen:
        chosen = {min(positions, key=lambda cluster: (positions[cluster], cluster))}
    return ["eval" if cluster in chosen else "train" for cluster in clusters]


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
