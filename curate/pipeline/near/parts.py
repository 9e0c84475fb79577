"""The shingles of each part on disk: written and banded in the workers, read a few sets at a time in the parent.

A part's file has unsigned 32-bit integers: the number of sets, their sizes, then the values of all sets.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.dataset.columns import MESSAGE
from curate.filters.minhash import passages, signatures, templates
from curate.filters.minhash.shingles import Shingles, Values, shingle
from curate.filters.minhash.words import compose
from curate.filters.registry import Settings
from curate.pipeline.frames import part_file

SHINGLES = "shingles"
PROMPTS = "prompts"
INDEX, BANDS = "shingles.index", "bands.u32"  # in the folder of parts
COMMON = "common.npy"  # the shingles that many conversations share, in the folder of parts
CACHE = 64 << 20  # bytes of sets that the parent keeps in memory
ENTRY = 300  # bytes of a set in memory beside its values
PASSAGE, WORDS = 84, 30  # characters of evidence: of the shared passage, and of either side's own words
EXCERPT = 200  # characters of a text in a warning


def conversation_texts(messages: pl.DataFrame, of: str) -> pl.DataFrame:
    """Return `row` and `text` of what is compared; `messages` has one row per message. Rows without any are missing."""
    if of == "prompts":
        chosen, parts = pl.col("role") == "user", ["content"]
    else:
        chosen, parts = pl.col("role") != "system", ["reasoning", "content", "tool_calls"]
    text = pl.concat_str(parts, separator="\n", ignore_nulls=True)
    return messages.filter(chosen).group_by("row", maintain_order=True).agg(text=text.str.join("\n"))


def compared_texts(
    messages: pl.DataFrame, conversations: pl.DataFrame, near: Settings | None, prompts: bool
) -> pl.DataFrame | None:
    """Return the `row` of each conversation with what rules compare over the whole corpus; None if that is nothing.

    That is its `text`, if `near` has the settings of near duplicates, and its first `prompt` with its `language`, if
    `prompts` are capped. `conversations` has row and language.
    """
    if near is None and not prompts:
        return None
    texts = conversations.select(pl.col("row").cast(pl.UInt32))
    if near is not None:
        texts = texts.join(conversation_texts(messages, str(near["of"])), on="row", how="left", maintain_order="left")
    if prompts:
        first = messages.filter(pl.col("role") == "user").group_by("row").agg(prompt_text=pl.col("content").first())
        texts = texts.with_columns(language=conversations["language"])
        texts = texts.join(first, on="row", how="left", maintain_order="left")
    return texts


def write_texts(folder: Path, number: int, texts: pl.DataFrame, rows: int) -> None:
    """Write a part's compared texts, numbered by their row in its summary: the sets of shingles, and the prompts."""
    if "text" in texts.columns:
        _write_shingles(part_file(folder, number, SHINGLES), texts.select("row", "text").drop_nulls(), rows)
    if "prompt_text" in texts.columns:
        prompts = texts.select("row", "language", text="prompt_text")
        prompts.write_ipc(part_file(folder, number, PROMPTS), compression="uncompressed")


def _write_shingles(path: Path, texts: pl.DataFrame, rows: int) -> None:
    composed = [""] * rows
    for row, text in texts.iter_rows():
        composed[row] = compose(text)
    sets = shingle(composed)
    header = np.concatenate([[rows], sets.sizes]).astype(np.uint32)
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.write(sets.values.tobytes())


def read_shingles(folder: Path, number: int) -> Shingles:
    """Return all sets of a part."""
    values = np.fromfile(part_file(folder, number, SHINGLES), np.uint32)
    rows = int(values[0])
    return Shingles(values[1 + rows :], values[1 : 1 + rows].astype(np.int64))


def band_part(folder: Path, number: int) -> tuple[Values, NDArray[np.bool_]]:
    """Return a part's band hashes, [conversations, bands], and which of its conversations are mostly a template's."""
    sets = read_shingles(folder, number)
    common = np.load(folder / COMMON)
    templated = templates.find_templated(sets, common)
    return signatures.band_hashes(templates.proposing(sets, common, templated)), templated


class Store:
    """Reads sets and bands of conversations by their number in all parts; keeps some sets in memory.

    `firsts` has the number of each part's first conversation. An index is in a file: of each set, where it begins in
    its part's file and its size.
    """

    def __init__(self, folder: Path, parts: Sequence[int]) -> None:
        self.firsts: dict[int, int] = {}
        self.bands_path = folder / BANDS
        self._index = folder / INDEX
        self._paths = [part_file(folder, number, SHINGLES) for number in parts]
        self._cache: OrderedDict[int, Values] = OrderedDict()
        self._cached = 0
        count = 0
        with self._index.open("wb") as file:
            for number, path in zip(parts, self._paths, strict=True):
                sizes = _read_sizes(path)
                starts = 1 + len(sizes) + np.cumsum(sizes) - sizes
                file.write(np.stack([starts, sizes], axis=1).astype(np.uint32).tobytes())
                self.firsts[number] = count
                count += len(sizes)
        self._firsts = np.array(list(self.firsts.values()), np.int64)

    def sizes(self, conversations: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the sizes of the sets of conversations."""
        return _gather(self._index, conversations, 2)[:, 1].astype(np.int64)

    def bands(self, conversations: NDArray[np.integer]) -> Values:
        """Return the band hashes of conversations, [conversations, bands + 1]; the last says if it is a template's."""
        return _gather(self.bands_path, conversations, signatures.BANDS + 1)

    def read(self, conversation: int) -> Values:
        """Return the set of one conversation."""
        values = self._cache.get(conversation)
        if values is not None:
            self._cache.move_to_end(conversation)
            return values
        part = int(np.searchsorted(self._firsts, conversation, side="right")) - 1
        start, size = _gather(self._index, np.array([conversation]), 2)[0].tolist()
        values = np.fromfile(self._paths[part], np.uint32, size, offset=4 * start)
        self._cache[conversation] = values
        self._cached += values.nbytes + ENTRY
        while self._cached > CACHE and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes + ENTRY
        return values


def _gather(path: Path, rows: NDArray[np.integer], width: int) -> Values:
    """Return some rows of a file of unsigned 32-bit integers, [rows, width]: without a map, whose pages would count."""
    step = 4 * width
    with path.open("rb", buffering=0) as file:
        number = file.fileno()
        found = b"".join([os.pread(number, step, step * row) for row in rows.tolist()])
    return np.frombuffer(found, np.uint32).reshape(len(rows), width)


def _read_sizes(path: Path) -> NDArray[np.int64]:
    rows = int(np.fromfile(path, np.uint32, 1)[0])
    return np.fromfile(path, np.uint32, rows, offset=4).astype(np.int64)


def read_texts(folder: Path, number: int, rows: Sequence[int], of: str) -> dict[int, str]:
    """Return the texts of some of a part's kept conversations."""
    kept = pl.read_ipc(part_file(folder, number, "kept")).select("row", "messages")
    chosen = kept.filter(pl.col("row").is_in(list(rows))).explode("messages").unnest("messages")
    return dict(conversation_texts(chosen.select("row", *MESSAGE.to_schema()), of).iter_rows())


def describe(folder: Path, of: str, pairs: Sequence[tuple[int, int, int, int]]) -> list[tuple[str, str]]:
    """Return evidence and the longest shared passage of pairs: part and row of a dropped conversation and its twin."""
    rows: dict[int, set[int]] = {}
    for part, row, twin_part, twin_row in pairs:
        rows.setdefault(part, set()).add(row)
        rows.setdefault(twin_part, set()).add(twin_row)
    texts = {
        (part, row): text
        for part, chosen in rows.items()
        for row, text in read_texts(folder, part, sorted(chosen), of).items()
    }
    found = [passages.compare(texts.get(pair[:2], ""), texts.get(pair[2:], "")) for pair in pairs]
    return [(_evidence(likeness), likeness.passage) for likeness in found]


def _evidence(likeness: passages.Likeness) -> str:
    shared = f"both: “{_cut(likeness.passage, PASSAGE)}”" if likeness.passage else "no passage shared"
    own, twins = (_cut(words, WORDS) or "nothing" for words in (likeness.first, likeness.second))
    return f"{shared}; only here: {own}; only in the twin: {twins}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def common_passage(folder: Path, number: int, row: int, of: str) -> str:
    """Return the longest passage of a conversation that many share."""
    text = read_texts(folder, number, [row], of).get(row, "")
    return _cut(passages.longest_common(text, np.load(folder / COMMON)), EXCERPT)
