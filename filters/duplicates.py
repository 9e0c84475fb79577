"""Exact duplicates, beginnings of longer conversations, and the train/eval split, all over hashes of messages.

Each conversation is reduced to its **chain**: the running hash after each message. The last one stands for the
whole content, so two conversations are equal if their last hashes are, and one is the beginning of another
if its last hash is among the other's. Hashes are 64 bits of BLAKE2b: the same in every process and on every
machine. Among 1 million conversations of 7 messages the chance that any two that differ are taken for twins is 4
in 10 million (10^6 * 7 * 10^6 / 2^64), and the one dropped would still stand beside its twin among the rejected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import polars as pl

from curate.filters.registry import corpus_rule

Turn = tuple[str, str, str | None, str | None]  # role, content, name, tool_calls
HASH_BYTES = 16  # of the running hash; its first 8 are what a chain holds
RESULT: dict[str, pl.DataType] = {"row": pl.Int64(), "twin": pl.Int64(), "kind": pl.String()}
HASHES: dict[str, pl.DataType] = {"chain": pl.List(pl.UInt64), "cluster": pl.String()}


def chain_hashes(messages: pl.Series) -> pl.DataFrame:
    """Return `chain` (a UInt64 for each message) and `cluster` (16 hex characters) of each row's list of messages.

    A message is a struct of role, content and, where there are any, name and tool_calls; white space at its end
    does not count. A cluster is the hash of the first exchange, the system message aside: continuations and
    copies of one chat, and branches after the first answer, share it.
    """
    rows: list[list[Turn]] = [
        [(m["role"], m["content"] or "", m.get("name"), m.get("tool_calls")) for m in row or ()]
        for row in messages.to_list()
    ]
    return chain_hashes_of(rows)


def chain_hashes_of(conversations: Iterable[Sequence[Turn]]) -> pl.DataFrame:
    """Return the same for conversations given as (role, content, name, tool_calls), without a detour over Polars."""
    import numpy as np  # the list of filters does without

    hashes = bytearray()  # of all chains, 8 bytes a message
    lengths: list[int] = []
    clusters: list[str] = []
    for turns in conversations:
        chain = _chain(turns)
        hashes += b"".join(chain)
        lengths.append(len(chain))
        clusters.append(_cluster(turns, chain))
    rows = np.arange(len(lengths))
    # built flat and grouped, since a list in each row is slow to build
    flat = pl.DataFrame({"row": np.repeat(rows, lengths), "chain": np.frombuffer(hashes, ">u8").astype(np.uint64)})
    chains = flat.group_by("row", maintain_order=True).agg("chain")
    of_rows = pl.DataFrame({"row": rows, "cluster": clusters}, schema_overrides={"cluster": pl.String})
    found = of_rows.join(chains, on="row", how="left", maintain_order="left")
    return found.select(pl.col("chain").fill_null([]), "cluster").cast(HASHES)  # type: ignore[arg-type]  # str keys


def _chain(turns: Sequence[Turn]) -> list[bytes]:
    """Return the first 8 bytes of the running hash after each message."""
    chain: list[bytes] = []
    digest = b""
    for role, content, name, calls in turns:
        text = f"{role}\0{content.rstrip()}"
        if name or calls:  # lengths keep a content that ends like a name apart from a name
            text = f"{len(name or '')}\0{name or ''}\0{len(calls or '')}\0{calls or ''}{text}"
        digest = hashlib.blake2b(digest + text.encode(), digest_size=HASH_BYTES).digest()
        chain.append(digest[:8])
    return chain


def _cluster(turns: Sequence[Turn], chain: Sequence[bytes]) -> str:
    """Hash the messages from the first that is no system message to the first answer."""
    roles = [turn[0] for turn in turns]
    start = next((place for place, role in enumerate(roles) if role != "system"), 0)
    end = roles.index("assistant") + 1 if "assistant" in roles else len(roles)
    exchange = _chain(turns[start:end]) if start else chain[:end]
    return (exchange[-1] if exchange else bytes(8)).hex()


@corpus_rule
def exact_duplicates(
    frame: pl.DataFrame, prefixes: bool = True, first_exchange: bool = False, ids: bool = False
) -> pl.DataFrame:
    """Drop copies of a conversation, and with `prefixes` those that a longer one begins with.

    The first copy in the order of the input stays; of conversations that begin alike, each that goes on differently
    stays. The twin of a dropped one is always one that stays: the longest that begins with it. Two more
    settings are FastChat's rules, which drop longer continuations: `first_exchange` (one conversation for each first
    exchange) and `ids` (one for each id).
    """
    return find(frame, prefixes, first_exchange, ids)


def find(frame: pl.DataFrame, prefixes: bool = True, first_exchange: bool = False, ids: bool = False) -> pl.DataFrame:
    """Return, for each row of the frame, `row`, `twin` (the row that stays instead, null if it stays itself), `kind`.

    The frame has a row for each conversation, in the order of the input: `row`, `chain`, and `cluster` and
    `source_id` where a setting asks for them. Kinds are exact, prefix, first_exchange and id.
    """
    rows = frame.select(
        pl.col("row").cast(pl.Int64), last=pl.col("chain").list.last(), length=pl.col("chain").list.len()
    )
    kept = rows.group_by("last").agg(pl.col("row").min().alias("twin"), pl.col("length").first())
    if prefixes:
        kept = kept.join(_longer(frame, kept), on="last", how="left", maintain_order="left")
    else:
        kept = kept.with_columns(longer=pl.lit(None, dtype=pl.Int64))
    found = rows.join(kept.select("last", "twin", "longer"), on="last", how="left", maintain_order="left").select(
        "row",
        twin=pl.coalesce("longer", pl.when(pl.col("twin") != pl.col("row")).then("twin")),
        kind=pl.when(pl.col("longer").is_not_null())
        .then(pl.lit("prefix"))
        .when(pl.col("twin") != pl.col("row"))
        .then(pl.lit("exact")),
    )
    if not (first_exchange or ids):
        return found
    nothing = [None] * frame.height
    names = frame["source_id"].to_list() if ids else nothing
    exchanges = frame["cluster"].to_list() if first_exchange else nothing
    return _first_only(found, names, exchanges)


def _longer(frame: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """Return, for each content that a longer conversation begins with, the longest of those (ties: the first row).

    The longest is the beginning of no other, so that it stays itself.
    """
    inner = frame.select(
        longer=pl.col("row").cast(pl.Int64),
        size=pl.col("chain").list.len(),
        last=pl.col("chain").list.head(pl.col("chain").list.len().cast(pl.Int64) - 1),
    ).filter(pl.col("size") > 1)
    return (
        inner.lazy()
        .explode("last")
        .join(kept.lazy().select("last"), on="last", how="semi")
        .sort("size", "longer", descending=[True, False])
        .group_by("last", maintain_order=True)
        .agg(pl.col("longer").first())
        .collect()
    )


def _first_only(found: pl.DataFrame, names: Sequence[object], exchanges: Sequence[object]) -> pl.DataFrame:
    """Drop, of the rows that still stay, all but the first of each id, and of each first exchange; null is no key.

    Row by row, as FastChat does it: a row that is dropped does not make later ones of its id or exchange go.
    """
    rows = found["row"].to_list()
    twins: dict[int, int] = {row: twin for row, twin in zip(rows, found["twin"], strict=True) if twin is not None}
    kinds = dict(zip(rows, found["kind"], strict=True))
    seen: dict[tuple[str, object], int] = {}
    for row, *keys in zip(rows, names, exchanges, strict=True):
        if row in twins:
            continue
        named = [pair for pair in zip(("id", "first_exchange"), keys, strict=True) if pair[1] is not None]
        taken = next((pair for pair in named if pair in seen), None)
        if taken:
            twins[row], kinds[row] = seen[taken], taken[0]
        else:
            seen.update(dict.fromkeys(named, row))
    # a twin that was dropped in turn hands on its own
    last = [twins.get(twins[row], twins[row]) if row in twins else None for row in rows]
    return pl.DataFrame({"row": rows, "twin": last, "kind": [kinds[row] for row in rows]}, schema=RESULT)
