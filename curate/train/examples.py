"""The examples of a run: ids and masks of every conversation, proven, with what was left out and why."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.dataset import arrow, manifest
from curate.dataset.manifest import Manifest
from curate.engine import base, local
from curate.errors import CurateError, SetError
from curate.rendering import proof
from curate.rendering.factory import make_renderer
from curate.rendering.preparation import ExamplePreparer, Failure, PreparedBatch, PreparedExample, failure_of
from curate.rendering.resplit import ResplitSummary, differences
from curate.rendering.splitter import TOO_LONG
from curate.tokenization.tokenizer import Tokenizer

MANY_ROWS = 4_000  # of a set; for fewer, starting worker processes takes longer than they save
MAX_FAILING = 0.01  # share of conversations; more means that template and data do not match
HINT = "give another --template, or --loss last"
HINTS = {"nothing_trained": "take out of the set what has `train: false` throughout, or give another --loss"}
EVAL = "eval"  # the `split` of held-out conversations


class ProofError(CurateError):
    """More conversations fail the proof than a run may leave out; `failures` lists them."""

    def __init__(self, message: str, failures: list[Failure]) -> None:
        super().__init__(message)
        self.failures = failures


@dataclass(frozen=True)
class Examples:
    """Examples (conversations or pieces) end to end: number i is `offsets[i]` to `offsets[i + 1]`."""

    ids: NDArray[np.int32]  # [tokens]
    loss_mask: NDArray[np.bool_]  # [tokens]
    offsets: NDArray[np.int64]  # [examples + 1]
    names: list[str]  # ids in the set
    languages: list[str | None]
    exchanges: NDArray[np.int32]  # [examples], how many each has

    def __len__(self) -> int:
        return len(self.names)

    def rendering(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the ids and mask of one conversation, both [tokens]."""
        part = slice(*self.offsets[index : index + 2].tolist())
        return self.ids[part], self.loss_mask[part]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each conversation."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> int:
        """Tokens that are trained on."""
        return int(self.loss_mask.sum())


@dataclass(frozen=True)
class TrainingData:
    """The data of a run: examples to train on and held-out ones, what was left out, and facts for `run.json`."""

    train: Examples
    eval: Examples
    failures: list[Failure]
    changed: ResplitSummary | None
    facts: dict[str, Any]


def concatenate(examples: Sequence[PreparedExample]) -> Examples:
    """Concatenate examples: ids and loss mask are [tokens of all], offsets [examples + 1]."""
    offsets = np.zeros(len(examples) + 1, dtype=np.int64)
    np.cumsum([len(example.ids) for example in examples], out=offsets[1:])
    return Examples(
        np.concatenate([np.zeros(0, np.int32), *(example.ids for example in examples)]),
        np.concatenate([np.zeros(0, np.bool_), *(example.loss_mask for example in examples)]),
        offsets,
        [example.name for example in examples],
        [example.language for example in examples],
        np.array([example.exchanges for example in examples], dtype=np.int32),
    )


def load(
    set_path: str | Path,
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    max_tokens: int | None = None,
    loss: str = "all",
    chat_template: str | None = None,
    limit: int | None = None,
    workers: int | None = None,
) -> TrainingData:
    """Read a curated set for a model: render and prove it, and split it again where set and model differ.

    `template` and `max_tokens` default to the set's own; `limit` takes only the first conversations; `workers`
    defaults to all cores for a large set, otherwise to this process. Raises SetError for a path that is not a set,
    ProofError if over 1 % of the conversations fail, CurateError if nothing is left to train on.
    """
    folder, set_manifest = open_set_folder(set_path)
    window = max_tokens or set_manifest.window
    renderer = make_renderer(template or set_manifest.template, tokenizer, loss=loss, chat_template=chat_template)
    info = tokenizer.info
    differ = differences(set_manifest, renderer.name, info, window)
    prepared = PreparedBatch(ResplitSummary(tuple(differ), absent=_too_long(folder)) if differ else None)
    workers = workers or (base.default_workers() if arrow.count_rows(folder, limit) >= MANY_ROWS else 1)
    with local.WorkerPool(partial(ExamplePreparer, renderer, window, tuple(differ)), workers) as pool:
        for batch in pool.map(arrow.read_batches(folder, limit)):
            prepared.extend(batch)
    failures = [failure_of(row, problem) for row, problem in prepared.left_out]
    _check(prepared, folder, failures, window)
    train = concatenate([example for example in prepared.examples if example.split != EVAL])
    held_out = concatenate([example for example in prepared.examples if example.split == EVAL])
    facts = {
        "set": str(folder),
        "manifest_sha256": hashlib.sha256((folder / manifest.MANIFEST).read_bytes()).hexdigest(),
        "template": renderer.name,
        "window": window,
        "tokenizer": info.name,
        "tokenizer_hash": info.hash,
        "loss": loss,
        "conversations": len(train),
        "eval_conversations": len(held_out),
        "tokens": len(train.ids),
        "supervised": train.supervised,
        "left_out": len(failures),
        "split_again": str(prepared.resplit) if prepared.resplit else None,
    }
    return TrainingData(train, held_out, failures, prepared.resplit, facts)


def write_left_out(path: Path, failures: Sequence[Failure]) -> None:
    """Write the examples that are left out as JSON lines."""
    lines = (json.dumps(failure.to_dict(), ensure_ascii=False) + "\n" for failure in failures)
    files.write_text(path, "".join(lines))


def _check(prepared: PreparedBatch, folder: Path, failures: list[Failure], window: int) -> None:
    """Raise ProofError if too much fails the proof, CurateError if nothing is left."""
    if prepared.failed > MAX_FAILING * prepared.rendered:
        rules = Counter(failure.rule for failure in failures if failure.rule in proof.RULES)
        worst = next(failure for failure in failures if failure.rule == rules.most_common(1)[0][0])
        named = ", ".join(f"{rule} {count:,}" for rule, count in rules.most_common())
        raise ProofError(
            f"{prepared.failed:,} of {prepared.rendered:,} conversations fail the proof ({named}), more than 1 %; "
            f"{worst.name!r}: {worst.reason}; {HINTS.get(worst.rule, HINT)}",
            failures,
        )
    if all(one.split == EVAL for one in prepared.examples):
        raise CurateError(f"the set {str(folder)!r} has nothing to train on with a window of {window:,}")


# ---- reading a set


def open_set_folder(set_path: str | Path) -> tuple[Path, Manifest]:
    """Return a curated set's folder and manifest; raises SetError with what to type."""
    path = Path(set_path)
    if path.exists() and not manifest.is_set(path):
        target = path.with_suffix("") if path.is_file() and path.suffix else path.with_name(f"{path.name}-curated")
        raise SetError(f"{str(path)!r} is not a curated set; make one of it: curate clean {path} -o {target}")
    return manifest.read(path)


def _too_long(folder: Path) -> int:
    """Return how many exchanges and conversations cleaning rejected as over the window."""
    batches = arrow.record_batches(folder / manifest.REJECTED, ["rule"])
    return sum(batch.column("rule").to_pylist().count(TOO_LONG) for batch in batches)
