"""Which items of the evaluated tasks the training set of a model holds.

The documents that are evaluated are themselves the benchmark: their questions become a fingerprint in memory, and every
conversation that the run was trained on is compared with it, by the rule of the filter `contamination`. So no item has
to be found by an id, and tasks of the user's own are covered too.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from curate.dataset.curated_set import MANIFEST, CuratedSet, open_set, translate_errors
from curate.errors import CurateError, InputError
from curate.filters.contamination import side_texts
from curate.filters.fingerprints.building import Built, Item, build
from curate.filters.fingerprints.grams import BLOCK, hash_grams
from curate.filters.fingerprints.index import Index
from curate.model.serving import ADAPTER, MODEL
from curate.results.files import Contamination
from curate.train.run import records

COVERAGE = 0.5  # items of which more is covered are flagged: the default of the filter
ROWS = 4_000  # of the set, compared at once
# Columns with the question, the most telling first; where none is there, the prompt without its examples is compared.
TEXTS = (
    "narrative",
    "problem",
    "query",
    "question",
    "prompt",
    "sentence",
    "ctx",
    "input",
    "instruction",
    "goal",
    "text",
)
CHOICES = ("choices", "options", "endings")


@dataclass(frozen=True)
class Document:
    """A document of a task: its id, and the texts that it is looked for by; none if it has no text."""

    id: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """The documents of a task that the training set holds, and those that could not be looked for."""

    flagged: frozenset[str] = frozenset()
    unmatched: frozenset[str] = frozenset()


def document(id: str, values: Mapping[str, Any], prompt: object) -> Document:
    """Return what to look for of a document with these columns; `prompt` is what the model is asked."""
    by_name = {str(name).lower(): value for name, value in values.items()}
    known = (by_name.get(name) for name in TEXTS)
    text = next((value for value in (*known, prompt) if isinstance(value, str) and value.strip()), None)
    if text is None:
        return Document(id, ())
    choices = next((found for name in CHOICES if (found := _choices(by_name.get(name)))), ())
    return Document(id, tuple(Item(id, [text], choices).all_texts()))


def _choices(value: object) -> Sequence[str]:
    value = value.get("text") if isinstance(value, Mapping) else value
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else ()


# ---- the set


def training_set(model: Path) -> tuple[CuratedSet | None, Contamination]:
    """Return the set that the model in a folder was trained on; without it, the reason as `problem`."""
    run = model.parent
    if model.name not in (MODEL, ADAPTER) or not (run / records.FACTS).is_file():
        return None, Contamination(problem="the model is not in the folder of a run, so its training set is unknown")
    facts = records.read(run).facts.get("data")
    named = facts.get("set") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or not isinstance(named, str):
        return None, Contamination(problem=f"{records.FACTS} of the run names no set")
    try:
        found = open_set(named)
        digest = hashlib.sha256((found.path / MANIFEST).read_bytes()).hexdigest()
    except (CurateError, OSError) as error:
        return None, Contamination(set=named, problem=f"the run's set cannot be read: {error}")
    if digest != facts.get("manifest_sha256"):
        return None, Contamination(set=named, problem=f"the set {named!r} is no longer the one that was trained on")
    return found, Contamination(set=named, manifest_sha256=digest, coverage=COVERAGE)


def _batches(curated: CuratedSet) -> Iterator[pl.DataFrame]:
    """Yield the conversations that are trained on, some thousand at a time."""
    rows = curated.conversations()
    if "rejected_answer" not in rows.collect_schema():
        rows = rows.with_columns(rejected_answer=pl.lit(None, pl.List(pl.Struct({}))))
    trained = rows.filter(pl.col("split") == "train").select("messages", "rejected_answer").collect()
    yield from trained.iter_slices(ROWS)


# ---- comparison


class _Benchmark:
    """The documents of a task as a fingerprint; documents with the same words share an entry."""

    def __init__(self, task: str, documents: Iterable[Document]) -> None:
        self.task = task
        self.by_words: defaultdict[bytes, list[str]] = defaultdict(list)
        texts: dict[bytes, str] = {}
        self.ids = set()
        for each in documents:
            self.ids.add(each.id)
            for text in each.texts:
                words = hash_grams([text[:BLOCK]]).hashes.tobytes()
                self.by_words[words].append(each.id)
                texts.setdefault(words, text)
        self.words = list(texts)  # by number, which is the item's id in the fingerprint
        self.built = self._build([Item(str(number), [texts[words]]) for number, words in enumerate(self.words)])

    def _build(self, items: Sequence[Item]) -> Built | None:
        try:
            return build(self.task, items)
        except InputError:  # no text has enough words
            return None

    def documents_of(self, numbers: Iterable[str]) -> frozenset[str]:
        return frozenset(id for number in numbers for id in self.by_words[self.words[int(number)]])

    @property
    def matchable(self) -> frozenset[str]:
        return frozenset() if self.built is None else self.documents_of(self.built.fingerprint.ids)


def find(tasks: Mapping[str, Sequence[Document]], curated: CuratedSet) -> tuple[dict[str, Found], int]:
    """Compare the documents of tasks with a set; return what is found by task, and the number of rows compared.

    Raises SetError for a damaged set.
    """
    benchmarks = [_Benchmark(task, documents) for task, documents in tasks.items()]
    held: defaultdict[str, set[str]] = defaultdict(set)
    built = [each.built.fingerprint for each in benchmarks if each.built is not None]
    index = Index(built) if built else None
    rows = 0
    with translate_errors(curated):
        for batch in _batches(curated):
            rows += batch.height
            if index is None:
                continue
            texts = side_texts(batch)
            for match in index.match(texts["text"].to_list(), texts["group"].to_numpy()):
                if match.coverage > COVERAGE:
                    task, _, number = index.names[match.text].rpartition(":")
                    held[task].add(number)
    found = {
        each.task: Found(each.documents_of(held[each.task]), frozenset(each.ids) - each.matchable)
        for each in benchmarks
    }
    return found, rows
