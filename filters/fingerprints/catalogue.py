"""The fingerprints that curate has, by name, and a user's own, by path."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import InputError, RecipeError, did_you_mean
from curate.filters.fingerprints.header import SUFFIX, read_header

if TYPE_CHECKING:
    from curate.filters.fingerprints.index import Index

FOLDER = Path(__file__).parent / "benchmarks"


def names() -> list[str]:
    """Return the names of the benchmarks whose fingerprints curate has."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def is_path(benchmark: str) -> bool:
    """Return whether a benchmark of a recipe is a file, and not a name."""
    return "/" in benchmark or benchmark.endswith(SUFFIX)


def load_index(benchmarks: Sequence[str]) -> Index:
    """Return the index of these benchmarks; raises RecipeError for one that is unknown or cannot be read."""
    return _load(check_benchmarks(benchmarks))


File = tuple[Path, int, int]  # with its time and size, so that a file that is made again is read again


def check_benchmarks(benchmarks: Sequence[str]) -> tuple[File, ...]:
    """Return the files of benchmarks; raises RecipeError for one that is unknown, missing or not a fingerprint."""
    if not benchmarks:
        raise RecipeError(f"filter 'contamination': benchmarks = [] names none; curate has {', '.join(names())}")
    return tuple(map(_locate, dict.fromkeys(benchmarks)))


def _locate(benchmark: str) -> File:
    path = Path(benchmark) if is_path(benchmark) else FOLDER / f"{benchmark}{SUFFIX}"
    if not is_path(benchmark) and benchmark not in names():
        hint = did_you_mean(benchmark, names())
        raise RecipeError(f"filter 'contamination': unknown benchmark {benchmark!r}{hint}; your own end in {SUFFIX}")
    try:
        read_header(path)
        status = path.stat()
    except InputError as error:
        raise RecipeError(f"filter 'contamination': {error}") from None
    return path.absolute(), status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=4)
def _load(files: tuple[File, ...]) -> Index:
    from curate.filters.fingerprints.fingerprint import read  # imports NumPy
    from curate.filters.fingerprints.index import Index

    try:
        return Index([read(path) for path, _, _ in files])
    except InputError as error:
        raise RecipeError(f"filter 'contamination': {error}") from None
