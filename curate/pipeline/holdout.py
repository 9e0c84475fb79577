"""Choose the conversations that are held out for evaluation, by a keyed hash of their cluster."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.pipeline.recipe import EvalSettings

NONE_HELD_OUT = "no conversation is held out"  # begins a warning
Split = Literal["train", "eval"]
Mask = NDArray[np.bool_]
Keys = NDArray[np.uint64]
MAX_OVERSHOOT = 10  # times the requested share, of the smallest cluster


def assign_split(clusters: Sequence[str], fraction: float, minimum: int, seed: str) -> list[Split]:
    """Return `train` or `eval` for each kept conversation, by a keyed hash of its cluster.

    All conversations of a cluster are in the same split, regardless of their order; conversations added later do not
    move a cluster, unless they join it or it is large. A cluster larger than the whole `fraction` is trained on, if
    smaller ones exist. If no hash is below `fraction`, the cluster with the lowest hash goes to eval. All go to train
    if there are fewer than `minimum` conversations, one cluster, or only clusters far larger than the `fraction`.
    """
    names = pl.Series(clusters, dtype=pl.String)
    held_out = choose(lambda: [names], list, EvalSettings(fraction, minimum, seed)).of(names)
    return ["eval" if held else "train" for held in held_out]


@dataclass(frozen=True)
class HoldOut:
    """Which clusters are held out: those of at most `largest` conversations whose hash is below `fraction`.

    If there is none, only the cluster of the name `first`, which has the lowest hash.
    """

    fraction: float
    key: bytes
    largest: float
    first: str | None = None

    def of(self, clusters: pl.Series) -> pl.Series:
        """Return which conversations are held out, by their clusters, of which all others have no conversation."""
        small = _sizes(clusters).filter(pl.col("size") <= self.largest)["cluster"]
        chosen = small.filter(pl.Series(self._chosen(small.to_list()), dtype=pl.Boolean))
        return clusters.is_in(chosen.implode())

    def of_alone(self, numbers: Keys) -> Mask:
        """Return which conversations are held out that are alone in a cluster: the number is its hexadecimal name."""
        if not self.largest:
            return np.zeros(len(numbers), bool)
        return np.array(self._chosen([cluster_name(number) for number in numbers.tolist()]), bool)

    def _chosen(self, names: Sequence[str]) -> list[bool]:
        if self.first is not None:
            return [name == self.first for name in names]
        return [self.position(name) < self.fraction for name in names]

    def position(self, cluster: str) -> float:
        """Return a cluster's keyed hash as a number in [0, 1)."""
        digest = hashlib.blake2b(cluster.encode("utf-8"), digest_size=8, key=self.key).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53  # a float has 53 bits of precision


def choose(
    groups: Callable[[], Iterable[pl.Series]], alone: Callable[[], Iterable[Keys]], settings: EvalSettings
) -> HoldOut:
    """Choose which clusters are held out; see `assign_split`.

    `groups` iterates over the clusters of all conversations, those of one cluster in one series, and `alone` over
    further ones, each of which is the only one of its cluster: the number is its name in hexadecimal digits.
    """
    key = hashlib.blake2b(settings.seed.encode("utf-8"), digest_size=32).digest()
    further = sum(len(numbers) for numbers in alone())
    total, count, smallest = further, further, 1 if further else sys.maxsize
    for names in groups():
        sizes = _sizes(names)["size"].cast(pl.Int64).to_numpy()
        total, count = total + len(names), count + len(sizes)
        smallest = min(smallest, int(sizes.min(initial=sys.maxsize)))
    target = settings.fraction * total
    largest = max(target, smallest if count else 0)
    if total < settings.minimum or count < 2 or largest > MAX_OVERSHOOT * target:
        return HoldOut(settings.fraction, key, largest=0)
    chosen = HoldOut(settings.fraction, key, largest)
    lowest: tuple[float, str] | None = None
    for name in _small(groups, alone, largest):
        place = chosen.position(name), name
        if place[0] < settings.fraction:
            return chosen
        lowest = place if lowest is None else min(lowest, place)
    return replace(chosen, first=lowest[1] if lowest else None)


def _small(
    groups: Callable[[], Iterable[pl.Series]], alone: Callable[[], Iterable[Keys]], largest: float
) -> Iterator[str]:
    """Yield the names of the clusters of at most `largest` conversations."""
    for names in groups():
        yield from _sizes(names).filter(pl.col("size") <= largest)["cluster"]
    for numbers in alone():
        yield from map(cluster_name, numbers.tolist())


def _sizes(clusters: pl.Series) -> pl.DataFrame:
    return clusters.rename("cluster").value_counts(name="size")


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
