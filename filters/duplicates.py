"""Find exact duplicates and prefixes of longer conversations by hashes of their messages.

Each conversation is reduced to its **chain**: the running hash after each message. The last hash covers the
whole content, so two conversations are equal if their last hashes are equal, and one is a prefix of another
if its last hash appears in the other's chain. Hashes are 64 bits of BLAKE2b, the same in every process and on every
machine. Among 1 million conversations of 7 messages, the chance of any false match is 4 in 10 million
(10^6 * 7 * 10^6 / 2^64), and rejected.parquet lists every dropped conversation with its twin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import polars as pl

from curate.filters.registry import corpus_rule

MessageFields = tuple[str, str, str | None, str | None, str | None]  # role, content, name, tool_calls, anything else
HASH_BYTES = 16  # of the running hash; a chain keeps the first 8
RESULT: dict[str, pl.DataType] = {"row": pl.Int64(), "twin": pl.Int64(), "kind": pl.String()}
HASHES: dict[str, pl.DataType] = {"chain": pl.List(pl.UInt64), "cluster": pl.String()}


def chain_hashes(conversations: Iterable[Sequence[MessageFields]]) -> pl.DataFrame:
    """Return `chain` (one UInt64 per message) and `cluster` (16 hex characters) for each conversation.

    White space at the end of a message does not count. A cluster is the hash of the first exchange without the
    system message: continuations and copies of a chat, and branches after the first answer, share it.
    """
    import numpy as np  # imported late to keep `curate filters` fast

    hashes = bytearray()  # of all chains, 8 bytes per message, big-endian
    lengths: list[int] = []
    clusters: list[str] = []
    for messages in conversations:
        chain = _chain(messages)
        hashes += b"".join(chain)
        lengths.append(len(chain))
        clusters.append(_cluster(messages, chain))
    rows = np.arange(len(lengths))
    # one flat column, grouped afterwards: a Python list per row is slow to convert
    flat = pl.DataFrame({"row": np.repeat(rows, lengths), "chain": np.frombuffer(hashes, ">u8").astype(np.uint64)})
    chains = flat.group_by("row", maintain_order=True).agg("chain")
    frame = pl.DataFrame({"row": rows, "cluster": clusters}, schema_overrides={"cluster": pl.String})
    frame = frame.join(chains, on="row", how="left", maintain_order="left")
    return frame.select(pl.col("chain").fill_null([]), "cluster").cast(HASHES)  # type: ignore[arg-type]  # str keys


def _chain(messages: Sequence[MessageFields]) -> list[bytes]:
    """Return the first 8 bytes of the running hash after each message."""
    chain: list[bytes] = []
    digest = b""
    for role, content, name, calls, other in messages:
        text = f"{role}\0{content.rstrip()}"
        if name or calls:  # with their lengths, so that a name cannot be confused with content
            text = f"{len(name or '')}\0{name or ''}\0{len(calls or '')}\0{calls or ''}{text}"
        if other:
            text = f"{len(other)}\0{other}\0{text}"
        digest = hashlib.blake2b(digest + text.encode(), digest_size=HASH_BYTES).digest()
        chain.append(digest[:8])
    return chain


def _cluster(messages: Sequence[MessageFields], chain: Sequence[bytes]) -> str:
    """Return the hash of the messages from the first that is not a system message through the first answer."""
    roles = [message[0] for message in messages]
    start = next((position for position, role in enumerate(roles) if role != "system"), 0)
    end = roles.index("assistant") + 1 if "assistant" in roles else len(roles)
    exchange = _chain(messages[start:end]) if start else chain[:end]
    return (exchange[-1] if exchange else bytes(8)).hex()


@corpus_rule
def exact_duplicates(
    frame: pl.DataFrame, prefixes: bool = True, first_exchange: bool = False, ids: bool = False
) -> pl.DataFrame:
    """Drop exact copies of a conversation and, with `prefixes`, conversations that a longer one starts with.

    The first copy in input order is kept. Conversations that start alike but continue differently are all kept.
    The twin of a dropped conversation is always a kept one: for a prefix, the longest conversation that starts with
    it. Two more settings are FastChat's rules, which also drop longer continuations: `first_exchange` keeps one
    conversation for each first exchange, `ids` one for each id.
    """
    # `frame` has one row per conversation in input order: row, chain, and for FastChat's rules cluster and source_id.
    # The result has the same rows: row, twin (None if kept), kind (exact, prefix, first_exchange or id).
    rows = frame.select(
        pl.col("row").cast(pl.Int64), last=pl.col("chain").list.last(), length=pl.col("chain").list.len()
    )
    kept = rows.group_by("last").agg(pl.col("row").min().alias("twin"), pl.col("length").first())
    if prefixes:
        kept = kept.join(_longer(frame, kept), on="last", how="left", maintain_order="left")
    else:
        kept = kept.with_columns(longer=pl.lit(None, dtype=pl.Int64))
    twins = rows.join(kept.select("last", "twin", "longer"), on="last", how="left", maintain_order="left").select(
        "row",
        twin=pl.coalesce("longer", pl.when(pl.col("twin") != pl.col("row")).then("twin")),
        kind=pl.when(pl.col("longer").is_not_null())
        .then(pl.lit("prefix"))
        .when(pl.col("twin") != pl.col("row"))
        .then(pl.lit("exact")),
    )
    if not (first_exchange or ids):
        return twins
    empty = [None] * frame.height
    names = frame["source_id"].to_list() if ids else empty
    exchanges = frame["cluster"].to_list() if first_exchange else empty
    return _drop_repeated_keys(twins, names, exchanges)


def _longer(frame: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """Return the row of the longest conversation that starts with each `last` hash (ties: the first row).

    The longest is a prefix of no other conversation, so it is kept itself.
    """
    prefixes = frame.select(
        longer=pl.col("row").cast(pl.Int64),
        size=pl.col("chain").list.len(),
        last=pl.col("chain").list.head(pl.col("chain").list.len().cast(pl.Int64) - 1),
    ).filter(pl.col("size") > 1)
    return (
        prefixes.lazy()
        .explode("last")
        .join(kept.lazy().select("last"), on="last", how="semi")
        .sort("size", "longer", descending=[True, False])
        .group_by("last", maintain_order=True)
        .agg(pl.col("longer").first())
        .collect()
    )


def _drop_repeated_keys(frame: pl.DataFrame, names: Sequence[object], exchanges: Sequence[object]) -> pl.DataFrame:
    """Keep only the first remaining row of each id and each first exchange; None is not a key.

    Rows are visited in order, as in FastChat: a dropped row does not cause later rows with its keys to be dropped.
    """
    rows = frame["row"].to_list()
    twins: dict[int, int] = {row: twin for row, twin in zip(rows, frame["twin"], strict=True) if twin is not None}
    kinds = dict(zip(rows, frame["kind"], strict=True))
    first_rows: dict[tuple[str, object], int] = {}  # by id or first exchange
    for row, *keys in zip(rows, names, exchanges, strict=True):
        if row in twins:
            continue
        pairs = [pair for pair in zip(("id", "first_exchange"), keys, strict=True) if pair[1] is not None]
        match = next((pair for pair in pairs if pair in first_rows), None)
        if match:
            twins[row], kinds[row] = first_rows[match], match[0]
        else:
            first_rows.update(dict.fromkeys(pairs, row))
    # a twin may itself have been dropped above: point to its twin instead
    last = [twins.get(twins[row], twins[row]) if row in twins else None for row in rows]
    return pl.DataFrame({"row": rows, "twin": last, "kind": [kinds[row] for row in rows]}, schema=RESULT)
