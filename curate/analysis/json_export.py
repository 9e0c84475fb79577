"""A selection as JSON, one conversation on each line, in bounded memory: the rows of a set are encoded by Polars."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

import polars as pl

from curate.analysis.conversations import VIEW_COLUMNS
from curate.analysis.selection import BATCH_ROWS, Selection
from curate.dataset.curated_set import translate_errors
from curate.dataset.manifest import Manifest
from curate.dataset.messages import decode_messages
from curate.display.text import HIDDEN_PATTERN, escape_hidden, to_json_line
from curate.engine import base, pool
from curate.progress import stage
from curate.rendering.mask_view import load_viewer
from curate.schemas.conversation import Message

CountTokens = Callable[[Sequence[Sequence[Message]]], list[list[int]]]
MANY = 5_000  # conversations for which workers, slow to start, pay off
ORDER = ("id", "source_file", "source_index", "messages")  # of the keys, before the other columns as `facts`


def to_json_lines(selection: Selection, count_tokens: CountTokens | None) -> Iterator[str]:
    """Yield each conversation as JSON, the kept ones first, with the tokens of each message as `turn_tokens`.

    Many are counted in worker processes. Raises SetError if the set is damaged.
    """
    with stage("printing", len(selection), "conversations") as current:
        for line in _encode(selection, count_tokens):
            yield line
            current.done += 1


def _encode(selection: Selection, count_tokens: CountTokens | None) -> Iterator[str]:
    with translate_errors(selection.set):
        if count_tokens is not None and len(selection.kept) > MANY:
            batches = map(_to_bytes, selection.kept_batches())
            make_step = partial(_make_encoder, selection.set.manifest)
            for lines in pool.run(make_step, batches, base.default_workers()):
                yield from lines
        else:
            for batch in selection.kept_batches():
                yield from _encode_kept(batch, count_tokens)
    for start in range(len(selection.kept), len(selection), BATCH_ROWS):
        views = selection.read(start, BATCH_ROWS)
        counts = _counts([view.messages for view in views], count_tokens)
        for view, tokens in zip(views, counts, strict=True):
            yield to_json_line({**asdict(view), "turn_tokens": tokens})


def _to_bytes(batch: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    batch.write_ipc(buffer)
    return buffer.getvalue()


def _make_encoder(manifest: Manifest) -> Callable[[bytes], list[str]]:
    """Return the step of a worker, with a tokenizer of its own."""
    viewer, _ = load_viewer(manifest, bulk=True)
    count_tokens = viewer.count_batch if viewer else None
    return lambda data: list(_encode_kept(pl.read_ipc(io.BytesIO(data)), count_tokens))


def _encode_kept(batch: pl.DataFrame, count_tokens: CountTokens | None) -> Iterator[str]:
    facts = pl.struct(name for name in batch.columns if name not in VIEW_COLUMNS)
    null = pl.lit(None, pl.String)
    row = pl.struct(*ORDER, facts=facts, rejected=null, unread=null)
    lines = batch.select(row.struct.json_encode().alias("line")).to_series()
    hidden = lines.str.contains(HIDDEN_PATTERN)
    if hidden.any():
        lines = lines.scatter(hidden.arg_true(), list(map(escape_hidden, lines.filter(hidden))))
    counts = _counts(decode_messages(batch["messages"]), count_tokens) if count_tokens else [None] * len(lines)
    for line, tokens in zip(lines, counts, strict=True):
        yield f'{line[:-1]},"turn_tokens":{"null" if tokens is None else tokens}}}'


def _counts(conversations: Sequence[Sequence[Message]], count_tokens: CountTokens | None) -> Sequence[list[int] | None]:
    return count_tokens(conversations) if count_tokens else [None] * len(conversations)
