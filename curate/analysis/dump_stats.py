"""Measure a dump before cleaning. Workers parse and count its records; nothing is repaired or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
import polars as pl

from curate._version import __version__
from curate.analysis import set_stats
from curate.analysis.stats import Duplicates, Flow, Header, Input, Stats, Step, sort_counts
from curate.engine import base, pool
from curate.errors import InputError, RecordError
from curate.filters import duplicates, verdicts
from curate.ingest.damaged_records import DAMAGED_STREAM
from curate.ingest.decode import Chunk, RawRecord, batches, decode_records
from curate.ingest.ratings import read_ratings
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs
from curate.pipeline import frames, repair_text
from curate.pipeline.frames import Draft, Origin
from curate.pipeline.recipe import TokenSettings
from curate.pipeline.whole.doubt import with_doubt
from curate.rendering import splitter
from curate.schemas import formats, prompts
from curate.schemas.conversation import ROLES, Conversation, Message
from curate.schemas.reading import record_keys
from curate.schemas.reading.options import DEFAULT, ReadOptions
from curate.tokenization.tokenizer import TokenizerInfo, load_tokenizer

COLUMNS: dict[str, type[pl.DataType]] = {
    "id": pl.String,
    "cluster": pl.UInt64,
    "content": pl.UInt64,
    "language": pl.String,
    "model": pl.String,
    "tokens": pl.Int64,
    "answer_tokens": pl.Int64,
    "turns": pl.Int64,
    "source_file": pl.String,
    "source_index": pl.Int64,
    **dict.fromkeys(map(str, ROLES), pl.Int64),  # messages of each role
}


LANGUAGE = "language"  # the only signal that is shown


@dataclass(frozen=True)
class MeasurerFactory:
    """Makes a `Measurer` in each worker."""

    tokenizer: str
    template: str
    ratings: Mapping[str, bool] = field(default_factory=dict)  # of messages, by id

    def __call__(self) -> Measurer:
        return Measurer(self)


@dataclass(frozen=True)
class BatchStats:
    """The numbers of one batch of chunks: a row per conversation (`COLUMNS`), and unreadable records by rule."""

    read: int
    rows: pl.DataFrame
    unreadable: Counter[str]
    turn_keys: Counter[str]
    tokenizer: TokenizerInfo


class Measurer:
    """The step that `curate.engine` runs: takes chunks and returns their `BatchStats`."""

    def __init__(self, factory: MeasurerFactory) -> None:
        tokenizer = load_tokenizer(factory.tokenizer)
        self.info = tokenizer.info
        self.options = ReadOptions(ratings=factory.ratings)
        self.counter = splitter.TemplateCounter(prompts.get(factory.template), tokenizer)

    def __call__(self, chunks: Sequence[Chunk]) -> BatchStats:
        """Parse and count the records of chunks."""
        drafts: list[Draft] = []
        unreadable: Counter[str] = Counter()
        raws = [(chunk.source_file, raw) for chunk in chunks for raw in decode_records(chunk)]
        for number, (file, raw) in enumerate(raws):
            try:
                drafts.append(Draft(Origin(number, file, raw.index), b"", parse_unrepaired(raw, self.options)))
            except RecordError as error:
                unreadable[error.rule] += 1
        extra = [message.extra for draft in drafts for message in draft.conversation.messages]
        keys = frames.count_turn_keys(pl.Series(extra, dtype=pl.String))
        return BatchStats(len(raws), self._count(drafts), unreadable, keys, self.info)

    def _count(self, drafts: Sequence[Draft]) -> pl.DataFrame:
        if not drafts:
            return pl.DataFrame(schema=COLUMNS)
        chats = [draft.conversation for draft in drafts]
        messages = [chat.messages for chat in chats]
        # Only what is shown is measured: no other signal, and no column that filters alone read.
        frame = verdicts.measure(_sides(messages), {LANGUAGE: {}})
        sizes = self.counter.sizes([(conversation, True) for conversation in messages])
        hashes = duplicates.chain_hashes(map(frames.hashed_fields, chats))
        origins = [draft.origin for draft in drafts]
        places = [f"{origin.source_file}:{origin.source_index}" for origin in origins]
        counted = frame.with_columns(
            id=pl.coalesce(pl.Series([chat.source_id for chat in chats], dtype=pl.String), pl.Series(places)),
            model=pl.Series([chat.model for chat in chats], dtype=pl.String),
            source_file=pl.Series([origin.source_file for origin in origins], dtype=pl.String),
            source_index=pl.Series([origin.source_index for origin in origins], dtype=pl.Int64),
            cluster=hashes["prompt"],
            content=hashes["chain"].list.last(),
            tokens=pl.Series([size.tokens for size in sizes], dtype=pl.Int64),
            answer_tokens=pl.Series([size.answer_tokens for size in sizes], dtype=pl.Int64),
        )
        return counted.select(pl.col(name).cast(dtype) for name, dtype in COLUMNS.items())


def _sides(conversations: Sequence[Sequence[Message]]) -> pl.DataFrame:
    """Return the prompts, answers, number of messages and messages by role of each conversation."""
    messages = [message for conversation in conversations for message in conversation]
    row = np.repeat(np.arange(len(conversations)), list(map(len, conversations)))
    columns = {"row": row, "role": [m.role for m in messages], "content": [m.content for m in messages]}
    role = pl.col("role")
    grouped = (
        pl.DataFrame(columns)
        .group_by("row", maintain_order=True)
        .agg(
            prompts=pl.col("content").filter(role == "user"),
            answers=pl.col("content").filter(role == "assistant"),
            turns=pl.len(),
            **{name: (role == name).sum() for name in ROLES},
        )
    )
    return grouped.drop("row")


def parse_unrepaired(raw: RawRecord, options: ReadOptions = DEFAULT) -> Conversation:
    """Parse a record without repairs; raises RecordError if it has no conversation."""
    if raw.problem is not None:
        raise raw.problem
    conversation = formats.parse(raw.value, options)
    record_keys.refuse_flaws(conversation)
    if not conversation.messages:
        raise RecordError("no_messages", "the record has no turns")
    if raw.surrogates:
        repair_text.repair_surrogates(conversation)
    return conversation


def measure_dump(
    path: str | Path, *, tokenizer: str | None = None, template: str | None = None, workers: int | None = None
) -> Stats:
    """Measure the conversations in a file, a folder or standard input; raises InputError if there are none."""
    defaults = TokenSettings()
    reader = Reader(open_inputs([path]))
    ratings = read_ratings(reader.parts_of_exports)
    factory = MeasurerFactory(tokenizer or defaults.tokenizer, template or defaults.template, ratings)
    tasks = batches(reader)
    first = list(islice(tasks, 2))
    count = (workers or base.default_workers()) if len(first) == 2 else 1
    parts = list(pool.run(factory, chain(first, tasks), count))
    if not sum(part.read for part in parts):
        raise InputError(f"{str(path)!r} has no record")
    return _stats(str(path), parts, reader, factory.template)


def _stats(path: str, parts: Sequence[BatchStats], reader: Reader, template: str) -> Stats:
    frame = pl.concat([part.rows for part in parts])
    sound = with_doubt(frame, reader.damaged_records)["doubt"].is_null()
    frame = frame.filter(sound)
    sizes = frame.select(set_stats.SIZES)
    unreadable: Counter[str] = sum((part.unreadable for part in parts), Counter())
    unreadable[DAMAGED_STREAM] = int((~sound).sum())
    unreadable += Counter()  # drops a count of 0
    roles = Counter(frame.select(pl.col(ROLES).sum()).row(0, named=True)) + Counter()
    read = sum(part.read for part in parts)
    return Stats(
        header=Header(
            path=path,
            kind="dump",
            inputs=tuple(Input(item.name, item.bytes) for item in reader.inputs),
            recipe=None,
            version=__version__,
            tokenizer=parts[0].tokenizer.name,
            template=template,
            window=None,
            read=read,
            kept=frame.height,
            tokens=int(sizes["tokens"].sum()),
            answer_tokens=int(sizes["answer_tokens"].sum()),
            warnings=tuple(damage.text for damage in reader.warnings),
        ),
        flow=_flow(read, frame.height, unreadable),
        histograms=set_stats.histograms(sizes, sizes["tokens"], "conversations"),
        languages=set_stats.shares(frame.lazy(), "language"),
        models=set_stats.shares(frame.lazy(), "model"),
        roles=sort_counts(roles),
        turn_keys=sort_counts(sum((part.turn_keys for part in parts), Counter())),
        splits=(),
        edits=(),
        duplicates=_duplicates(frame),
        windows=set_stats.windows(sizes["tokens"], sizes["tokens"]),
        training=set_stats.training(sizes),
    )


def _flow(read: int, kept: int, unreadable: Counter[str]) -> Flow:
    steps = tuple(Step(item.name, item.count, item.count) for item in sort_counts(unreadable))
    return Flow(read, steps, unreadable.total(), kept, 0, kept)


def _duplicates(frame: pl.DataFrame) -> Duplicates:
    by_cluster = frame.lazy().group_by("cluster").agg(size=pl.len(), example=pl.col("id").min())
    same = frame.group_by("content", maintain_order=True).agg(copies=pl.len() - 1, id=pl.col("id").first())
    most = same.sort("copies", descending=True, maintain_order=True).head(1).select("id", "copies").rows()
    name, copies = most[0] if most else (None, 0)
    return Duplicates(
        *set_stats.summarize_clusters(by_cluster), int(same["copies"].sum()), name if copies else None, copies
    )
