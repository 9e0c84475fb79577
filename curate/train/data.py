"""A curated set as what a run trains on: ids and masks of all its conversations, proven, with what was left out.

Read in batches (`curate.train.reading`), so that the memory it takes is that of the ids; of a large set each core takes
its share. Where set and model differ in template, tokenizer or window, the set is split again
(`curate.train.resplit`). Nothing is cropped; a conversation or exchange that is not trained on has a `Failure`
with its reason.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import engine, manifest
from curate.errors import CurateError, RecordError, SetError
from curate.schemas.prompts import exchanges
from curate.split import TOO_LONG
from curate.tokens import Tokenizer
from curate.train import proof, reading, resplit
from curate.train.render import Renderer, renderer
from curate.train.resplit import Resplit, Row

MANY_ROWS = 4_000  # from here on worker processes are sooner done than they take to start
MAX_FAILING = 0.01  # of the conversations; more means that template and data do not belong together
HINT = "give another --template, or --loss last"
HINTS = {"nothing_trained": "take out of the set what has `train: false` throughout, or give another --loss"}
EVAL = "eval"  # the `split` of what is measured by


@dataclass(frozen=True)
class Failure:
    """A conversation, or an exchange of one, that is not trained on: by which rule and why."""

    name: str
    rule: str
    reason: str
    evidence: str
    source_file: str | None
    source_index: int | None

    def to_dict(self) -> dict[str, object]:
        """Return the line that says it."""
        return asdict(self)


class ProofError(CurateError):
    """More conversations fail the proof than a run may leave out; `failures` names them."""

    def __init__(self, message: str, failures: list[Failure]) -> None:
        super().__init__(message)
        self.failures = failures


@dataclass(frozen=True)
class Examples:
    """Conversations (or pieces) as one array: number i is `ids[offsets[i]:offsets[i + 1]]`, `mask` alike.

    `names` are the set's ids, `exchanges` how many each has.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    names: list[str]
    languages: list[str | None]
    exchanges: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each conversation."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> int:
        """Tokens that are trained on."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on and is measured by, what was left out, and whether the set was split again."""

    train: Examples
    eval: Examples
    failures: list[Failure]
    changed: Resplit | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """One conversation that is trained on, or measured by: `ids` and `mask` are [tokens]; its messages are let go."""

    name: str
    language: str | None
    split: str
    exchanges: int
    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


@dataclass
class Taken:
    """What came of some sources: what is kept and what is lost, each in the order they came.

    A lost row holds the messages that are not trained on. `changed` counts what was split again.
    """

    changed: Resplit | None
    kept: list[Kept] = field(default_factory=list)
    lost: list[tuple[Row, RecordError]] = field(default_factory=list)
    proven: int = 0
    failed: int = 0

    def add(self, other: Taken) -> None:
        """Append what came of later sources."""
        self.kept += other.kept
        self.lost += other.lost
        self.proven += other.proven
        self.failed += other.failed
        if self.changed is not None and other.changed is not None:
            self.changed = self.changed.plus(other.changed)


@dataclass(frozen=True)
class Preparing:
    """Splits again if need be, renders and proves; with `reasons` each source is split again."""

    made: Renderer
    max_tokens: int
    reasons: tuple[str, ...] = ()

    def __call__(self, batch: bytes) -> Taken:
        """Return what comes of a batch of `reading.batches`."""
        return self.take(reading.sources(batch))

    def take(self, sources: Sequence[list[Row]]) -> Taken:
        """Return what comes of some sources."""
        taken = Taken(Resplit(self.reasons) if self.reasons else None)
        rows = [row for source in sources for row in source]
        if taken.changed is not None:
            before = len(rows)
            rows, taken.lost, changed = resplit.split_again(self.made.counter(), sources, self.max_tokens)
            taken.changed = Resplit(self.reasons, before, len(rows), changed, len(taken.lost))
        self._render(taken, rows)
        return taken

    def _render(self, taken: Taken, rows: Sequence[Row]) -> None:
        conversations = [row.messages for row in rows]
        written = self.made.write(conversations)
        problems = proof.prove(self.made, conversations, written)
        taken.proven += len(rows)
        taken.failed += len(problems)
        found = written.rows
        for index, (row, size) in enumerate(zip(rows, found.lengths.tolist(), strict=True)):
            if index not in problems and size > self.max_tokens:
                reason = f"{size} tokens as rendered, window {self.max_tokens}"
                problems[index] = RecordError(TOO_LONG, reason)
            if index in problems:
                taken.lost.append((row, problems[index]))
                continue
            part = slice(*found.offsets[index : index + 2].tolist())
            count = max(0, len(exchanges(row.messages)[1]) - 1)
            taken.kept.append(Kept(row.name, row.language, row.split, count, found.ids[part], found.mask[part]))


def gathered(kept: Sequence[Kept]) -> Examples:
    """Return conversations as one array."""
    offsets = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum([len(one.ids) for one in kept], out=offsets[1:])
    return Examples(
        np.concatenate([np.zeros(0, np.int32), *(one.ids for one in kept)]),
        np.concatenate([np.zeros(0, np.bool_), *(one.mask for one in kept)]),
        offsets,
        [one.name for one in kept],
        [one.language for one in kept],
        np.array([one.exchanges for one in kept], dtype=np.int32),
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
    """Read a curated set for a model: rendered, proven, split again where set and model differ.

    `template` and `max_tokens` are the set's own where they are not given; `limit` takes the set's first
    conversations; `workers` is all cores for a large set, else this process. Raises SetError for what is no curated
    set, ProofError where over 1 % of the conversations fail, CurateError where nothing is left to train on.
    """
    folder, told = opened(set_path)
    window = max_tokens or int(told["window"])
    made = renderer(template or told["template"], tokenizer, loss=loss, chat_template=chat_template)
    info = tokenizer.info
    differ = resplit.reasons(told, made.name, info.hash, info.name, window)
    taken = Taken(Resplit(tuple(differ), absent=_too_long(folder)) if differ else None)
    workers = workers or (engine.default_workers() if reading.count(folder, limit) >= MANY_ROWS else 1)
    with engine.Pool(partial(Preparing, made, window, tuple(differ)), workers) as pool:
        for one in pool.map(reading.batches(folder, limit)):
            taken.add(one)
    failures = [_failure(row, problem) for row, problem in taken.lost]
    _check(taken, folder, failures, window)
    train = gathered([one for one in taken.kept if one.split != EVAL])
    held_out = gathered([one for one in taken.kept if one.split == EVAL])
    facts = {
        "set": str(folder),
        "manifest_sha256": hashlib.sha256((folder / manifest.MANIFEST).read_bytes()).hexdigest(),
        "template": made.name,
        "window": window,
        "tokenizer": info.name,
        "tokenizer_hash": info.hash,
        "loss": loss,
        "conversations": len(train),
        "eval_conversations": len(held_out),
        "tokens": len(train.ids),
        "supervised": train.supervised,
        "left_out": len(failures),
        "split_again": str(taken.changed) if taken.changed else None,
    }
    return TrainingData(train, held_out, failures, taken.changed, facts)


def write_left_out(path: Path, failures: Sequence[Failure]) -> None:
    """Write what is not trained on, a line each."""
    lines = (json.dumps(failure.to_dict(), ensure_ascii=False) + "\n" for failure in failures)
    path.write_text("".join(lines), "utf-8", errors="backslashreplace")


def _check(taken: Taken, folder: Path, failures: list[Failure], window: int) -> None:
    """Refuse to train where too much fails the proof, or nothing is left."""
    if taken.failed > MAX_FAILING * taken.proven:
        rules = Counter(failure.rule for failure in failures if failure.rule in proof.RULES)
        worst = next(failure for failure in failures if failure.rule == rules.most_common(1)[0][0])
        named = ", ".join(f"{rule} {count:,}" for rule, count in rules.most_common())
        raise ProofError(
            f"{taken.failed:,} of {taken.proven:,} conversations fail the proof ({named}), more than 1 %; "
            f"{worst.name!r}: {worst.reason}; {HINTS.get(worst.rule, HINT)}",
            failures,
        )
    if all(one.split == EVAL for one in taken.kept):
        raise CurateError(f"the set {str(folder)!r} holds nothing to train on with a window of {window:,}")


def _failure(row: Row, problem: RecordError) -> Failure:
    return Failure(row.name, problem.rule, problem.reason, problem.evidence, *row.source)


# ---- reading a set


def opened(set_path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return a curated set's folder and manifest; raises SetError with what to type."""
    path = Path(set_path)
    if path.exists() and manifest.read(path) is None:
        target = path.with_suffix("") if path.is_file() and path.suffix else path.with_name(f"{path.name}-curated")
        raise SetError(f"{str(path)!r} is not a curated set; make one of it: curate clean {path} -o {target}")
    return manifest.require(path)


def _too_long(folder: Path) -> int:
    """Return how many exchanges and conversations cleaning rejected as over the window."""
    batches = reading.record_batches(folder / manifest.REJECTED, ["rule"])
    return sum(batch.column("rule").to_pylist().count(TOO_LONG) for batch in batches)
