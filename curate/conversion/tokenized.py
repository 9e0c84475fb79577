"""Conversations as training data for other trainers: ids, labels and attention mask, proven, a row each."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from curate import files
from curate.conversion.output import ConvertResult, Split, left_out_line, left_out_of
from curate.conversion.read import Found, entry_of, rows_of
from curate.conversion.writers import Entry, Parts, Stream, encode, stream_to
from curate.dataset import arrow, columns, manifest
from curate.dataset.arrow import Row
from curate.dataset.manifest import Manifest
from curate.errors import InputError, RecordError, TokenizerError
from curate.rendering import resplit
from curate.rendering.factory import make_renderer
from curate.rendering.prepare import Kept, Preparing, Taken
from curate.rendering.resplit import Resplit
from curate.rendering.set_tokenizer import load_set_tokenizer
from curate.schemas.conversation import Conversation, Message
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer

IGNORED = -100  # the label of a token that is not trained on, as every trainer has it
COLUMNS: columns.Types = {
    "input_ids": pl.List(pl.Int32),
    "attention_mask": pl.List(pl.Int8),
    "labels": pl.List(pl.Int32),
}


@dataclass(frozen=True)
class Rendering:
    """How to render; null: as the set was cleaned for. A dump without `max_tokens` is not split."""

    template: str | None = None
    tokenizer: str | None = None
    max_tokens: int | None = None
    loss: str = "all"
    chat_template: str | None = None  # Jinja text


class _Writer(Protocol):
    def put(self, kept: Kept) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Tally:
    read: int = 0
    written: int = 0
    other_split: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)


def write(source: str | Path, target: Path, how: Rendering, split: Split | None) -> ConvertResult:
    """Render a curated set, or a file in any known format, into JSON or Parquet.

    A set is split again where the tokenizer, template or window is not its own. What fails the proof of the mask, or
    is over the window, goes to `TARGET.left-out.jsonl` by name. Raises CurateError; the target then stands as it stood.
    """
    is_set = manifest.is_set(Path(source))
    preparing = _preparing(manifest.read(source)[1] if is_set else None, how)
    changed = Resplit(preparing.reasons) if preparing.reasons else None
    tally, warnings = _Tally(), list[str]()
    with files.replacing(target) as partial, files.replacing(left_out_of(target)) as partial_left_out:
        with closing(Stream(partial_left_out)) as left_out, closing(_open(partial, target)) as writer:
            found = _set_rows(Path(source), tally) if is_set else _file_rows(source, tally, left_out, warnings, split)
            for sources in arrow.together(found):
                taken = preparing.take(sources)
                _pass_on(taken, writer, left_out, tally, split)
                changed = changed and taken.changed and changed.plus(taken.changed)
            writer.finish()
        if not tally.left_out:
            partial_left_out.unlink()
            left_out_of(target).unlink(missing_ok=True)
    if changed is not None:
        warnings.append(str(changed))
    file = left_out_of(target) if tally.left_out else None
    counts = (tally.read, tally.written, dict(tally.left_out), tally.other_split, dict(tally.edits))
    return ConvertResult(target, *counts, file, tuple(warnings))


def _preparing(own: Manifest | None, how: Rendering) -> Preparing:
    """Return what renders, with what was asked for; `own` are the set's settings, None for a dump."""
    tokenizer = _tokenizer(own, how.tokenizer)
    name = how.template or (own.template if own else "vicuna")
    renderer = make_renderer(name, tokenizer, loss=how.loss, chat_template=how.chat_template)
    if own is None:
        window = how.max_tokens
        return Preparing(renderer, window or sys.maxsize, (f"window {window}",) if window else ())
    window = how.max_tokens or own.window
    return Preparing(renderer, window, tuple(resplit.reasons(own, renderer.name, tokenizer.info, window)))


def _tokenizer(own: Manifest | None, name: str | None) -> Tokenizer:
    """Return the tokenizer named, else the set's own, else the default."""
    if own is None or name is not None:
        return load_tokenizer(name)
    try:
        return load_set_tokenizer(own)
    except TokenizerError:
        raise InputError(
            f"the set was cleaned with the tokenizer {own.tokenizer.name!r}; name it: --tokenizer FOLDER"
        ) from None


def _pass_on(taken: Taken, writer: _Writer, left_out: Stream, tally: _Tally, split: Split | None) -> None:
    """Write what has been rendered, and say what has not been."""
    for kept in taken.kept:
        if split and kept.split != split:
            tally.other_split += 1
            continue
        writer.put(kept)
        tally.written += 1
    for row, problem in taken.lost:
        if split and row.split != split:
            tally.other_split += 1
            continue
        tally.left_out[problem.rule] += 1
        entry = Entry(Conversation(row.name, row.messages), None, None, row.split)
        found = Found(row.source[0] or "", row.source[1] or 0, None)
        left_out.line(encode(left_out_line(found, entry, problem)))


# ---- reading


def _set_rows(folder: Path, tally: _Tally) -> Iterator[Row]:
    """Yield a set's rows, by Polars: what trains reads them without it."""
    file = folder / manifest.CONVERSATIONS
    try:
        for batch in pl.scan_parquet(file).select(arrow.COLUMNS).collect_batches(maintain_order=True):
            for one in batch.iter_rows(named=True):
                tally.read += 1
                messages = [Message(**message) for message in one["messages"] or []]
                place = (one["source_file"], one["source_index"])
                yield Row(one["id"], one["piece"] or 0, messages, one["language"], one["split"] or "train", place)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"cannot read {str(file)!r}: {str(error).splitlines()[0]}") from error


def _file_rows(
    source: str | Path, tally: _Tally, left_out: Stream, warnings: list[str], split: Split | None
) -> Iterator[Row]:
    """Yield a file's conversations, each a source of its own; what cannot be read is left out by name."""
    for found in rows_of(source, warnings):
        tally.read += 1
        try:
            entry = entry_of(found)
        except RecordError as error:
            tally.left_out[error.rule] += 1
            left_out.line(encode(left_out_line(found, None, error)))
            continue
        tally.edits.update(edit.rule for edit in entry.conversation.edits)
        if split and entry.split is None:
            raise InputError(f"{found.file!r} has no train and eval; only a curated set does")
        name = entry.conversation.source_id or f"{found.file}:{found.index}"
        yield Row(name, 0, entry.conversation.messages, None, entry.split or "train", (found.file, found.index))


# ---- writing


def _open(partial: Path, target: Path) -> _Writer:
    if target.suffix == ".parquet":
        return _Table(partial)
    stream, array = stream_to(partial, target)
    return _Lines(stream, array)


def _record(kept: Kept) -> dict[str, object]:
    """Return a row; a label is the id of its own token, not shifted, as models do that themselves."""
    labels = np.where(kept.mask, kept.ids, IGNORED).tolist()
    return {"input_ids": kept.ids.tolist(), "attention_mask": [1] * len(kept.ids), "labels": labels}


class _Lines:
    """JSON, a line each or one array."""

    def __init__(self, stream: Stream, array: bool) -> None:
        self._stream = stream
        self._array = array
        self._written = 0

    def put(self, kept: Kept) -> None:
        self._stream.record(encode(_record(kept)), self._written if self._array else None)
        self._written += 1

    def finish(self) -> None:
        if self._array:
            self._stream.end_array(self._written)

    def close(self) -> None:
        self._stream.close()


class _Table:
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        self._parts = Parts(path, COLUMNS)

    def put(self, kept: Kept) -> None:
        self._parts.add(_record(kept), 9 * len(kept.ids))

    def finish(self) -> None:
        self._parts.finish()

    def close(self) -> None:
        self._parts.close()
