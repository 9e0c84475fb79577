"""Convert conversations to training data for other trainers: checked ids, labels and attention mask, one row each."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from curate.conversion.output import ConvertResult, Output, open_output
from curate.conversion.readers import InputRecord, read_batches, translate_errors
from curate.conversion.selection import Damaged, Selected, read_selected, select_rows
from curate.conversion.writers import Entry, JsonWriter, ParquetWriter, Writer, stream_to
from curate.dataset import arrow, columns, manifest
from curate.dataset.arrow import Row
from curate.dataset.curated_set import open_set
from curate.dataset.manifest import Manifest
from curate.dataset.messages import decode_messages
from curate.dataset.query import Query
from curate.display.figures import number
from curate.errors import InputError, TokenizerError
from curate.rendering.choices import DEFAULT, Choices
from curate.rendering.factory import load_set_tokenizer, make_renderer
from curate.rendering.preparation import ExamplePreparer, PreparedBatch, PreparedExample, describe_hidden
from curate.rendering.renderer import Renderer
from curate.rendering.resplit import ResplitSummary, differences
from curate.schemas.conversation import Conversation, with_tools
from curate.tokenization.tokenizer import Tokenizer, load_tokenizer

DEFAULT_TEMPLATE = "vicuna"
HIDDEN_OPTION = "--hidden-tools"  # what decides on rows that train calls without the tools' definitions
IGNORED = -100  # the label of tokens that are not trained on, in every trainer
COLUMNS: columns.Types = {
    "input_ids": pl.List(pl.Int32),
    "attention_mask": pl.List(pl.Int8),
    "labels": pl.List(pl.Int32),
}


@dataclass(frozen=True)
class Rendering:
    """How to render; None means the set's own setting. A dump is not split unless `max_tokens` is given."""

    template: str | None = None
    tokenizer: str | None = None
    max_tokens: int | None = None
    loss: str = "all"
    chat_template: str | None = None  # Jinja text
    choices: Choices = DEFAULT  # about reasoning and tools

    def make_renderer(self, own: Manifest | None) -> Renderer:
        """Return the renderer; `own` is the set's manifest, None for a dump."""
        name = self.template or (own.template if own else DEFAULT_TEMPLATE)
        tokenizer = _tokenizer(own, self.tokenizer)
        return make_renderer(name, tokenizer, loss=self.loss, chat_template=self.chat_template, choices=self.choices)


def write(
    source: str | Path,
    target: Path,
    rendering: Rendering,
    query: Query,
    keep: Collection[str] = (),
    shards: int | None = None,
    damaged: Damaged = None,
) -> ConvertResult:
    """Render a curated set, or a file in any known format, into JSON or Parquet.

    A set is split again if the tokenizer, template or window differs from its own; pieces that a query selects are then
    not joined. Conversations that fail the proof or
    exceed the window go to `TARGET.left-out.jsonl`. Raises CurateError and leaves the target unchanged.
    """
    is_set = manifest.is_set(Path(source))
    preparer = _preparer(manifest.read(source)[1] if is_set else None, rendering)
    changed = ResplitSummary(preparer.reasons) if preparer.reasons else None
    totals = PreparedBatch(None)
    warnings: list[str] = []
    with open_output(target, lambda partial: _open(partial, target), shards=shards) as output:
        if is_set:
            rows = _set_rows(source, query, output, warnings)
        else:
            rows = map(_row, read_selected(source, query, output, warnings, keep, damaged))
        for sources in arrow.batch_sources(rows, joined=not query.takes_pieces):
            prepared = preparer.prepare(sources)
            _write_examples(prepared, output)
            totals.by_answer += prepared.by_answer
            totals.hidden_tools += prepared.hidden_tools
            changed = changed and prepared.resplit and changed + prepared.resplit
    if changed is not None:
        warnings.append(str(changed))
    if totals.by_answer.pieces:
        warnings.append(str(totals.by_answer))
    if totals.hidden_tools:
        warnings.append(describe_hidden(totals.hidden_tools, HIDDEN_OPTION))
    return output.result(warnings)


def _preparer(own: Manifest | None, rendering: Rendering) -> ExamplePreparer:
    """Return the preparer of examples; `own` is the set's manifest, None for a dump."""
    renderer = rendering.make_renderer(own)
    if own is None:
        window = rendering.max_tokens
        return ExamplePreparer(renderer, window or sys.maxsize, (f"window {number(window)}",) if window else ())
    window = rendering.max_tokens or own.window
    return ExamplePreparer(renderer, window, tuple(differences(own, renderer.name, renderer.tokenizer.info, window)))


def _tokenizer(own: Manifest | None, name: str | None) -> Tokenizer:
    """Return the tokenizer `name`, or else the set's own, or else the default."""
    if own is None or name is not None:
        return load_tokenizer(name)
    try:
        return load_set_tokenizer(own)
    except TokenizerError:
        raise InputError(
            f"the set was cleaned with the tokenizer {own.tokenizer.name!r}; name it: --tokenizer FOLDER"
        ) from None


def _write_examples(prepared: PreparedBatch, output: Output[PreparedExample]) -> None:
    for example in prepared.examples:
        output.write(example)
    for row, error in prepared.left_out:
        tools = row.messages[0].tools if row.messages else None
        entry = Entry(Conversation(row.name, row.messages, tools=tools), None, None, row.split)
        output.leave_out(InputRecord(row.source[0] or "", row.source[1] or 0, None), entry, error)


# ---- reading


def _set_rows(source: str | Path, query: Query, output: Output[PreparedExample], warnings: list[str]) -> Iterator[Row]:
    """Yield a set's rows, read with Polars, so that converting does not need pyarrow."""
    frame = open_set(source).conversations()
    with translate_errors(source):
        for batch in read_batches(select_rows(source, frame, query, output, warnings), arrow.COLUMNS):
            rows = batch.drop("messages").iter_rows(named=True)  # a set of an earlier version has no tools or branches
            for row, messages in zip(rows, decode_messages(batch["messages"]), strict=True):
                output.read += 1
                place = (row["source_file"], row["source_index"])
                split, branch = row["split"] or "train", row.get("branch") or 0
                own = with_tools(messages, row.get("tools"))
                yield Row(row["id"], row["piece"] or 0, own, row["language"], split, place, branch)


def _row(selected: Selected) -> Row:
    """Return a conversation of a file as its own source."""
    record, entry = selected
    name = entry.conversation.source_id or f"{record.file}:{record.index}"
    messages = entry.conversation.messages_with_tools()
    return Row(name, 0, messages, None, entry.split or "train", (record.file, record.index))


# ---- writing


def _open(partial: Path, target: Path) -> Writer[PreparedExample]:
    if target.suffix == ".parquet":
        return ParquetWriter(partial, COLUMNS, _record, lambda example: 9 * len(example.ids))
    stream, array = stream_to(partial, target)
    return JsonWriter(stream, array, lambda example: [_record(example)])


def _record(example: PreparedExample) -> dict[str, object]:
    """Return a row; `labels` are not shifted: models shift them."""
    labels = np.where(example.loss_mask, example.ids, IGNORED).tolist()
    return {"input_ids": example.ids.tolist(), "attention_mask": [1] * len(example.ids), "labels": labels}
