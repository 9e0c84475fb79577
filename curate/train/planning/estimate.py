"""What a run's examples will come to, before they are rendered: from the set's token counts, or from a sample.

`clean` stores the tokens of each piece, so nothing needs to be rendered for a model of the set's own template,
tokenizer and window. Where they differ, some conversations are rendered and counted for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.dataset import arrow
from curate.dataset.arrow import Sampled
from curate.dataset.curated_set import CuratedSet, translate_errors
from curate.dataset.manifest import Manifest
from curate.display.figures import number, plural
from curate.rendering.choices import DEFAULT
from curate.rendering.preparation import ExamplePreparer, PreparedExample
from curate.rendering.resplit import differences
from curate.tokenization.tokenizer import Tokenizer
from curate.train import examples
from curate.train.examples import EVAL, RenderSettings
from curate.train.identity import Identity
from curate.train.planning.lengths import Lengths

SAMPLE = 1_000  # conversations to render; the mean length of so many is within about 4 % of that of all
_KEYS = ("source_file", "source_index", "branch")


@dataclass(frozen=True)
class Estimate:
    """The lengths of a run's examples before the proof, and what `run.json` would say about the data."""

    lengths: Lengths
    facts: dict[str, Any]


def estimate(
    folder: Path,
    set_manifest: Manifest,
    tokenizer: Tokenizer,
    settings: RenderSettings,
    limit: int | None,
    extra: Identity | None = None,
) -> Estimate | None:
    """Estimate the examples of a set's first `limit` conversations, or of all; None where nothing can be said.

    The conversations of `extra` are rendered and added.
    """
    if settings.sides > 1:  # the set has no counts of rejected answers
        return None
    table = _read_columns(CuratedSet(folder, set_manifest))
    taken = table if limit is None else table.filter(pl.col("starts").cum_sum() <= limit)
    conversations = int(taken["starts"].sum())
    window = settings.max_tokens or set_manifest.window
    renderer = settings.make_renderer(set_manifest, tokenizer)
    changes = tuple(differences(set_manifest, renderer.name, tokenizer.info, window))
    if not changes and settings.loss == "all" and settings.choices == DEFAULT:
        lengths = _as_counted(taken)
        source = "the set's own token counts"
    else:
        sample = arrow.sample_sources(folder, SAMPLE, limit)
        lengths = _scale(taken, _sampled_rows(table, sample), sample, ExamplePreparer(renderer, window, changes))
        count = f"{number(len(sample))} of {number(conversations)} {plural(conversations, 'conversation')}"
        because = f" ({'; '.join(changes)})" if changes else ""
        source = f"an estimate: {count} rendered for this model{because}"
    if not len(lengths.train):
        return None
    added = examples.prepare_identity(renderer, window, extra).examples if extra else []
    lengths = _append(lengths, added)
    facts = {
        **examples.describe_set(folder, renderer, window, tokenizer, settings, extra),
        "sources": conversations,
        "conversations": len(lengths.train),
        "eval_conversations": len(lengths.held_out),
        "tokens": int(lengths.train.sum()),
        "supervised": int(lengths.supervised.sum()),
        "identity_conversations": len(added) if extra else None,
        "estimated": source,
    }
    return Estimate(lengths, facts)


def _read_columns(curated: CuratedSet) -> pl.DataFrame:
    """Return tokens, answer_tokens and split of each piece, and whether a conversation starts with it.

    Raises SetError if the set is damaged.
    """
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(1)) for name in _KEYS)
    starts = (~same | pl.col("source_index").is_null()).alias("starts")
    with translate_errors(curated):
        frame = curated.conversations()
        return frame.select("tokens", "answer_tokens", pl.col("split").fill_null("train"), starts).collect()


def _as_counted(table: pl.DataFrame) -> Lengths:
    """Return the lengths that `clean` counted."""
    held_out = pl.col("split") == EVAL
    train = table.filter(~held_out)
    return Lengths(_tokens(train, "tokens"), _tokens(train, "answer_tokens"), _tokens(table.filter(held_out), "tokens"))


def _tokens(table: pl.DataFrame, column: str) -> NDArray[np.int64]:
    return table[column].fill_null(0).cast(pl.Int64).to_numpy()


def _sampled_rows(table: pl.DataFrame, sample: list[Sampled]) -> pl.DataFrame:
    """Return the rows of the conversations of a sample."""
    return table[[row for start, source in sample for row in range(start, start + len(source))]]


def _scale(table: pl.DataFrame, sampled: pl.DataFrame, sample: list[Sampled], preparer: ExamplePreparer) -> Lengths:
    """Render a sample of conversations; return its lengths, repeated until they stand for all of the set.

    How often is determined by the tokens that `clean` counted: they vary less for each token rendered than for each
    conversation. `table` has the rows of all, `sampled` those of the sample.
    """
    prepared = preparer.prepare([source for _, source in sample]).examples
    times = _total(table, "tokens") / max(_total(sampled, "tokens"), 1)
    train = _repeat([example for example in prepared if example.split != EVAL], times)
    held_out = _repeat([example for example in prepared if example.split == EVAL], times)
    answers = _total(table, "answer_tokens") / max(_total(sampled, "answer_tokens"), 1)
    supervised = np.minimum(train[0] - 1, np.rint(train[1] * (answers / times)).astype(np.int64))
    return Lengths(train[0], supervised, held_out[0])


def _total(table: pl.DataFrame, column: str) -> int:
    return int(table[column].sum())


def _append(lengths: Lengths, added: list[PreparedExample]) -> Lengths:
    """Return the lengths with those of further examples to train on."""
    tokens, supervised = _count(added)
    return replace(
        lengths,
        train=np.concatenate([lengths.train, tokens]),
        supervised=np.concatenate([lengths.supervised, supervised]),
    )


def _count(prepared: list[PreparedExample]) -> NDArray[np.int64]:
    """Return the tokens and supervised tokens [2, examples] of examples."""
    counted = [(len(example.ids), int(example.loss_mask[1:].sum())) for example in prepared]
    return np.array(counted, dtype=np.int64).reshape(-1, 2).T


def _repeat(prepared: list[PreparedExample], times: float) -> NDArray[np.int64]:
    """Return the tokens and supervised tokens [2, examples] of a sample's examples, as many as all would be."""
    counts = _count(prepared)
    return counts[:, np.arange(round(len(prepared) * times)) % max(len(prepared), 1)]
