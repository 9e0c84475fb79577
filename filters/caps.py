"""Caps on conversations with one prompt, which `curate.filters.semantic` compares, and on those of one group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from curate.errors import RecipeError
from curate.filters.examples import Examples, chat
from curate.filters.registry import Settings, corpus_rule

PROMPT_CAP, CAP = "prompt_cap", "cap"
CAPPED: dict[str, pl.DataType] = {"row": pl.UInt32(), "capped": pl.String(), "measures": pl.String()}
# From the best: it trains the most answers, then it is the longest, then the hash of its content decides, and between
# copies what they say of themselves; `row`, their order in the dump, only between those that are the same in all that.
BEST = ("untrained", "characters", "messages", "last", "source_id", "source_file", "model", "row")
MOST = frozenset(("protected", "characters", "messages"))  # of which more is better
RIVER = "The Nile is a river in Africa that flows north"


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
            raise RecipeError(f"filter {PROMPT_CAP!r}: {name} = {value!r} is not allowed; give a number {wanted}")


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


def check_limits(settings: Settings) -> None:
    """Raise RecipeError for a limit that is not allowed."""
    for name, limit in settings.items():
        if not isinstance(limit, int) or limit < 0:
            raise RecipeError(f"filter {CAP!r}: {name} = {limit!r} is not allowed; give a whole number, 0 for no limit")
    if not any(settings.values()):
        raise RecipeError(f"filter {CAP!r} has no limit; give one of {', '.join(settings)}, such as cluster = 10")


@corpus_rule(
    check=check_limits,
    examples=Examples(
        chat("Tell me about a river.", "The Rhine flows north."),
        chat("Tell me about a lake.", "Lake Victoria is the largest of Africa."),
        before=[chat("Tell me about a river.", f"{RIVER}.")],
        settings={"cluster": 1},
    ),
)
def cap(
    frame: pl.DataFrame, cluster: int = 10, source_file: int = 0, model: int = 0, language: int = 0
) -> pl.DataFrame:
    """Drop all but the best `cluster` conversations of each cluster, and so for each file, model and language.

    A cluster is what is held out together: conversations that share a first prompt, a chat or an id, or are near
    duplicates. 0 is no limit. The limits are applied in this order, each to what the one before has left. The best
    trains the most answers, then is the longest, then has the most messages; of equal ones, the hash of the content
    decides, so the order of records never does. A conversation without a model counts for none.
    """
    # `frame` has the columns of `BEST`, protected (the user keeps it), and those that name groups.
    # The result has `CAPPED` of each row that is dropped.
    limits = Limits({"cluster": cluster, "source_file": source_file, "model": model, "language": language})
    return limits.describe([limits.drop(rank(frame))])


def rank(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows from the best to the worst."""
    keys = ["protected", *BEST]
    return frame.sort(keys, descending=[key in MOST for key in keys])


class Limits:
    """Finds the conversations over limits, of 0 or more for each name of a group; see `cap`.

    The conversations come from the best to the worst, some at a time.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = {group: limit for group, limit in limits.items() if limit}
        self._sizes = {
            group: pl.DataFrame(schema={group: pl.String, "size": pl.Int64}) for group in self._limits
        }  # of what the limits before it have left

    def drop(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return those over a limit, with its `limit`, and their `number` from the best in a group of this `name`."""
        rows = rows.with_columns(pl.col(list(self._limits)).cast(pl.String))
        extra = {"limit": pl.String, "name": pl.String, "number": pl.Int64}
        dropped = [pl.DataFrame(schema={**rows.schema, **extra})]
        for group, limit in self._limits.items():
            known = self._sizes[group]
            before = rows.join(known, on=group, how="left", nulls_equal=True, maintain_order="left")["size"]
            number = rows.select(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over(group)).to_series()
            numbered = rows.with_columns(limit=pl.lit(group), name=group, number=number + before.fill_null(0))
            over = (pl.col("number") > limit) & pl.col(group).is_not_null() & ~pl.col("protected")
            sizes = rows.group_by(group).agg(size=pl.len().cast(pl.Int64))
            self._sizes[group] = pl.concat([known, sizes]).group_by(group).agg(pl.col("size").sum())
            dropped.append(numbered.filter(over))
            rows = numbered.filter(~over).select(rows.columns)
        return pl.concat(dropped)

    def describe(self, dropped: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Return `CAPPED` of what was dropped, after all conversations."""
        described = [pl.DataFrame(schema=CAPPED)]
        for rows in dropped:
            for group, limit in self._limits.items():
                own = rows.filter(pl.col("limit") == group)
                sized = own.drop("size", strict=False).join(
                    self._sizes[group].rename({group: "name"}), on="name", how="left", maintain_order="left"
                )
                described.append(sized.select(*_describe(group, limit)))
        return pl.concat(described)


def _describe(group: str, limit: int) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Return the columns of `CAPPED` for conversations over the limit of their group."""
    label = group.replace("_", " ")
    capped = pl.format(
        f"{label} {{}}: number {{}} of {{}} from the best, at most {limit} are kept", "name", "number", "size"
    )
    measures = pl.format("{} characters, {} messages, {} not trained", "characters", "messages", "untrained")
    return pl.col("row").cast(pl.UInt32), capped.alias("capped"), measures.alias("measures")
