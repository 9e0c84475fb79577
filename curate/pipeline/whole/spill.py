"""Sort and regroup in files what does not fit in memory, however much it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate import files

PENDING = 1 << 20  # keys in memory before they are written
PARTITION = 1 << 20  # keys of one partition, about
MAX_PARTITIONS = 512
BATCH = 4096  # rows of a file that are read together
CELLS = 8  # bits of a sieve for each key
ENTRY = np.dtype([("key", "u8"), ("place", "u4")])
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads keys over partitions (Knuth, TAOCP 6.4)
NOWHERE = np.uint32(0xFFFFFFFF)  # the place of what is known, and not to be decided
Keys = NDArray[np.uint64]
Places = NDArray[np.uint32]


class KeyFiles:
    """Keys of 64 bits, each with a place, in files; all entries of one key are in one partition.

    Files with the same expected `size` have the same partitions.
    """

    def __init__(self, folder: Path, name: str, size: int) -> None:
        bits = min(size // PARTITION, MAX_PARTITIONS - 1).bit_length()
        self.paths = [folder / f"{name}-{number:03d}.keys" for number in range(1 << bits)]
        self.count = 0
        self._shift = np.uint64(64 - bits)
        self._pending: list[NDArray[np.void]] = []
        self._waiting = 0

    def add(self, keys: Keys, places: Places | np.uint32) -> None:
        """Add entries."""
        entries = np.empty(len(keys), ENTRY)
        entries["key"], entries["place"] = keys, places
        self._pending.append(entries)
        self.count += len(keys)
        self._waiting += len(keys)
        if self._waiting >= PENDING:
            self._write()

    def partitions(self) -> Iterator[tuple[Keys, Places]]:
        """Yield the entries of each partition, in ascending order of their keys."""
        self._write()
        for path in self.paths:
            entries = np.fromfile(path, ENTRY) if path.exists() else np.empty(0, ENTRY)
            keys, places = np.ascontiguousarray(entries["key"]), np.ascontiguousarray(entries["place"])
            order = np.argsort(keys)
            yield keys[order], places[order]

    def remove(self) -> None:
        """Remove the files."""
        for path in self.paths:
            files.remove(path, path.parent)

    def _write(self) -> None:
        entries = np.concatenate([*self._pending, np.empty(0, ENTRY)])
        self._pending, self._waiting = [], 0
        if len(self.paths) == 1:
            runs = [entries]
        else:
            partition = (entries["key"] * SPREAD >> self._shift).astype(np.uint16)
            ends = np.cumsum(np.bincount(partition, minlength=len(self.paths)))
            runs = np.split(entries[np.argsort(partition, kind="stable")], ends[:-1])
        for path, run in zip(self.paths, runs, strict=True):
            if len(run):
                with path.open("ab") as file:
                    file.write(run.tobytes())


def link(entries: tuple[Keys, Places]) -> Places:
    """Return [pairs, 2]: each place with the next that has the same key, from a partition of `KeyFiles`."""
    keys, places = entries
    same = keys[1:] == keys[:-1]
    return np.stack([places[:-1][same], places[1:][same]], axis=1)


class Sieve:
    """Tells most keys that were not added from those that were, by a table of bits: one or two bytes a key."""

    def __init__(self, size: int) -> None:
        bits = max(3, (CELLS * size).bit_length())
        self._shift = np.uint64(64 - bits)
        self._bits = np.zeros(1 << (bits - 3), np.uint8)

    def add(self, keys: Keys) -> None:
        """Add keys."""
        cells = keys >> self._shift
        np.bitwise_or.at(self._bits, cells >> np.uint64(3), _bit(cells))

    def may_have(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which keys may have been added: true for every added key, and for few others."""
        cells = keys >> self._shift
        found: NDArray[np.bool_] = (self._bits[cells >> np.uint64(3)] & _bit(cells)) != 0
        return found


def _bit(cells: Keys) -> NDArray[np.uint8]:
    return np.left_shift(np.uint8(1), (cells & np.uint64(7)).astype(np.uint8))


class Shuffle:
    """Rows that are written in one order and read in another: by the number of their bin, in the order of writing."""

    def __init__(self, folder: Path, name: str, bins: int) -> None:
        self._folder = folder
        self._name = name
        self._bins = bins
        self._files: list[tuple[Path, NDArray[np.int64]]] = []  # and where each bin begins

    def write(self, rows: pl.DataFrame, bins: NDArray[np.integer]) -> None:
        """Write rows to a file, by their bins."""
        path = self._folder / f"{self._name}-{len(self._files):06d}.arrow"
        starts = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=self._bins))])
        rows[np.argsort(bins, kind="stable")].rechunk().write_ipc(path, record_batch_size=BATCH)
        self._files.append((path, starts))

    def read(self, number: int) -> Iterator[pl.DataFrame]:
        """Yield the rows of a bin, those of one file at a time."""
        for path, starts in self._files if number < self._bins else ():
            first, stop = starts[number : number + 2].tolist()
            if stop > first:
                rows = pl.scan_ipc(path).slice(first, stop - first).collect()
                yield rows[np.arange(rows.height)]  # a copy: a slice would keep all of its batch in memory

    def remove(self) -> None:
        """Remove the files."""
        for path, _ in self._files:
            files.remove(path, path.parent)
        self._files = []
