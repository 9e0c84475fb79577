"""Read the rows of a set, and turn them into the tables of a part: pieces are joined to conversations again."""

from __future__ import annotations

import graphlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.dataset import columns, curated_set
from curate.dataset.checks import check_conversations
from curate.errors import SetError
from curate.filters import duplicates
from curate.pipeline import frames
from curate.schemas.conversation import Conversation, Message
from curate.schemas.formats import native

SLICE = 10_000  # records of a task
RECORD = ["source_file", "source_index"]
CHAT = [*RECORD, "branch"]
TABLES = (curated_set.CONVERSATIONS, curated_set.REJECTED, curated_set.ORIGINALS)
NO_BRANCH = pl.lit(0, pl.Int32).alias("branch")
MAX_INDEX = 1 << 40  # of a record in its file
OF_SET = ("id", "cluster", "split")  # columns that are decided over the whole set


@dataclass(frozen=True)
class StoredSet:
    """A set that is read: its folder, and other names for source files whose name another set has too."""

    folder: Path
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """A task: records in a row of one of the sets that are read.

    `rows` has the first row and their number by table, `files` the source files that these are from, in order.
    """

    number: int
    set: int
    rows: Mapping[str, tuple[int, int]]
    files: tuple[str, ...]


def plan_slices(stored: StoredSet, number: int, first: int) -> Iterator[Slice]:
    """Yield the slices of a set, numbered from `first`; raises SetError if its rows are not in record order."""
    files, keys = _record_keys(stored.folder)
    starts = np.unique(np.concatenate(list(keys.values())))[::SLICE]
    bounds = {name: np.append(np.searchsorted(values, starts), len(values)).tolist() for name, values in keys.items()}
    places = [*(starts // MAX_INDEX).tolist(), len(files) - 1]
    for index in range(len(starts)):
        rows = {name: (bound[index], bound[index + 1] - bound[index]) for name, bound in bounds.items()}
        yield Slice(first + index, number, rows, tuple(files[places[index] : places[index + 1] + 1]))


def _record_keys(folder: Path) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """Return the source files in their order, and a number for each row of each table, ascending in record order."""
    tables = {name: pl.scan_parquet(folder / name).select(RECORD) for name in TABLES if (folder / name).exists()}
    files = [table.select(pl.col("source_file").unique(maintain_order=True)) for table in tables.values()]
    order = _file_order(folder, [frame.to_series().to_list() for frame in pl.collect_all(files)])
    codes = pl.DataFrame(
        {"source_file": list(order), "code": list(order.values())}, schema_overrides={"code": pl.Int64}
    )
    keys = {}
    for name, table in tables.items():
        coded = table.join(codes.lazy(), on="source_file", how="left", maintain_order="left")
        key = coded.select(pl.col("code") * MAX_INDEX + pl.col("source_index")).collect().to_series().to_numpy()
        if (np.diff(key) < 0).any():
            raise _out_of_order(folder)
        keys[name] = key
    return list(order), keys


def _file_order(folder: Path, tables: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the place of each source file, from their order in each table."""
    followers: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for files in tables:
        for name in files:
            followers.add(name)
        for before, after in pairwise(files):
            followers.add(after, before)
    try:
        return {name: place for place, name in enumerate(followers.static_order())}
    except graphlib.CycleError:
        raise _out_of_order(folder) from None


def _out_of_order(folder: Path) -> SetError:
    return SetError(
        f"the rows of {str(folder)!r} are not in the order of its records, or two inputs have one name; "
        "run curate clean again"
    )


def read_rows(stored: StoredSet, task: Slice, name: str) -> pl.DataFrame:
    """Return a table's rows in a slice, under the new names of their files."""
    if name not in task.rows:
        return pl.DataFrame(schema=columns.ORIGINAL)
    offset, count = task.rows[name]
    rows = pl.scan_parquet(stored.folder / name).slice(offset, count).collect()
    if name == curated_set.CONVERSATIONS:
        check_conversations(rows["messages"].null_count())
    if name != curated_set.ORIGINALS and "branch" not in rows.columns:
        rows = rows.with_columns(NO_BRANCH)
    return rows.with_columns(pl.col("source_file").replace(stored.renamed)) if stored.renamed else rows


def number_records(tables: Sequence[pl.DataFrame], stored: StoredSet, task: Slice) -> pl.DataFrame:
    """Return the key of each record in a slice, in order, with its `number`."""
    places = {stored.renamed.get(name, name): place for place, name in enumerate(task.files)}
    records = pl.concat([table.select(RECORD) for table in tables]).unique()
    place = pl.col("source_file").replace_strict(places, return_dtype=pl.UInt32)
    return records.sort(place, "source_index").with_row_index("number")


def with_rows(kept: pl.DataFrame) -> pl.DataFrame:
    """Add `row`: the number of the conversation that a piece is of."""
    return kept.with_columns(row=pl.struct(CHAT).rle_id())


def join_pieces(kept: pl.DataFrame) -> pl.DataFrame:
    """Return one row for each conversation, with its number of `pieces`, and all its messages in their order."""
    grouped = kept.group_by("row", maintain_order=True)
    first = kept.unique("row", keep="first", maintain_order=True).with_columns(grouped.agg(pieces=pl.len())["pieces"])
    several = first.filter(pl.col("pieces") > 1)
    if several.is_empty():
        return first
    pieces = kept.join(several.select("row"), on="row", how="semi").group_by("row", maintain_order=True)
    together = pieces.agg(pl.col("messages"), pl.col("rejected_answer").last())
    messages = pl.Series([_join(parts) for parts in together["messages"]], dtype=kept.schema["messages"])
    content = pl.element().struct.field("content").str.len_chars()
    several = several.with_columns(
        messages=messages,
        rejected_answer=together["rejected_answer"],
        id=pl.col("id").str.strip_suffix("_0"),
    ).with_columns(
        turns=pl.col("messages").list.len().cast(pl.Int32),
        characters=pl.col("messages").list.eval(content).list.sum().cast(pl.Int64),
    )
    return pl.concat([first.filter(pl.col("pieces") == 1), several]).sort("row")


def _join(pieces: pl.Series) -> list[dict[str, Any]]:
    """Return the messages of pieces: each piece begins with all system messages that were before it."""
    joined: list[dict[str, Any]] = []
    for piece in pieces.to_list():
        joined += piece[sum(message["role"] == "system" for message in joined) :]
    return joined


def with_texts(conversations: pl.DataFrame) -> pl.DataFrame:
    """Add `prompts` and `answers`, which filters read."""
    role, content = (pl.element().struct.field(name) for name in ("role", "content"))
    texts = {"prompts": "user", "answers": "assistant"}
    return conversations.with_columns(
        pl.col("messages").list.eval(content.filter(role == speaker)).alias(name) for name, speaker in texts.items()
    )


def explode(conversations: pl.DataFrame) -> pl.DataFrame:
    """Return one row per message, with the `row` of its conversation."""
    return conversations.select("row", "messages").explode("messages").unnest("messages")


def summarise(conversations: pl.DataFrame, messages: pl.DataFrame) -> pl.DataFrame:
    """Return the summary of each conversation (`columns.PART_SUMMARY`), from its messages, one in a row."""
    names = ("role", "content", "name", "tool_calls", "reasoning")
    fields = list(zip(*(_values(messages[name]) for name in names), strict=True))
    ends = [0, *accumulate(conversations["turns"])]
    chats: list[list[duplicates.MessageFields]] = [fields[start:end] for start, end in pairwise(ends)]
    for chat, tools in zip(chats, conversations["tools"].to_list(), strict=True):
        if tools:
            frames.add_needs(chat, [tools])
    hashes = duplicates.chain_hashes(chats)
    reasoned = frames.marks_table(messages.with_columns(pl.col("row").cast(pl.UInt32)))
    frame = conversations.select(
        pl.col("row").cast(pl.UInt32), *CHAT, "source_id", "pieces", alone=pl.lit(False)
    ).hstack(hashes)
    frame = frame.join(reasoned, on="row", how="left", maintain_order="left")
    return frame.select(pl.col(name).cast(dtype) for name, dtype in columns.PART_SUMMARY.items())


def _values(column: pl.Series) -> Sequence[Any]:
    """Return a column's values; most columns of messages have none."""
    return column.to_list() if column.null_count() < len(column) else [None] * len(column)


def kept_table(kept: pl.DataFrame, conversations: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of kept pieces as those of a part, with `id`, `cluster` and `split` of their set."""
    measured = conversations.select("row", "pieces", source_turns="turns", source_characters="characters")
    kept = kept.join(measured, on="row", how="left", maintain_order="left")
    system = pl.element().struct.field("role") == "system"
    spoken = pl.col("messages").list.eval(system.not_().arg_true().cast(pl.Int64))
    kept = kept.with_columns(system=pl.col("turns") - spoken.list.len(), positions=spoken)
    repeated = pl.col("system").shift(1, fill_value=0).over("row")  # system messages before the piece
    own = pl.col("turns") - repeated
    offset = (own.cum_sum() - own).over("row") - repeated
    several = pl.col("pieces") > 1
    return kept.with_columns(
        positions=pl.when(several).then(pl.col("positions") + offset).otherwise("positions").cast(pl.List(pl.UInt32))
    ).drop("system")


def encode_record(row: Mapping[str, Any]) -> bytes:
    """Return a conversation as one of curate's own records, for one whose bytes in the dump are not known."""
    conversation = Conversation(
        source_id=row["source_id"],
        messages=[Message(**message) for message in row["messages"]],
        model=row["model"],
        tools=row["tools"],
        rejected_answer=[Message(**message) for message in row["rejected_answer"] or ()],
    )
    text = frames.json_text({**native.dump(conversation), "metadata": json.loads(row["metadata"] or "{}")})
    return (text or "").encode()
