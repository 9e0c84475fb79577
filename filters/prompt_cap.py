"""The filter that caps conversations with one prompt; `curate.filters.semantic` compares prompts by a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curate.errors import RecipeError
from curate.filters.examples import Examples, chat
from curate.filters.registry import Settings, corpus_rule

NAME = "prompt_cap"


@dataclass(frozen=True)
class Grouped:
    """The group of each conversation, by its prompt, and all conversations from the best to the worst."""

    groups: Sequence[int]
    order: Sequence[int]


def check_settings(settings: Settings) -> None:
    """Raise RecipeError for a value that is not allowed."""
    for name, lowest, highest in (("most", 1, 10**9), ("threshold", 0.8, 1)):
        value = settings[name]
        if not isinstance(value, int | float) or not lowest <= value <= highest:
            wanted = f"from {lowest:g} to {highest:g}" if name == "threshold" else "of at least 1"
            raise RecipeError(f"filter {NAME!r}: {name} = {value!r} is not allowed; give a number {wanted}")


@corpus_rule(
    check=check_settings,
    examples=Examples(
        chat("Name a large river!", "The Rhine, which is long."),
        chat("Name a large lake!", "The Caspian Sea, which is large."),
        settings={"most": 1},
        before=[chat("Name a large river!", "The Nile.", "And one more?", "The Amazon.")],
    ),
)
def prompt_cap(
    grouped: Grouped,
    most: int = 3,
    model: str = "",
    threshold: float = 0.95,
    languages: tuple[str, ...] = ("en",),
) -> list[tuple[int, int]]:
    """Keep at most `most` conversations with the same first prompt, without regard to case and white space.

    With a `model`, prompts that mean the same count as one too: the folder of a sentence model (model2vec, extra
    `[semantic]`; or one of transformers, extra `[train]`, with mean pooling), which compares prompts in the `languages`
    that it knows, and only within a language. The cosine of two prompts is at least `threshold`; below 0.95, "for four
    people" and "for two people" are the same. Kept are those that train the most answers, then those with the most
    messages. Those that mean the same are in one cluster, and so are held out together.
    """
    # Of prompts in a language that a model does not know, nearly all are alike, so they are compared by their words.
    from curate.filters.semantic.groups import beyond_cap  # imports NumPy: late, to keep `curate filters` fast

    return beyond_cap(grouped.groups, grouped.order, most)
