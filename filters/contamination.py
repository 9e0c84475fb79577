"""Contamination: conversations that hold items of benchmarks. `filters.fingerprints` compares the two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from curate.errors import RecipeError
from curate.filters.examples import Examples, chat
from curate.filters.registry import EVIDENCE, get, reject, rule, signal

if TYPE_CHECKING:
    from curate.filters.fingerprints.index import Index, Match

BENCHMARKS = ("gsm8k", "humaneval", "mmlu", "mt_bench")
SIDES = {"user": "contamination_prompts", "assistant": "contamination_answers"}  # by role, in the order of groups
ACTIONS = ("drop", "flag")
NAMED = 10  # items of a conversation that are named
BETWEEN = " | benchmark: "  # the conversation's passage and the benchmark's text


@signal(
    contamination_prompts=pl.Float32,
    contamination_answers=pl.Float32,
    contamination_run=pl.Int32,
    contamination_items=pl.String,
    contamination_passage=pl.String,
    contamination_text=pl.String,
)
def benchmark_overlap(frame: pl.DataFrame, benchmarks: tuple[str, ...] = BENCHMARKS) -> pl.DataFrame:
    """Measure how much of a benchmark's item the prompts cover, and how much the answers of each conversation.

    Coverage is the share of an item's words in 8-grams that the side shares with it (Tülu 3), grams weighted by their
    rarity in the benchmark. It is null below 0.25, and if neither 13 words in a row nor the whole item is shared. An
    item of fewer than eight words is covered only by a message of exactly its words. Prompts are all that the model is
    given, system messages and results of tools too; reasoning, calls and rejected answers belong to the answers.
    `contamination_items` names up to ten items with their coverage; run (words in a row), passage of the conversation
    and text of the benchmark, if its fingerprint has it, are of the item that is covered most.
    """
    from curate.filters.fingerprints.catalogue import load_index  # imports NumPy: late, to keep `curate filters` fast

    index = load_index(benchmarks)
    turns = side_texts(frame)
    texts = turns["text"].to_list()
    found: defaultdict[int, list[Match]] = defaultdict(list)
    for match in index.match(texts, turns["group"].to_numpy()):
        found[match.group // len(SIDES)].append(match)
    rows = {row: _describe(index, matches, texts) for row, matches in found.items()}
    columns = get("benchmark_overlap").columns
    nothing = (None,) * len(columns)
    return pl.DataFrame([rows.get(row, nothing) for row in range(frame.height)], schema=dict(columns), orient="row")


def side_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the texts of `messages` and `rejected_answer`, as columns `group` and `text`.

    Each conversation has a group for its prompts, and one for its answers.
    """
    parts = []
    for column in ("messages", "rejected_answer"):
        row = pl.int_range(pl.len(), dtype=pl.Int64)
        messages = frame.select(row=row, message=column).explode("message").drop_nulls().unnest("message")
        answers = (pl.col("role") == "assistant") | (column == "rejected_answer")
        group = len(SIDES) * pl.col("row") + answers
        calls = pl.col("tool_calls").str.replace_all(r"\\[nrt]", " ")  # JSON: arguments may be code
        for text in (pl.col("content"), pl.col("reasoning"), calls):
            parts.append(messages.select(group=group, text=text).drop_nulls())
    return pl.concat(parts)


def _describe(index: Index, matches: Sequence[Match], texts: Sequence[str]) -> tuple[object, ...]:
    """Return the values of the signal's columns for a conversation that covers something."""
    from curate.filters.fingerprints.grams import excerpt

    most: dict[str, float] = {}  # coverage by item, of its texts and either side
    for match in sorted(matches, key=lambda match: -match.coverage):
        most.setdefault(index.names[match.text], match.coverage)
    named = [f"{name} ({coverage:.2f})" for name, coverage in list(most.items())[:NAMED]]
    more = [f"{len(most) - NAMED} more"] if len(most) > NAMED else []
    best = max(matches, key=lambda match: (match.coverage, match.run, -match.group))
    return (
        *(_most([match for match in matches if match.group % len(SIDES) == side]) for side in range(len(SIDES))),
        best.run,
        ", ".join([*named, *more]),
        excerpt(texts[best.source], best.start, best.stop)[:EVIDENCE],
        index.texts[best.text][:EVIDENCE] or None,
    )


def _most(matches: Sequence[Match]) -> float | None:
    return max((match.coverage for match in matches), default=None)


@rule(
    examples=Examples(
        chat("Quiz! A gardener plants nine rows of seven tulips and gives away ten; how many are left?", "53 tulips."),
        chat("Quiz! A gardener plants nine rows of tulips; seven of ten are left, how many?", "70 % of them."),
        settings={"benchmarks": ("example",)},
    )
)
def contamination(
    benchmarks: tuple[str, ...] = BENCHMARKS,
    coverage: float = 0.5,
    roles: tuple[str, ...] = ("user", "assistant"),
    action: str = "drop",
) -> pl.Expr:
    """Drop conversations that hold an item of a benchmark: more than `coverage` of its words, eight or more in a row.

    `benchmarks` are names of fingerprints that curate has, or paths of those that `curate fingerprint` made. `roles`:
    whether prompts count, answers, or either. `action = "flag"` only measures, in the columns of `benchmark_overlap`.
    """
    from curate.filters.fingerprints.catalogue import check_benchmarks

    if action not in ACTIONS:
        raise RecipeError(f"filter 'contamination': action = {action!r} is not allowed; give {' or '.join(ACTIONS)}")
    if not roles or not set(roles) <= SIDES.keys():
        raise RecipeError(f"filter 'contamination': roles = {list(roles)!r} must be of {', '.join(SIDES)}")
    if not 0.25 <= coverage < 1:
        raise RecipeError(f"filter 'contamination': coverage = {coverage} is not allowed; give 0.25 or more, below 1")
    check_benchmarks(benchmarks)
    sides = [pl.col(SIDES[role]) for role in dict.fromkeys(roles)]
    most = pl.max_horizontal(sides)
    percent = (most.cast(pl.Float64) * 100).round().cast(pl.Int32)
    passage, text = (pl.col(f"contamination_{name}") for name in ("passage", "text"))
    half = EVIDENCE // 2 - len(BETWEEN)
    both = passage.str.slice(0, half) + pl.lit(BETWEEN) + text.str.slice(0, half)
    return reject(
        (most > coverage) & pl.lit(action == "drop"),
        "{percent} % of a benchmark's item, {run} words in a row: {items}",
        evidence=pl.coalesce(both, passage),
        percent=percent,
        run=pl.col("contamination_run"),
        items=pl.col("contamination_items"),
    )
