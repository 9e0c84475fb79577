"""`curate.fingerprint`: make the fingerprint of a benchmark from its questions, in any file that `ingest` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from curate.errors import InputError, RecipeError, did_you_mean
from curate.filters.fingerprints.building import Built, Item, build
from curate.filters.fingerprints.fingerprint import is_id, write
from curate.filters.fingerprints.header import NAME, SUFFIX
from curate.ingest.decode import RawRecord, decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs

TEXTS = ("question", "prompt", "problem", "instruction", "turns", "text")  # columns, where none is named: the first
CHOICES = ("choices", "options", "endings")
IDS = ("id", "question_id", "task_id")
ENDING = re.compile(r"\.(jsonl?|ndjson|csv|tsv|parquet|arrow|gz|zst|bz2|xz|zip)$", re.IGNORECASE)


@dataclass(frozen=True)
class FingerprintResult:
    """A fingerprint that was written: its name, size and columns, and how many rows and texts it leaves out."""

    target: Path
    benchmark: str
    items: int
    texts: int
    bytes: int
    columns: Mapping[str, Sequence[str]]  # text, choices, id
    left_out: Mapping[str, int]
    warnings: Sequence[str]


@dataclass
class _Table:
    """The items of a table's rows, from the columns that are named, or else from those with a usual name."""

    text: Sequence[str]
    choices: Sequence[str]
    id: str | None
    damaged: int = 0
    empty: int = 0
    columns: dict[str, list[str]] = field(
        default_factory=lambda: {"text": [], "choices": [], "id": []}
    )  # that are used

    def read(self, records: Iterator[RawRecord]) -> Iterator[Item]:
        """Yield an item for each row that has a text; raises InputError for a column that a row lacks."""
        for number, record in enumerate(records):
            row = record.value
            if record.problem is not None or not isinstance(row, dict):
                self.damaged += 1
                continue
            self.text = self.text or _default_text(row)
            texts = [text for value in self._values(row, "text", self.text, number) for text in _texts(value)]
            names = self.choices or [column for column in CHOICES if column in row and column not in self.text][:1]
            choices = [text for value in self._values(row, "choices", names, number) for text in _choices(value)]
            ids = self._values(row, "id", [self.id] if self.id else [key for key in IDS if key in row][:1], number)
            if not texts:
                self.empty += 1
                continue
            name = str(ids[0]) if ids else ""
            yield Item(name if is_id(name) else str(number), texts, choices)

    def _values(self, row: Mapping[str, Any], option: str, columns: Sequence[str], number: int) -> list[object]:
        """Return a row's values in these columns, and note that they are used."""
        for column in columns:
            if column not in row:
                raise InputError(f"row {number:,} has no column {column!r} for --{option}{did_you_mean(column, row)}")
            if column not in self.columns[option]:
                self.columns[option].append(column)
        return [row[column] for column in columns]


def _default_text(row: Mapping[str, object]) -> list[str]:
    """Return the column of a usual name that has the question; raises InputError if there is none."""
    for column in TEXTS:
        if column in row:
            return [column]
    names = ", ".join(map(repr, row))[:500]
    raise InputError(f"none of the columns has a usual name of a question; name it with --text: {names}")


def fingerprint(
    source: str | Path,
    target: str | Path | None = None,
    *,
    name: str | None = None,
    text: Sequence[str] = (),
    choices: Sequence[str] = (),
    id: str | None = None,
    with_texts: bool = False,
) -> FingerprintResult:
    """Write the fingerprint of a benchmark, for the filter `contamination`; return what is in it.

    `text` names columns with a text, or a list of texts, each looked for by itself. `choices` names columns with the
    answers of a multiple-choice question, which are added to a question of fewer than eight words. The file has no text
    unless `with_texts` is set: then a reject shows the benchmark's text beside the conversation's. Raises InputError if
    the file or a column cannot be read, and RecipeError for a name or target that is not allowed.
    """
    benchmark = _check_name(name or _name_of(source))
    path = _check_target(Path(target if target is not None else f"{benchmark}{SUFFIX}"))
    reader = Reader(open_inputs([source]))
    table = _Table([text] if isinstance(text, str) else text, [choices] if isinstance(choices, str) else choices, id)
    records = (record for chunk in reader for record in decode_records(chunk))
    built = build(benchmark, table.read(records), with_texts=with_texts)
    size = write(built.fingerprint, path)
    warnings = [damage.text for damage in reader.warnings]
    found = built.fingerprint
    left_out = _left_out(built, table)
    return FingerprintResult(path, benchmark, found.items, len(found.ids), size, table.columns, left_out, warnings)


def _left_out(built: Built, table: _Table) -> dict[str, int]:
    counts = {
        "rows that cannot be read": table.damaged,
        "rows without a text": table.empty,
        "texts of the same words as an earlier one": built.repeated,
        "texts of one or two words": built.too_short,
        "ends of texts that are too long": built.cut,
    }
    return {what: count for what, count in counts.items() if count}


def _name_of(source: str | Path) -> str:
    """Return a name for the benchmark in a file or a data set of the Hub."""
    name = PurePosixPath(str(source).removeprefix("hf:").split(":")[0] if "hf:" in str(source)[:3] else source).name
    while (short := ENDING.sub("", name)) != name:
        name = short
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-")[:64] or "benchmark"


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise RecipeError(f"--name {name!r} is not allowed; give letters, digits, - and _, such as gsm8k-train")
    return name


def _check_target(path: Path) -> Path:
    if path.suffix != SUFFIX:
        raise RecipeError(f"-o {str(path)!r} must end in {SUFFIX}, such as {str(path.with_suffix(SUFFIX))!r}")
    if not path.absolute().parent.is_dir():
        raise RecipeError(f"-o {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    return path


def _texts(value: object) -> list[str]:
    """Return the texts of a column: a text, a list of texts, or a list of messages with their contents."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, dict):
        return _texts(value.get("content", value.get("text")))
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [str(value)] if isinstance(value, int | float) else []


def _choices(value: object) -> list[str]:
    """Return the choices of a column: a list, JSON of one, an object with `text`, or of choices by letter; or one."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return _choices(json.loads(value))
        except (ValueError, RecursionError):
            return [value]
    if isinstance(value, dict):
        return _choices(value["text"]) if "text" in value else _texts(list(value.values()))
    return _texts(value)
