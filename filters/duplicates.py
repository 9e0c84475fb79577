"""Find exact duplicates and prefixes of longer conversations by hashes of their messages, and near duplicates.

Each conversation is reduced to its **chain**: the running hash after each message. The last hash covers the
whole content, so two conversations are equal if their last hashes are equal, and one is a prefix of another
if its last hash appears in the other's chain. White space around a text does not count, and neither does what a
message says about training: of copies, the one that trains the most messages is kept. Hashes are 64 bits of BLAKE2b,
the same in every process and on every machine. Among 1 million conversations of 7 messages, the chance of any false
match is 4 in 10 million (10^6 * 7 * 10^6 / 2^64), and rejected.parquet lists every dropped conversation with its twin.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import polars as pl

from curate.errors import RecipeError, did_you_mean
from curate.filters.examples import Examples, chat
from curate.filters.registry import Settings, corpus_rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from curate.filters.minhash.matches import Pair

NEAR = "near_duplicates"
CHOICES = {"of": ("conversations", "prompts"), "action": ("drop", "flag")}  # of near_duplicates
RIVER = "The Nile is a river in Africa that flows north through eleven countries to the Mediterranean Sea"

MessageFields = tuple[str, str, str | None, str | None, str | None]  # role, content, name, tool_calls, anything else
HASH_BYTES = 16  # of the running hash; a chain keeps the first 8
RESULT: dict[str, pl.DataType] = {"row": pl.Int64(), "twin": pl.Int64(), "kind": pl.String()}
HASHES: dict[str, pl.DataType] = {"chain": pl.List(pl.UInt64()), "exchange": pl.UInt64(), "prompt": pl.UInt64()}
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
OUTER = "".join(filter(str.isspace, map(chr, range(0x3001)))) + ZERO_WIDTH  # not compared around a text


def chain_hashes(
    conversations: Iterable[Sequence[MessageFields]], need_prompt: Iterable[bool] = repeat(True)
) -> pl.DataFrame:
    """Return `chain` (one UInt64 per message), `exchange` and `prompt` for each conversation.

    `exchange` is the hash of the first exchange without the system message, `prompt` that of the first prompt without
    regard to case and white space: all answers to one prompt share it, whatever the system message says. It takes as
    long as half of the chain, so `need_prompt` says where it is needed; elsewhere `prompt` is the exchange's.
    """
    import numpy as np  # imported late to keep `curate filters` fast

    hashes = bytearray()  # of all chains, 8 bytes per message, big-endian
    firsts = bytearray()  # exchange and prompt, 8 bytes each
    lengths: list[int] = []
    for messages, needed in zip(conversations, need_prompt, strict=False):
        chain = _chain(messages)
        hashes += b"".join(chain)
        lengths.append(len(chain))
        exchange = _exchange(messages, chain)
        firsts += exchange + ((_prompt(messages) if needed else None) or exchange)
    rows = np.arange(len(lengths))
    # one flat column, grouped afterwards: a Python list per row is slow to convert
    flat = pl.DataFrame({"row": np.repeat(rows, lengths), "chain": _integers(hashes)})
    chains = flat.group_by("row", maintain_order=True).agg("chain")
    frame = pl.DataFrame({"row": rows, "exchange": _integers(firsts)[::2], "prompt": _integers(firsts)[1::2]})
    frame = frame.join(chains, on="row", how="left", maintain_order="left")
    return frame.select(pl.col("chain").fill_null([]), "exchange", "prompt").cast(HASHES)  # type: ignore[arg-type]


def _integers(hashes: bytearray) -> NDArray[np.uint64]:
    import numpy as np

    return np.frombuffer(hashes, ">u8").astype(np.uint64)


def _chain(messages: Sequence[MessageFields]) -> list[bytes]:
    """Return the first 8 bytes of the running hash after each message."""
    chain: list[bytes] = []
    digest = b""
    for role, content, name, calls, other in messages:
        text = f"{role}\0{content.strip(OUTER)}"
        if name or calls:  # with their lengths, so that a name cannot be confused with content
            text = f"{len(name or '')}\0{name or ''}\0{len(calls or '')}\0{calls or ''}{text}"
        if other:
            text = f"{len(other)}\0{other}\0{text}"
        digest = hashlib.blake2b(digest + text.encode(), digest_size=HASH_BYTES).digest()
        chain.append(digest[:8])
    return chain


def _exchange(messages: Sequence[MessageFields], chain: Sequence[bytes]) -> bytes:
    """Return the hash of the messages from the first that is not a system message through the first answer."""
    start = next((place for place, message in enumerate(messages) if message[0] != "system"), 0)
    end = next((place for place, message in enumerate(messages, 1) if message[0] == "assistant"), len(messages))
    exchange = _chain(messages[start:end]) if start else chain[:end]
    return exchange[-1] if exchange else bytes(8)


def _prompt(messages: Sequence[MessageFields]) -> bytes | None:
    """Return the hash of the first prompt, normalised; None if there is no prompt."""
    text = next((message[1] for message in messages if message[0] == "user"), None)
    if text is None:
        return None
    return hashlib.blake2b(normalise(text).encode(), digest_size=8).digest()


def normalise(text: str) -> str:
    """Return a text without differences of case, white space and Unicode's compatible forms."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        for character in ZERO_WIDTH:
            text = text.replace(character, "")
    return " ".join(text.casefold().split())


@corpus_rule(
    examples=Examples(
        chat("Name a large river.", "The Nile."),
        chat("Name a large river.", "The Rhine."),
        before=[chat("Name a large river.", "The Nile.", "And another?", "The Rhine.")],
    )
)
def exact_duplicates(
    frame: pl.DataFrame, prefixes: bool = True, first_exchange: bool = False, ids: bool = False
) -> pl.DataFrame:
    """Drop exact copies of a conversation and, with `prefixes`, conversations that a longer one starts with.

    Of copies, the one that trains the most answers is kept, of equal ones the first. An answer that only a dropped copy
    trains is trained in the kept one. Conversations that start alike but continue differently are all kept, and so are
    the pieces of a chat that the dump itself splits (`id_0`, `id_1`), unless they are equal. The twin of a dropped
    conversation is always a kept one: for a prefix, the longest conversation that starts with it. Two more settings are
    FastChat's rules, which also drop longer continuations: `first_exchange` keeps one conversation for each first
    exchange, `ids` one for each id.
    """
    # `frame` has one row per conversation in input order: row, chain, untrained (number of messages), chat (of which
    # the dump has pieces, or null), exchange and source_id.
    # The result has the same rows: row, twin (None if kept), kind (exact, prefix, first_exchange or id).
    rows = frame.select(
        pl.col("row").cast(pl.Int64),
        "untrained",
        "chat",
        "source_id",
        last=pl.col("chain").list.last(),
        length=pl.col("chain").list.len(),
    ).with_columns(longer=pl.lit(None, dtype=pl.Int64))
    if prefixes:
        rows = rows.update(_longer(frame, rows), on="row")
    stay = rows.filter(pl.col("longer").is_null()).sort("untrained", "row").unique("last", keep="first")
    rows = rows.join(stay.select("last", first="row"), on="last", how="left", maintain_order="left")
    is_copy = pl.col("longer").is_null() & (pl.col("first") != pl.col("row"))
    twins = rows.select(
        "row",
        twin=pl.coalesce("longer", pl.when(is_copy).then("first")),
        kind=pl.when(pl.col("longer").is_not_null()).then(pl.lit("prefix")).when(is_copy).then(pl.lit("exact")),
    )
    if not (first_exchange or ids):
        return twins
    empty = [None] * frame.height
    names = frame["source_id"].to_list() if ids else empty
    exchanges = frame["exchange"].to_list() if first_exchange else empty
    return _drop_repeated_keys(twins, names, exchanges)


def _longer(frame: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Return `row` and `longer` for each conversation that another one starts with: the longest that does.

    Of several, the one that trains the most, then the first. The longest is a prefix of no other conversation, so it is
    kept itself. Pieces of one chat are left out.
    """
    prefixes = frame.select(
        "untrained",
        longer=pl.col("row").cast(pl.Int64),
        size=pl.col("chain").list.len(),
        last=pl.col("chain").list.head(pl.col("chain").list.len().cast(pl.Int64) - 1),
    ).filter(pl.col("size") > 1)
    longest = (
        prefixes.lazy()
        .explode("last")
        .join(rows.lazy().select("last").unique(), on="last", how="semi")
        .sort("size", "untrained", "longer", descending=[True, False, False])
        .group_by("last", maintain_order=True)
        .agg(pl.col("longer").first())
        .collect()
    )
    pairs = rows.drop("longer").join(longest, on="last").join(rows, left_on="longer", right_on="row", suffix="_longer")
    pieces = (pl.col("chat") == pl.col("chat_longer")) & (pl.col("source_id") != pl.col("source_id_longer"))
    return pairs.filter(~pieces.fill_null(False)).select("row", "longer")


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


# ---- near duplicates: `curate.filters.minhash` has their parts, `curate.pipeline.near` runs them


@dataclass(frozen=True)
class Candidates:
    """What near duplicates are chosen from.

    `bands` is [conversations, bands], `order` has the conversations from the best to the worst. `compare` returns the
    Jaccard figures of a conversation and some others, 0 where their own texts differ (see `minhash.templates`).
    """

    bands: NDArray[np.uint32]
    order: NDArray[np.int64]
    compare: Callable[[int, list[int]], list[float]]


def check_near(settings: Settings) -> None:
    """Raise RecipeError for a value that is not allowed."""
    for name, allowed in CHOICES.items():
        if settings[name] not in allowed:
            hint = did_you_mean(str(settings[name]), allowed)
            raise RecipeError(f"filter {NEAR!r}: {name} = {settings[name]!r} is not allowed{hint}")
    for name, lowest in (("threshold", 0.5), ("common", 0.0)):
        value = settings[name]
        if not isinstance(value, float) or not lowest <= value <= 1:
            raise RecipeError(f"filter {NEAR!r}: {name} = {value!r} is not allowed; give a number from {lowest:g} to 1")


@corpus_rule(
    check=check_near,
    examples=Examples(
        chat("Tell me about a river.", f"{RIVER}, where it has a wide and fertile delta."),
        chat("Tell me about a river.", "The Rhine rises in the Alps and flows through six countries to the North Sea."),
        before=[chat("Tell me about a river.", f"{RIVER}, where it has a large, wide and fertile delta.")],
        settings={"threshold": 0.7},
    ),
)
def near_duplicates(
    candidates: Candidates,
    threshold: float = 0.8,
    of: str = "conversations",
    common: float = 0.01,
    action: str = "drop",
) -> list[list[Pair]]:
    """Drop conversations that say nearly the same as a better one: equal in `threshold` of their runs of five words.

    The figure is Jaccard's: the runs that both have, divided by those that either has. Case, punctuation and space do
    not count; Chinese, Japanese, Korean and Thai count by letter. System messages and definitions of tools are left
    out, and with `of = "prompts"` all but the prompts. Of similar conversations, the one that trains the most answers
    is kept, of equal ones the longest, then the one with the most messages. A conversation is dropped only for its own
    figure to a kept one, never for a chain of others between them. Runs in more than the share `common` of all
    conversations (and in 50) are a template's: where they are most of a conversation, the rest must be as similar too.
    With `action = "flag"` all are kept; similar ones are still in one cluster, so that they are held out together.
    """
    # 0.5 is the lowest threshold: pairs below that share a band too rarely to be found.
    from curate.filters.minhash.matches import match  # imports NumPy: late, to keep `curate filters` fast

    return match(candidates.bands, candidates.order, candidates.compare, threshold)
