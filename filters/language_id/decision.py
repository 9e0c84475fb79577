"""Decide the language of texts from their evidence: one language, `mixed`, or `unknown`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curate.filters.language_id import MIXED, UNKNOWN, detector, profiles, scripts
from curate.filters.language_id.evidence import Evidence, gather, gather_sides

MINOR = 1 / 3  # a text with a greater share of letters in another language or script is mixed
LIKELY = 0.5  # posterior of a language below which it is unknown
FEWEST = 12  # Latin letters: fewer tell nothing, since each language has such words


def detect(texts: Sequence[str]) -> tuple[list[str], NDArray[np.float32]]:
    """Return the language of each text and the confidence in it (0 to 1, see `language`)."""
    return decide(gather(texts))


def decide_sides(
    prompts: Sequence[str], answers: Sequence[str]
) -> tuple[list[str], NDArray[np.float32], list[str], list[str]]:
    """Return the language of conversations, the confidence in it, and the languages of their prompts and answers."""
    sides = gather_sides(prompts, answers)
    own, other = (decide(side)[0] for side in sides)
    known, others_known = (np.array([code != UNKNOWN for code in codes], bool) for codes in (own, other))
    evidence = sides[0].take(known | ~others_known) + sides[1].take(others_known | ~known)
    return *decide(evidence), own, other


def decide(evidence: Evidence) -> tuple[list[str], NDArray[np.float32]]:
    """Return the language that each text's evidence speaks for, and the confidence in it."""
    counts, means = scripts.spoken(evidence.counts, evidence.votes), evidence.means.copy()
    scripts.settle(counts, means)
    groups = np.where(scripts.is_east_asian(counts), np.maximum(1, evidence.groups), evidence.groups)
    best, confidence = detector.posterior(means, groups)
    confidence = np.where((confidence < LIKELY) | _is_short(counts), 0, np.round(confidence, 4))
    own, votes = _own_votes(evidence, best), evidence.votes.sum(axis=1)
    weight = np.maximum(1, evidence.weights)
    mixed = np.maximum(scripts.minor_share(counts), (votes - own) / weight) > MINOR
    confidence = np.where(mixed, np.round(votes / weight, 4), confidence)
    names = [
        MIXED if both else _name(profiles.codes()[column], variant) if sure else UNKNOWN
        for column, sure, both, variant in zip(best, confidence > 0, mixed, scripts.variants(counts), strict=True)
    ]
    return names, confidence.astype(np.float32)


def _is_short(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether a text has Latin letters only, and so few that they tell nothing."""
    short: NDArray[np.bool_] = (counts[:, scripts.LATIN] < FEWEST) & (counts[:, scripts.HAN :].sum(axis=1) == 0)
    return short


def _own_votes(evidence: Evidence, best: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the votes for each text's best language; those for the Chinese codes are for one language."""
    chinese = [profiles.codes().index(code) for code in scripts.CHINESE]
    own: NDArray[np.float64] = np.take_along_axis(evidence.votes, best[:, None], axis=1)[:, 0]
    return np.where(np.isin(best, chinese), evidence.votes[:, chinese].sum(axis=1), own)


def _name(code: str, variant: int) -> str:
    """Return a language's code; of Chinese, `zh-cn` for simplified characters, `zh-tw` for traditional ones."""
    if code not in scripts.CHINESE or variant == 0:
        return code
    return "zh-cn" if variant > 0 else "zh-tw"
