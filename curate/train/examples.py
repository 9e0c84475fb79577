"""The examples of a run: ids and loss masks of a curated set, checked by the proof, and what was left out and why."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.dataset import arrow, manifest
from curate.dataset.manifest import Manifest
from curate.display.figures import percent
from curate.engine import base
from curate.engine.pool import open_pool
from curate.errors import CurateError
from curate.remote.sets import fetch_set
from curate.rendering import proof
from curate.rendering.choices import DEFAULT, Choices
from curate.rendering.factory import make_renderer
from curate.rendering.pairs import NO_PAIR, UNUSABLE_PAIR
from curate.rendering.preparation import (
    HIDDEN_TOOLS,
    ExamplePreparer,
    Failure,
    PreparedBatch,
    PreparedExample,
    failure_of,
)
from curate.rendering.renderer import Renderer
from curate.rendering.resplit import ResplitSummary, differences
from curate.rendering.splitter import TOO_LONG
from curate.tokenization.tokenizer import Tokenizer
from curate.train.identity import Identity

MANY_ROWS = 4_000  # of a set; with fewer, starting worker processes takes longer than they save
MAX_FAILING = 0.01  # share of the examples; more means that template and data do not match
HINT = "give another --template, or --loss last"
HINTS = {  # by rule, where the hint is not HINT
    "nothing_trained": "remove conversations whose messages all have `train: false`, or give another --loss",
    HIDDEN_TOOLS: "give a template that shows tools, such as --template llama3.1, or --setting data.hidden_tools=train",
    TOO_LONG: "give a larger --max-tokens",
    NO_PAIR: "clean preference data, such as {prompt, chosen, rejected}, or leave out --objective dpo",
    UNUSABLE_PAIR: "give each record a chosen and a rejected answer to the same prompt, and clean it again",
}
OnProgress = Callable[[int, int], None]  # rows that are done, and all
EVAL = "eval"  # the `split` of held-out examples
ORIGIN = ("method", "model", "prompts", "inputs", "seed")  # of conversations that a model made: keys of `generation`
MOST_ORIGINS = 100


class ProofError(CurateError):
    """More examples fail the proof than a run may leave out; `failures` lists those that are left out."""

    def __init__(self, message: str, failures: list[Failure]) -> None:
        super().__init__(message)
        self.failures = failures


@dataclass(frozen=True)
class Examples:
    """Examples in one array each: number i is `offsets[i]` to `offsets[i + 1]`.

    Large arrays, because two small ones for each of a million examples would take more memory.
    """

    ids: NDArray[np.int32]  # [tokens]
    loss_mask: NDArray[np.bool_]  # [tokens]
    offsets: NDArray[np.int64]  # [examples + 1], from 0 to the number of tokens
    names: list[str]  # ids in the set
    languages: list[str | None]  # None where the set has no language
    exchanges: NDArray[np.int32]  # [examples], user messages with their answers
    sides: int = 1  # examples of one piece: 2 for pairs, of which the chosen and the rejected side are neighbours

    def __len__(self) -> int:
        return len(self.names)

    def rendering(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the ids and loss mask of one example, both [tokens]; they are views, not copies."""
        tokens = slice(*self.offsets[index : index + 2].tolist())
        return self.ids[tokens], self.loss_mask[tokens]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example [examples]."""
        return np.diff(self.offsets)

    @property
    def pieces(self) -> int:
        """The number of pieces, each of which has `sides` examples."""
        return len(self) // self.sides

    @property
    def piece_lengths(self) -> NDArray[np.int64]:
        """Tokens of each piece [pieces], over its sides."""
        lengths: NDArray[np.int64] = self.lengths.reshape(-1, self.sides).sum(axis=1)
        return lengths

    @property
    def supervised(self) -> int:
        """The number of tokens that are trained on."""
        return int(self.loss_mask.sum())

    @cached_property
    def supervised_targets(self) -> NDArray[np.int64]:
        """Supervised tokens of each example [examples]; its first token is never a target."""
        if not len(self):
            return np.zeros(0, np.int64)
        # Sums from each offset up to the next; no example is empty, for which `reduceat` would be wrong.
        counts = np.add.reduceat(self.loss_mask.astype(np.int64), self.offsets[:-1])
        return counts - self.loss_mask[self.offsets[:-1]]


@dataclass(frozen=True)
class TrainingData:
    """The data of a run."""

    train: Examples
    eval: Examples  # held out
    failures: list[Failure]  # what was left out, in the order of the set
    changed: ResplitSummary | None  # None if the set was not split again
    facts: dict[str, Any]  # for `run.json`


@dataclass(frozen=True)
class RenderSettings:
    """How a curated set is rendered for a model; `template` and `max_tokens` default to those of the set."""

    template: str | None = None  # name of a built-in template
    chat_template: str | None = None  # Jinja text, used instead of a built-in template
    max_tokens: int | None = None  # the window
    loss: str = "all"  # all, last, or roles:assistant,tool
    choices: Choices = DEFAULT  # about reasoning and tools
    sides: int = 1  # 2 renders the pairs of the set, each as a chosen and a rejected side

    def make_renderer(self, set_manifest: Manifest, tokenizer: Tokenizer) -> Renderer:
        """Return the renderer; raises RecipeError for an unknown template or loss, or an invalid chat template."""
        template = self.template or set_manifest.template
        return make_renderer(
            template, tokenizer, loss=self.loss, chat_template=self.chat_template, choices=self.choices
        )


SET_SETTINGS = RenderSettings()  # render the set as `clean` did


def concatenate(examples: Sequence[PreparedExample], sides: int = 1) -> Examples:
    """Concatenate examples in their order; those of a pair follow each other."""
    offsets = np.zeros(len(examples) + 1, dtype=np.int64)
    np.cumsum([len(example.ids) for example in examples], out=offsets[1:])
    return Examples(
        # The empty array gives the dtype where there are no examples.
        np.concatenate([np.zeros(0, np.int32), *(example.ids for example in examples)]),
        np.concatenate([np.zeros(0, np.bool_), *(example.loss_mask for example in examples)]),
        offsets,
        [example.name for example in examples],
        [example.language for example in examples],
        np.array([example.exchanges for example in examples], dtype=np.int32),
        sides,
    )


def load(
    set_path: str | Path,
    tokenizer: Tokenizer,
    settings: RenderSettings = SET_SETTINGS,
    *,
    limit: int | None = None,
    extra: Identity | None = None,
    workers: int | None = None,
    on_progress: OnProgress = lambda done, rows: None,
) -> TrainingData:
    """Read a curated set for a model: render it, check it, and split it again if set and model differ.

    `limit` takes only the first conversations, each with all its pieces. Those of `extra` are added to what is trained,
    and not to what is held out. `workers` is the number of processes, by
    default all cores for a large set and otherwise 1; the result does not depend on it. `on_progress` is called after
    each batch with the rows that are done and how many there are at most. Raises SetError for a path that is not a set,
    ProofError if over 1 % of the examples fail the proof, CurateError if nothing is left to train on.
    """
    folder, set_manifest = open_set_folder(set_path)
    window = settings.max_tokens or set_manifest.window
    renderer = settings.make_renderer(set_manifest, tokenizer)
    info = tokenizer.info
    # Pieces of the set fit its own template, tokenizer and window; with others they are joined and split again.
    changes = tuple(differences(set_manifest, renderer.name, info, window))
    prepared = PreparedBatch(ResplitSummary(changes, absent=_count_too_long(folder)) if changes else None)
    count, pairs = arrow.count_rows(folder, limit), settings.sides == 2
    workers = workers or (base.default_workers() if count >= MANY_ROWS else 1)
    with open_pool(partial(ExamplePreparer, renderer, window, changes, pairs), workers) as pool:
        for batch in pool.map(arrow.read_batches(folder, limit, pairs=pairs)):
            prepared.extend(batch)
            on_progress(prepared.read, count)
    sources, in_set = prepared.sources, len(prepared.examples)
    if extra is not None:
        prepared.extend(prepare_identity(renderer, window, extra))
    failures = [failure_of(row, problem) for row, problem in prepared.left_out]
    _check(prepared, folder, failures, window)
    train = concatenate([example for example in prepared.examples if example.split != EVAL], settings.sides)
    held_out = concatenate([example for example in prepared.examples if example.split == EVAL], settings.sides)
    without_pair = sum(failure.rule == NO_PAIR for failure in failures)
    facts = {
        **describe_set(folder, renderer, window, tokenizer, settings, extra),
        "sources": sources,
        "conversations": train.pieces,  # as in `eval_conversations`, the key is older than the word: these are examples
        "eval_conversations": held_out.pieces,
        "tokens": len(train.ids),
        "supervised": train.supervised,
        "identity_conversations": len(prepared.examples) - in_set if extra else None,
        "left_out": len(failures) - without_pair,
        **({"without_pair": without_pair} if pairs else {}),
        "split_again": str(prepared.resplit) if prepared.resplit else None,
        "by_answer": str(prepared.by_answer) if prepared.by_answer.pieces else None,
        "hidden_tools": prepared.hidden_tools,
        **({"generated": made} if (made := count_generated(folder, limit)) else {}),
    }
    return TrainingData(train, held_out, failures, prepared.resplit, facts)


def prepare_identity(renderer: Renderer, window: int, extra: Identity) -> PreparedBatch:
    """Render and prove the conversations on the model's identity; they are never split."""
    return ExamplePreparer(renderer, window).prepare([[row] for row in extra.rows])


def describe_set(
    folder: Path,
    renderer: Renderer,
    window: int,
    tokenizer: Tokenizer,
    settings: RenderSettings,
    extra: Identity | None = None,
) -> dict[str, Any]:
    """Return the facts that say which set is rendered, with which conversations beside it, and how."""
    return {
        "set": str(folder),
        "manifest_sha256": hashlib.sha256((folder / manifest.MANIFEST).read_bytes()).hexdigest(),
        "identity": extra.path if extra else None,
        "identity_sha256": extra.sha256 if extra else None,
        "template": renderer.name,
        "window": window,
        "tokenizer": tokenizer.info.name,
        "tokenizer_hash": tokenizer.info.hash,
        "loss": settings.loss,
    }


def count_generated(folder: Path, limit: int | None) -> list[dict[str, Any]]:
    """Count the conversations that a model made (`curate generate`), of those that are trained on, by their origin.

    `limit` is as in `load`. Of more than MOST_ORIGINS, those with the fewest conversations are one row without origin.
    """
    import polars as pl  # late: a benchmark trains without it

    rows = pl.scan_parquet(folder / manifest.CONVERSATIONS)
    if limit is not None:
        rows = rows.filter(pl.col("id").rle_id() < limit)
    if "metadata" not in rows.collect_schema():
        return []
    origin = pl.col("metadata").str
    made = rows.filter(pl.col("split") != EVAL, origin.contains('"generation"', literal=True)).select(
        "id", *(origin.json_path_match(f"$.generation.{name}").alias(name) for name in ORIGIN)
    )
    groups = made.drop_nulls("method").unique("id").group_by(ORIGIN).agg(conversations=pl.len())
    counted = groups.sort("conversations", *ORIGIN, descending=[True, *[False] * len(ORIGIN)]).collect()
    others = counted[MOST_ORIGINS:, "conversations"].sum()
    return [*counted[:MOST_ORIGINS].to_dicts(), *([{"conversations": others}] if others else [])]


def write_left_out(path: Path, failures: Sequence[Failure]) -> None:
    """Write the examples that are left out as JSON lines."""
    lines = (json.dumps(failure.to_dict(), ensure_ascii=False) + "\n" for failure in failures)
    files.write_text(path, "".join(lines))


def _check(prepared: PreparedBatch, folder: Path, failures: list[Failure], window: int) -> None:
    """Raise ProofError if too many examples fail the proof, CurateError if none is left to train on."""
    if prepared.failed > MAX_FAILING * prepared.rendered:
        # Failures also list exchanges over the window, which do not count as failing the proof.
        counts, example = _summarise([failure for failure in failures if failure.rule in proof.RULES])
        raise ProofError(
            f"{prepared.failed:,} of {prepared.rendered:,} pieces fail the proof ({counts}), "
            f"more than {percent(MAX_FAILING, digits=0)}; {example}",
            failures,
        )
    if all(example.split == EVAL for example in prepared.examples):
        raise CurateError(_describe_nothing(folder, failures, window))


def _describe_nothing(folder: Path, failures: Sequence[Failure], window: int) -> str:
    """Return why nothing is left to train on: the rules, an example of the most frequent one, and what to type."""
    nothing = f"the set {str(folder)!r} has nothing to train on with a window of {window:,}"
    if not failures:
        return f"{nothing}: it has no row in the split train; clean more conversations, or with --eval 0"
    counts, example = _summarise(failures)
    return f"{nothing}: left out are {counts}; {example}"


def _summarise(failures: Sequence[Failure]) -> tuple[str, str]:
    """Return the rules with their counts, and an example of the most frequent one with what to type."""
    rules = Counter(failure.rule for failure in failures).most_common()
    example = next(failure for failure in failures if failure.rule == rules[0][0])
    counts = ", ".join(f"{rule} {count:,}" for rule, count in rules)
    return counts, f"{example.name!r}: {example.reason}; {HINTS.get(example.rule, HINT)}"


# ---- reading a set


def open_set_folder(set_path: str | Path) -> tuple[Path, Manifest]:
    """Return a curated set's folder and manifest; raises SetError, with the command to type, for any other path."""
    path = Path(fetch_set(set_path))
    if path.exists() and not manifest.is_set(path):
        raise manifest.not_a_set(path)
    from curate.dataset.curated_set import open_set  # late, with Polars: a benchmark trains without it

    curated = open_set(path)
    return curated.path, curated.manifest


def _count_too_long(folder: Path) -> int:
    """Return the number of exchanges and conversations that `clean` rejected because they exceed the window."""
    names = ["rule", "scope", "source_file", "source_index"]
    batches = arrow.record_batches(folder / manifest.REJECTED, names)
    rows = [row for batch in batches for row in batch.to_pylist() if row["rule"] == TOO_LONG]
    places = [(row["source_file"], row["source_index"]) for row in rows if row["scope"] == "exchange"]
    listed = set(places)  # records whose exchanges have their own rows
    return len(places) + sum((row["source_file"], row["source_index"]) not in listed for row in rows)
