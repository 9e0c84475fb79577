"""Clusters: conversations that are held out together, since the answers of one would give away those of another.

Conversations are in one cluster if they share the first prompt, the dump's own id, the record of which they are
branches, or the chat that they are or are pieces of (`id`, `id_0`, `id_1`), or are near duplicates; directly, or
through others.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

PIECE = r"^(?<chat>.+)_(?<number>0|[1-9]\d{0,3})$"  # the id of a piece: that of its chat, and a number
MAX_ROWS = 100  # with one id; one that more conversations have is not the id of a chat
Edges = NDArray[np.int64] | None  # [edges, 2]: places of rows
TYPICAL_PIECES = 8  # of a chat, on average, at most; ids such as train_0 … train_99 have more


def have_pieces(rows: pl.DataFrame) -> bool:
    """Return whether ids that end in a number are those of pieces, from `source_id` and `prompt`."""
    sizes = _sizes(_named(rows))
    return are_pieces(int(sizes["number"].sum()), sizes.height)


def are_pieces(numbers: int, chats: int) -> bool:
    """Return whether ids that end in a number are those of pieces: they have so many different `numbers` by chat.

    They may also be counted ones (`train_0` … `train_999`): then few ids have many numbers each.
    """
    return chats > 0 and numbers / chats <= TYPICAL_PIECES


def split_chats(rows: pl.DataFrame, pieces: bool | None = None) -> pl.Series:
    """Return the id of the chat that a conversation is a piece of, or null, from `source_id` and `prompt`.

    Three or more conversations that all begin with the same prompt are not pieces, but a chat as it grew. `pieces` says
    whether ids are those of pieces, if it is known.
    """
    if not (have_pieces(rows) if pieces is None else pieces):
        return pl.repeat(None, rows.height, dtype=pl.String, eager=True)
    named = _named(rows)
    wanted = _sizes(named).filter((pl.col("number") < 3) | (pl.col("prompt") > 1))["chat"]
    return named.select(pl.when(pl.col("chat").is_in(wanted.implode())).then("chat"))["chat"]


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(pl.col("source_id").str.extract_groups(PIECE).struct.unnest(), "prompt")


def _sizes(named: pl.DataFrame) -> pl.DataFrame:
    """Return the pieces (`number`) and prompts of each chat that may be one."""
    sizes = named.drop_nulls().group_by("chat").agg(pl.col("number", "prompt").n_unique())
    return sizes.filter(pl.col("number") <= MAX_ROWS)


def may_be_piece(source_id: str | None) -> bool:
    """Return whether a conversation may be a piece of a chat, so that `split_chats` needs its prompt."""
    return source_id is not None and source_id[-1:].isdigit() and "_" in source_id


def cluster_names(rows: pl.DataFrame, near: Edges = None) -> pl.Series:
    """Return the cluster of each conversation: the lowest hash of its first prompts, as 16 hex digits.

    `rows` has prompt, chat, source_id, source_file, source_index and branch. An id that is a number counts within its
    file only. `near`, [edges, 2], has places of near duplicates.
    """
    number = pl.col("source_id").str.contains(r"^\d+$")
    keys = rows.select(
        "prompt",
        "chat",
        id=pl.when(pl.len().over("source_id") <= MAX_ROWS).then("source_id"),
        file=pl.when(number).then("source_file"),
    ).with_row_index("place")
    # A whole chat has the id that its pieces begin with; an id that is a number names no chat of another file.
    chats = keys.with_columns(chat=pl.coalesce("chat", pl.when(pl.col("file").is_null()).then("id")))
    edges = [_edges(keys, ["prompt"]), _edges(chats, ["chat"]), _edges(keys, ["id", "file"])]
    edges += [] if near is None else [near]
    if (rows["branch"] > 0).any():
        edges.append(_edges(rows.with_row_index("place"), ["source_index", "source_file"]))
    component = pl.Series(components(rows.height, np.concatenate(edges)))
    lowest = rows.select(pl.col("prompt").min().over(component)).to_series()
    unique = lowest.unique()
    names = pl.Series([f"{prompt:016x}" for prompt in unique], dtype=pl.String)
    return lowest.replace_strict(unique, names) if len(unique) else names


def _edges(keys: pl.DataFrame, names: list[str]) -> NDArray[np.int64]:
    """Return [edges, 2]: each place with the first that has the same key."""
    known = keys.drop_nulls(names[0]).select("place", first=pl.col("place").first().over(names))
    return known.filter(pl.col("place") != pl.col("first")).to_numpy().astype(np.int64)


def components(size: int, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lowest node of each node's component, [size]."""
    root = np.arange(size)
    join(root, edges)
    return root


def join(root: NDArray[np.integer], edges: NDArray[np.integer]) -> None:
    """Join the components of nodes that have an edge, in place, by joining roots and shortening paths.

    `root`, [nodes], has the lowest node of each one's component; `edges` is [edges, 2].
    """
    while True:
        left, right = root[edges[:, 0]], root[edges[:, 1]]
        apart = left != right
        if not apart.any():
            return
        edges = edges[apart]
        np.minimum.at(root, np.maximum(left, right)[apart], np.minimum(left, right)[apart])
        while not np.array_equal(root, shorter := root[root]):
            root[:] = shorter
