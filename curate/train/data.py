"""A curated set as what a run trains on: ids and masks of all its conversations, proven, with what was left out.

Read in batches by pyarrow, so that the memory it takes is that of the ids. Where set and model differ in template,
tokenizer or window, the set is split again (`curate.train.resplit`). Nothing is cropped; a conversation or exchange
that is not trained on has a `Failure` with its reason.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import manifest
from curate.errors import CurateError, InputError, MissingExtra, RecordError, SetError
from curate.schemas.conversation import Message
from curate.schemas.prompts import exchanges
from curate.split import TOO_LONG
from curate.tokens import Tokenizer
from curate.train import proof, resplit
from curate.train.render import Renderer, renderer
from curate.train.resplit import Resplit, Row

BATCH_ROWS = 1_000
MAX_FAILING = 0.01  # of the conversations; more means that template and data do not belong together
EVAL = "eval"  # the `split` of what is measured by
COLUMNS = ["id", "piece", "messages", "language", "split", "source_file", "source_index"]


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
class Loading:
    """Conversations on their way: what is kept and what is lost so far, each in the order they came.

    A lost row holds the messages that are not trained on. With `changed` each source is split again.
    """

    made: Renderer
    max_tokens: int
    changed: Resplit | None
    kept: list[Kept] = field(default_factory=list)
    lost: list[tuple[Row, RecordError]] = field(default_factory=list)
    proven: int = 0
    failed: int = 0

    def take(self, sources: Sequence[list[Row]]) -> None:
        """Split again if need be, render, prove and gather some sources."""
        rows = [row for source in sources for row in source]
        if self.changed is not None:
            before = len(rows)
            rows, rejected, changed = resplit.split_again(self.made.counter(), sources, self.max_tokens)
            self.lost += rejected
            self.changed = replace(
                self.changed,
                before=self.changed.before + before,
                after=self.changed.after + len(rows),
                changed=self.changed.changed + changed,
                rejected=self.changed.rejected + len(rejected),
            )
        self._render(rows)

    def _render(self, rows: Sequence[Row]) -> None:
        conversations = [row.messages for row in rows]
        written = self.made.write(conversations)
        problems = proof.prove(self.made, conversations, written)
        self.proven += len(rows)
        self.failed += len(problems)
        found = written.rows
        for index, (row, size) in enumerate(zip(rows, found.lengths.tolist(), strict=True)):
            if index not in problems and size > self.max_tokens:
                reason = f"{size} tokens as rendered, window {self.max_tokens}"
                problems[index] = RecordError(TOO_LONG, reason)
            if index in problems:
                self.lost.append((row, problems[index]))
                continue
            part = slice(*found.offsets[index : index + 2].tolist())
            count = max(0, len(exchanges(row.messages)[1]) - 1)
            self.kept.append(Kept(row.name, row.language, row.split, count, found.ids[part], found.mask[part]))


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
) -> TrainingData:
    """Read a curated set for a model: rendered, proven, split again where set and model differ.

    `template` and `max_tokens` are the set's own where they are not given; `limit` takes the set's first
    conversations. Raises SetError for what is no curated set, ProofError where over 1 % of the conversations fail,
    CurateError where nothing is left to train on.
    """
    folder, told = _open(set_path)
    window = max_tokens or int(told["window"])
    made = renderer(template or told["template"], tokenizer, loss=loss, chat_template=chat_template)
    info = tokenizer.info
    differ = resplit.reasons(told, made.name, info.hash, info.name, window)
    loading = Loading(made, window, Resplit(tuple(differ), absent=_too_long(folder)) if differ else None)
    for sources in batches(_rows(folder), limit):
        loading.take(sources)
    failures = [_failure(row, problem) for row, problem in loading.lost]
    _check(loading, folder, failures)
    train = gathered([one for one in loading.kept if one.split != EVAL])
    held_out = gathered([one for one in loading.kept if one.split == EVAL])
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
        "split_again": str(loading.changed) if loading.changed else None,
    }
    return TrainingData(train, held_out, failures, loading.changed, facts)


def write_left_out(path: Path, failures: Sequence[Failure]) -> None:
    """Write what is not trained on, a line each."""
    lines = (json.dumps(failure.to_dict(), ensure_ascii=False) + "\n" for failure in failures)
    path.write_text("".join(lines), "utf-8", errors="backslashreplace")


def _check(loading: Loading, folder: Path, failures: list[Failure]) -> None:
    """Refuse to train where too much fails the proof, or nothing is left."""
    if loading.failed > MAX_FAILING * loading.proven:
        rules = Counter(failure.rule for failure in failures if failure.rule in proof.RULES)
        worst = next(failure for failure in failures if failure.rule == rules.most_common(1)[0][0])
        named = ", ".join(f"{rule} {count:,}" for rule, count in rules.most_common())
        raise ProofError(
            f"{loading.failed:,} of {loading.proven:,} conversations fail the proof ({named}), more than 1 %; "
            f"{worst.name!r}: {worst.reason}; give another --template, or --loss last",
            failures,
        )
    if all(one.split == EVAL for one in loading.kept):
        raise CurateError(f"the set {str(folder)!r} holds nothing to train on with a window of {loading.max_tokens:,}")


def _failure(row: Row, problem: RecordError) -> Failure:
    return Failure(row.name, problem.rule, problem.reason, problem.evidence, *row.source)


# ---- reading a set


def _open(set_path: str | Path) -> tuple[Path, dict[str, Any]]:
    path = Path(set_path)
    if path.exists() and manifest.read(path) is None:
        target = path.with_suffix("") if path.is_file() and path.suffix else path.with_name(f"{path.name}-curated")
        raise SetError(f"{str(path)!r} is not a curated set; make one of it: curate clean {path} -o {target}")
    return manifest.require(path)


def batches(found: Iterable[Row], limit: int | None = None) -> Iterator[list[list[Row]]]:
    """Yield a set's sources, each with its pieces in order, about BATCH_ROWS rows at a time."""
    batch: list[list[Row]] = []
    rows = 0
    for _, group in islice(groupby(enumerate(found), key=_source), limit):
        source = sorted((row for _, row in group), key=lambda row: row.piece)
        batch.append(source)
        rows += len(source)
        if rows >= BATCH_ROWS:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _source(numbered: tuple[int, Row]) -> tuple[object, ...]:
    """Return what the pieces of one source have in common; a row that does not tell its source stands alone."""
    number, row = numbered
    return row.source if row.source[1] is not None else (number,)


def _rows(folder: Path) -> Iterator[Row]:
    for batch in _record_batches(folder / manifest.CONVERSATIONS, COLUMNS):
        yield from _decoded(batch)


def _too_long(folder: Path) -> int:
    """Return how many exchanges and conversations cleaning rejected as over the window."""
    batches = _record_batches(folder / manifest.REJECTED, ["rule"])
    return sum(batch.column("rule").to_pylist().count(TOO_LONG) for batch in batches)


def _record_batches(file: Path, columns: list[str]) -> Iterator[Any]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise MissingExtra("reading a set for training", "train") from None
    try:
        yield from parquet.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise InputError(f"cannot read {str(file)!r}: {str(error).splitlines()[0]}") from error


def _decoded(batch: Any) -> Iterator[Row]:
    """Yield a record batch's rows; the messages are taken column by column, at a fifth of the time of whole rows."""
    columns = {name: batch.column(name) for name in COLUMNS}
    lists = columns.pop("messages")
    flat = lists.flatten()
    fields = [flat.field(name).to_pylist() for name in ("role", "content", "name", "tool_calls", "train", "stop")]
    messages = [Message(*values) for values in zip(*fields, strict=True)]
    counts = lists.value_lengths().fill_null(0).to_pylist()
    at = 0
    plain = [columns[name].to_pylist() for name in COLUMNS if name != "messages"]
    for count, (name, piece, language, split, file, index) in zip(counts, zip(*plain, strict=True), strict=True):
        yield Row(name, piece or 0, messages[at : at + count], language, split or "train", (file, index))
        at += count
