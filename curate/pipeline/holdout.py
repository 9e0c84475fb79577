"""Choose the conversations that are held out for evaluation, by a keyed hash of their cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal


def assign_split(clusters: Sequence[str], fraction: float, minimum: int, seed: str) -> list[Literal["train", "eval"]]:
    """Return `train` or `eval` for each kept conversation, by a keyed hash of its cluster.

    All conversations of a cluster are in the same split, regardless of their order and number; conversations added
    later do not move a cluster. Fewer than `minimum` conversations all go to train. If no hash is below `fraction`, the
    cluster with the lowest hash goes to eval, unless it is the only one.
    """
    if len(clusters) < minimum or fraction <= 0:
        return ["train"] * len(clusters)
    key = hashlib.blake2b(seed.encode("utf-8"), digest_size=32).digest()
    positions = {cluster: _position(cluster, key) for cluster in clusters}
    chosen = {cluster for cluster, position in positions.items() if position < fraction}
    if not chosen and len(positions) > 1:
        chosen = {min(positions, key=lambda cluster: (positions[cluster], cluster))}
    return ["eval" if cluster in chosen else "train" for cluster in clusters]


def _position(cluster: str, key: bytes) -> float:
    """Return a cluster's keyed hash as a number in [0, 1)."""
    digest = hashlib.blake2b(cluster.encode("utf-8"), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # a float has 53 bits of precision
