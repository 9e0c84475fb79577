"""The filter of near duplicates; `curate.filters.minhash` has its parts, `curate.pipeline.near` runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curate.errors import RecipeError, did_you_mean
from curate.filters.examples import Examples, chat
from curate.filters.registry import Settings, corpus_rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from curate.filters.minhash.matches import Pair

NAME = "near_duplicates"
CHOICES = {"of": ("conversations", "prompts"), "action": ("drop", "flag")}
RIVER = "The Nile is a river in Africa that flows north through eleven countries to the Mediterranean Sea"


@dataclass(frozen=True)
class Candidates:
    """What near duplicates are chosen from.

    `bands` is [conversations, bands], `order` has the conversations from the best to the worst. `compare` returns the
    Jaccard figures of a conversation and some others, 0 where their own texts differ (see `minhash.templates`).
    """

    bands: NDArray[np.uint32]
    order: NDArray[np.int64]
    compare: Callable[[int, list[int]], list[float]]


def check_settings(settings: Settings) -> None:
    """Raise RecipeError for a value that is not allowed."""
    for name, allowed in CHOICES.items():
        if settings[name] not in allowed:
            hint = did_you_mean(str(settings[name]), allowed)
            raise RecipeError(f"filter {NAME!r}: {name} = {settings[name]!r} is not allowed{hint}")
    for name, lowest in (("threshold", 0.5), ("common", 0.0)):
        value = settings[name]
        if not isinstance(value, float) or not lowest <= value <= 1:
            raise RecipeError(f"filter {NAME!r}: {name} = {value!r} is not allowed; give a number from {lowest:g} to 1")


@corpus_rule(
    check=check_settings,
    examples=Examples(
        chat("Tell me about a river.", f"{RIVER}, where it has a wide and fertile delta."),
        chat("Tell me about a river.", "The Rhine rises in the Alps and flows through six countries to the North Sea."),
        before=[chat("Tell me about a river.", f"{RIVER}, where it has a large, wide and fertile delta.")],
        settings={"threshold": 0.7},
    ),
)
def near_duplicates(
    candidates: Candidates,
    threshold: float = 0.8,
    of: str = "conversations",
    common: float = 0.01,
    action: str = "drop",
) -> list[list[Pair]]:
    """Drop conversations that say nearly the same as a better one: equal in `threshold` of their runs of five words.

    The figure is Jaccard's: the runs that both have, divided by those that either has. Case, punctuation and space do
    not count; Chinese, Japanese, Korean and Thai count by letter. System messages and definitions of tools are left
    out, and with `of = "prompts"` all but the prompts. Of similar conversations, the one that trains the most answers
    is kept, of equal ones the longest, then the one with the most messages. A conversation is dropped only for its own
    figure to a kept one, never for a chain of others between them. Runs in more than the share `common` of all
    conversations (and in 50) are a template's: where they are most of a conversation, the rest must be as similar too.
    With `action = "flag"` all are kept; similar ones are still in one cluster, so that they are held out together.
    """
    # 0.5 is the lowest threshold: pairs below that share a band too rarely to be found.
    from curate.filters.minhash.matches import match  # imports NumPy: late, to keep `curate filters` fast

    return match(candidates.bands, candidates.order, candidates.compare, threshold)
