"""The files of a run: the dump, the drops with their reasons, the journal, and what made them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from curate import files
from curate.errors import SetError
from curate.generation.steps import Drop

ENDINGS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Paths:
    """The files beside a dump."""

    dump: Path

    def _beside(self, ending: str) -> Path:
        return self.dump.with_name(self.dump.stem + ending)

    @property
    def dropped(self) -> Path:
        """What was dropped, with reasons."""
        return self._beside(".dropped.jsonl")

    @property
    def journal(self) -> Path:
        """Every request and reply."""
        return self._beside(".journal")

    @property
    def about(self) -> Path:
        """What made the dump, and its counts."""
        return self._beside(".about.json")

    def check(self, *, fresh: bool) -> None:
        """Refuse a dump that this command did not make; with `fresh`, set its journal aside.

        Raises SetError, and UnsafePathError for links.
        """
        if self.dump.suffix != ".jsonl":
            raise SetError(f"{str(self.dump)!r} does not end in .jsonl; the dump is written as JSON lines")
        for path in (self.dump, self.dropped, self.about):
            files.check_replaceable(path)
        files.refuse_links(self.journal)
        if self.dump.exists() and not self.journal.exists():
            raise SetError(f"{str(self.dump)!r} exists, and no journal of this command is beside it; give another -o")
        if fresh and self.journal.exists():
            self.journal.replace(self.journal.with_name(self.journal.name + ".old"))


class Writer:
    """Writes records and drops as JSON lines."""

    def __init__(self, records: TextIOWrapper, drops: TextIOWrapper) -> None:
        self._records = records
        self._drops = drops

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Write a record."""
        self._records.write(_line(record))

    def add_drop(self, drop: Drop) -> None:
        """Write a drop."""
        entry = {"rule": drop.rule, "reason": drop.reason, "text": drop.text, "source": drop.source}
        self._drops.write(_line({**entry, **({"prompt": drop.prompt} if drop.prompt else {}), **drop.details}))


def _line(value: Mapping[str, Any]) -> str:
    """Return a JSON line; a lone surrogate, which a server may send, stays an escape."""
    text = json.dumps(value, ensure_ascii=False)
    return (text if files.is_text(text) else json.dumps(value)) + "\n"


@contextmanager
def writing(paths: Paths) -> Iterator[Writer]:
    """Yield a writer; the files take their places when the block ends without an error."""
    with (
        files.replacing(paths.dump, sync=True) as dump,
        files.replacing(paths.dropped, sync=True) as dropped,
        dump.open("w", encoding="utf-8") as records,
        dropped.open("w", encoding="utf-8") as drops,
    ):
        yield Writer(records, drops)
