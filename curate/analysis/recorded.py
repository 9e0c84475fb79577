"""Measures of a set's tables that its manifest records, so that showing them needs neither the tables nor Polars."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from curate.analysis.stats import Header, Histogram, Input, Measures, Stats, edits, flow, sort_counts
from curate.dataset import manifest as manifests
from curate.dataset.manifest import Manifest
from curate.settings import decode_json

TABLES = (manifests.CONVERSATIONS, manifests.REJECTED)  # that are measured


def record(folder: Path, manifest: Manifest, measure: Callable[[], Measures]) -> Manifest:
    """Return the manifest with what `measure` finds in the tables in `folder`, and with what they are known by."""
    from concurrent.futures import ThreadPoolExecutor  # 10 ms, which showing does not need

    with ThreadPoolExecutor(len(TABLES)) as threads:  # that hash the tables while they are measured
        hashes = threads.map(_sha256, (folder / name for name in TABLES))
        found = json.loads(json.dumps(dataclasses.asdict(measure())))
        values = manifests.Measures(dict(zip(TABLES, hashes, strict=True)), found)
    run = manifest.run and dataclasses.replace(manifest.run, tables={name: _state(folder / name) for name in TABLES})
    return dataclasses.replace(manifest, measures=values, run=run)


def read_recorded(folder: Path, manifest: Manifest) -> Stats | None:
    """Return what the manifest records; None if it does not, or if a table has been changed since."""
    recorded = manifest.measures
    if recorded is None or not all(_is_unchanged(folder, name, manifest) for name in TABLES):
        return None
    try:
        measures: Measures = decode_json(Measures, recorded.values)
    except ValueError:  # of another version
        return None
    return assemble(folder, manifest, dataclasses.replace(measures, histograms=tuple(map(_sort, measures.histograms))))


def _sort(histogram: Histogram) -> Histogram:
    """Return a histogram with its percentiles in order: p5 before p25, unlike the keys of the manifest."""
    ordered = sorted(histogram.percentiles.items(), key=lambda item: (len(item[0]), item[0]))
    return dataclasses.replace(histogram, percentiles=dict(ordered))


def assemble(folder: Path, manifest: Manifest, measures: Measures) -> Stats:
    """Return the statistics of a set: the counts of its manifest, and what was measured of its tables."""
    header = Header(
        path=str(folder),
        kind="set",
        inputs=tuple(Input(item.name, item.bytes) for item in manifest.inputs),
        recipe=manifest.recipe_name,
        version=manifest.version,
        tokenizer=manifest.tokenizer.name,
        template=manifest.template,
        window=manifest.window,
        read=manifest.counts.read,
        kept=manifest.counts.kept,
        tokens=measures.tokens,
        answer_tokens=measures.answer_tokens,
        sets=tuple(use.describe() for use in manifest.sets),
        scores=measures.scores,
    )
    return Stats(
        header=header,
        flow=flow(manifest),
        histograms=measures.histograms,
        languages=measures.languages,
        models=measures.models,
        roles=measures.roles,
        turn_keys=sort_counts(manifest.counts.turn_keys),
        splits=measures.splits,
        edits=edits(manifest),
        duplicates=measures.duplicates,
        windows=measures.windows,
        training=measures.training,
        contamination=measures.contamination,
    )


def _is_unchanged(folder: Path, name: str, manifest: Manifest) -> bool:
    """Return whether a table is the one that was measured: by its size and time of change, or if moved by its hash."""
    expected = manifest.measures.tables.get(name) if manifest.measures else None
    known: Sequence[int] | None = manifest.run.tables.get(name) if manifest.run else None
    try:
        state = _state(folder / name)
        if known and known[0] != state[0]:  # another size: a large table need not be read
            return False
        return state == known or _sha256(folder / name) == expected
    except OSError:
        return False


def _state(file: Path) -> list[int]:
    """Return the bytes of a file and the time of its last change (ns)."""
    facts = file.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
