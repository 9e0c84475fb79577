"""The output of a conversion: its target, the file of records that were left out, and the result's counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

from curate import files
from curate.conversion.readers import InputRecord
from curate.conversion.writers import COMPRESSED, Entry, ShardedWriter, Stream, Writer, encode, native_record
from curate.display.figures import number
from curate.errors import InputError, RecordError
from curate.schemas.reading import turns

Split = Literal["train", "eval"]
LEFT_OUT = ".left-out.jsonl"
MAX_SHARDS = 1_000  # files open at once
Item = TypeVar("Item")


@dataclass(frozen=True)
class ConvertResult:
    """The result of a conversion; read = written + left_out + not_selected."""

    target: Path
    read: int
    written: int
    left_out: Mapping[str, int]  # by rule
    not_selected: int  # read, but of another split or without a match
    edits: Mapping[str, int]  # repairs made while reading, by rule
    left_out_file: Path | None
    warnings: tuple[str, ...]
    files: tuple[Path, ...] = ()  # the target, or its shards
    configs: tuple[Path, ...] = ()  # trainers' settings beside it
    pushed_to: str | None = None  # the address of its page on the Hub
    not_held: Mapping[str, int] = field(default_factory=dict)  # written conversations by a field that has no place
    uploaded_to: str | None = None  # the address of the folder that the paths are in

    def moved_to(self, address: str) -> ConvertResult:
        """Return the result after its files were uploaded into the folder at an address."""
        left_out = Path(self.left_out_file.name) if self.left_out_file else None
        names = tuple(Path(file.name) for file in self.files)
        return replace(self, target=Path(self.target.name), files=names, left_out_file=left_out, uploaded_to=address)


@dataclass(kw_only=True)
class Tally:
    """Counts the records that were read and not selected, and by rule those that were left out."""

    read: int = 0
    not_selected: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def leave_out(self, record: InputRecord, entry: Entry | None, error: RecordError) -> None:
        """Count a record that is left out."""
        self.left_out[error.rule] += 1


@dataclass
class Output(Tally, Generic[Item]):
    """An open target and its file of left-out records; counts records."""

    target: Path
    files: tuple[Path, ...]
    writer: Writer[Item]
    left_out_lines: Stream
    written: int = 0
    edits: Counter[str] = field(default_factory=Counter)
    not_held: Counter[str] = field(default_factory=Counter)

    def count_edits(self, entry: Entry) -> None:
        """Count the repairs that were made while reading an entry."""
        if entry.conversation.edits:
            self.edits.update(edit.rule for edit in entry.conversation.edits)

    def write(self, item: Item) -> None:
        """Write one item; raises RecordError if the target format cannot represent it."""
        self.writer.write(item)
        self.written += 1

    def leave_out(self, record: InputRecord, entry: Entry | None, error: RecordError) -> None:
        """Write the whole record to the file of left-out records, with the rule and the reason."""
        super().leave_out(record, entry, error)
        self.left_out_lines.line(encode(_left_out_line(record, entry, error)))

    def result(self, warnings: list[str]) -> ConvertResult:
        """Return the counts."""
        file = left_out_file(self.target) if self.left_out else None
        counts = (self.read, self.written, dict(self.left_out), self.not_selected, dict(self.edits))
        return ConvertResult(self.target, *counts, file, tuple(warnings), self.files, not_held=dict(self.not_held))


@contextmanager
def open_output(
    target: Path, open_writer: Callable[[Path], Writer[Item]], *, folder: bool = False, shards: int | None = None
) -> Iterator[Output[Item]]:
    """Open a target, a file or a `folder`, or its `shards`, and the file of left-out records.

    All are replaced when the block ends without an error, otherwise they stay unchanged.
    """
    left_out = left_out_file(target)
    paths = (target,) if shards is None else shard_files(target, shards)
    with ExitStack() as stack:
        partials = [stack.enter_context(files.replacing(path, folder=folder, follow_link=True)) for path in paths]
        partial_left_out = stack.enter_context(files.replacing(left_out))
        with closing(Stream(partial_left_out)) as lines, closing(_open_all(partials, open_writer)) as writer:
            output = Output(target, paths, writer, lines)
            yield output
            writer.finish()
        if not output.left_out:
            files.remove(partial_left_out, partial_left_out.parent)
            files.remove(left_out, left_out.parent)  # from an earlier conversion


def _open_all(partials: Sequence[Path], open_writer: Callable[[Path], Writer[Item]]) -> Writer[Item]:
    if len(partials) == 1:
        return open_writer(partials[0])
    with ExitStack() as stack:
        writers = [stack.enter_context(closing(open_writer(partial))) for partial in partials]
        stack.pop_all()  # all are open: the sharded writer closes them
    return ShardedWriter(writers)


def shard_files(target: Path, count: int) -> tuple[Path, ...]:
    """Return the files of a target in shards: `name-00000-of-00008.jsonl` and so on.

    Raises InputError if there are shards of another number, which a reader would take for more of the same.
    """
    if not 1 <= count <= MAX_SHARDS:
        raise InputError(f"shards is {count}; give a number from 1 to {number(MAX_SHARDS)}")
    compressed = target.suffix if target.suffix in COMPRESSED else ""
    plain = Path(target.name.removesuffix(compressed))
    ending = plain.suffix + compressed
    paths = tuple(target.with_name(f"{plain.stem}-{i:05d}-of-{count:05d}{ending}") for i in range(count))
    own = re.compile(rf"{re.escape(plain.stem)}-\d{{5}}-of-\d{{5}}{re.escape(ending)}")
    others = [each for each in target.parent.iterdir() if own.fullmatch(each.name) and each not in paths]
    if others:
        raise InputError(f"{str(min(others))!r} is a shard of another number; remove those, or give another name")
    return paths


def left_out_file(target: Path) -> Path:
    """Return the file that lists the records missing from a target."""
    return target.with_name(target.name + LEFT_OUT)


def _left_out_line(row: InputRecord, entry: Entry | None, error: RecordError) -> dict[str, object]:
    record: object
    if entry is not None:
        record = native_record(entry)
    elif row.raw is not None:
        record = row.raw.decode("utf-8", "backslashreplace")
    else:
        record = turns.to_plain_json(row.value)
    key = {"source_file": row.file, "source_index": row.index}
    return {**key, "rule": error.rule, "reason": error.reason, "evidence": error.evidence, "record": record}
