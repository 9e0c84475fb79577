"""Choose the conversations that are held out for evaluation, by a keyed hash of their cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal


def assign_split(clusters: Sequence[str], fraction: float, minimum: int, seed: str) -> list[Literal["train", "eval"]]:
    """Return `train` or `eval` for each kept conversation, by a keyed hash of its cluster.

    All conversations of a cluster fall on one side, whatever their order and number; what is added later moves
    no cluster. Fewer than `minimum` conversations all go to train. At least one cluster is for eval, that with the
    lowest hash, unless it would be the only one.
    """
    if len(clusters) < minimum or fraction <= 0:
        return ["train"] * len(clusters)
    key = hashlib.blake2b(seed.encode("utf-8"), digest_size=32).digest()
    places = {cluster: _place(cluster, key) for cluster in clusters}
    chosen = {cluster for cluster, place in places.items() if place < fraction}
    if not chosen and len(places) > 1:
        chosen = {min(places, key=lambda cluster: (places[cluster], cluster))}
    return ["eval" if cluster in chosen else "train" for cluster in clusters]


def _place(cluster: str, key: bytes) -> float:
    """Return where in [0, 1) a cluster's keyed hash falls."""
    digest = hashlib.blake2b(cluster.encode("utf-8"), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits: what a float holds exactly
