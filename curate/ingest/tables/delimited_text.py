"""Read the rows of a CSV or TSV file as JSON lines, with the columns as keys; a damaged row is lost alone.

Fields may be quoted, with `""` for a quote, and hold new lines. Blank lines are skipped. The delimiter is the one that
gives the first rows as many fields as the header has.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from curate.errors import InputError
from curate.ingest.tables.table import Rows, Table, encode_rows
from curate.ingest.tables.turn_rows import group_turns, turn_columns
from curate.schemas.formats.pairs import PROMPT_KEYS
from curate.schemas.reading.key_kinds import ANSWER_KEYS

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DELIMITERS = (",", ";", "\t", "|")
SAMPLE_CHARS = 1 << 16  # the delimiter is chosen by the rows in so much text
BATCH_CHARS = 1 << 20  # of rows that are encoded together
MAX_TRIES = 50  # lines at which the next whole row is looked for after damage
TRIAL_CHARS = 1 << 17  # of the row that is tried there
MAX_DAMAGE_CHARS = 1 << 24  # of a damaged row are kept
MAX_COLUMNS = 10_000
QUOTED = re.compile(r'"(?:[^"]|"")*+"')


@dataclass(frozen=True)
class Row:
    """The fields of one row, or the `problem` with it and its text. `open`: it may end before or after its lines."""

    fields: list[str]
    lines: Sequence[str] = ()
    problem: str = ""
    open: bool = False

    @property
    def raw(self) -> bytes:
        """The bytes of a damaged row."""
        return "".join(self.lines)[:MAX_DAMAGE_CHARS].encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Dialect:
    """How a file separates fields, and whether `\\"` stands for a quote in them, as Spark and MySQL write it."""

    delimiter: str
    backslash: bool = False


def read_table(blocks: Iterator[bytes], name: str, max_record_bytes: int, *, group: bool = True) -> Table:
    """Open a file by its text, without a byte-order mark; `group` makes conversations of rows that are one turn each.

    Raises InputError for a header that is missing or names a column twice, and for a file without rows.
    """
    csv.field_size_limit(max(csv.field_size_limit(), max_record_bytes))
    lines = Lines(blocks, max_record_bytes)
    dialect = _choose_dialect(lines, name)
    rows = RowReader(lines, dialect)
    columns = _read_header(rows, name)
    rows.width = len(columns)
    if group and (turns := turn_columns(columns)) is not None:
        return Table(columns, group_turns(_fields(rows), turns), grouped=True)
    return Table(columns, _encode(rows, columns, name))


def begins_table(text: str) -> bool:
    """Return whether the first line of a text names the columns of a table of chats."""
    line, end, _ = text.partition("\n" if "\n" in text else "\r")
    headers = ([name.strip().strip('"').casefold() for name in line.split(each)] for each in DELIMITERS if end)
    return any(_names_chats(names) for names in headers)


def _names_chats(names: Sequence[str]) -> bool:
    has_pair = any(name in PROMPT_KEYS for name in names) and any(name in ANSWER_KEYS for name in names)
    return has_pair or turn_columns(names) is not None


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class BlockStream(io.RawIOBase):
    """Blocks of bytes as a binary file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        while not self.rest:
            block = next(self.blocks, None)
            if block is None:
                return 0
            self.rest = memoryview(block)
        count = min(len(view), len(self.rest))
        view[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count


class TooLong(Exception):
    """A row is longer than allowed."""


class Lines:
    """The lines of a text; those of the row that is being read can be read again."""

    def __init__(self, blocks: Iterator[bytes], max_chars: int) -> None:
        # Bytes that are not UTF-8 become lone surrogates, so that they cost their own row only.
        stream = io.BufferedReader(BlockStream(blocks), 1 << 18)
        self.text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="")
        self.max_chars = max_chars
        self.row: list[str] = []
        self.chars = 0  # of the row
        self.number = 0  # of lines before the row
        self.bad_text = ""  # what a line of the row holds that is not text
        self.backslash = False
        self._ahead: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else self.text.readline(self.max_chars + 1)
        if not line:
            raise StopIteration
        self.row.append(line)
        self.chars += len(line)
        if self.chars > self.max_chars:
            raise TooLong
        if not line.isascii() or "\0" in line:
            self.bad_text = self.bad_text or _bad_text(line)
        return line.replace('\\"', '""') if self.backslash else line

    def begin_row(self) -> None:
        """Take the lines of the row before as read."""
        self.number += len(self.row)
        self.row = []
        self.chars = 0
        self.bad_text = ""

    def put_back(self, keep: int = 0) -> None:
        """Read the lines of the row again, apart from the first `keep`."""
        self._ahead.extendleft(reversed(self.row[keep:]))
        del self.row[keep:]
        self.chars = sum(map(len, self.row))

    def skip_line(self) -> None:
        """Drop the rest of a line of which only the beginning was read."""
        while self.row and not self.row[-1].endswith(("\n", "\r")) and (rest := self.text.readline(SAMPLE_CHARS)):
            self.row[-1] += rest[-1:]

    def sample(self) -> list[str]:
        """Return the first lines, which are read again."""
        with contextlib.suppress(TooLong):
            while self.chars < min(SAMPLE_CHARS, self.max_chars) and next(self, None) is not None:
                pass
        lines = list(self.row)
        self.put_back()
        return lines


def _bad_text(line: str) -> str:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = line[error.start].encode("utf-8", "surrogateescape").hex()
        return f"it has the byte 0x{byte}, which is not UTF-8"
    return "it has zero bytes" if "\0" in line else ""


def _choose_dialect(lines: Lines, name: str) -> Dialect:
    """Return the dialect in which most of the first rows have as many fields as the header, and it has most."""
    sample = lines.sample()
    if sample and sample[0].startswith("sep=") and len(sample[0].rstrip("\r\n")) == 5:  # a line for Excel
        next(lines)
        lines.begin_row()
        return Dialect(sample[0][4])
    usual = "\t" if name.lower().removesuffix(".gz").removesuffix(".zst").endswith((".tsv", ".tab")) else ","
    dialects = [Dialect(each) for each in sorted(DELIMITERS, key=lambda each: each != usual)]
    if any('\\"' in line for line in sample):
        dialects += [Dialect(each.delimiter, backslash=True) for each in dialects]
    best = max(dialects, key=partial(_fit, sample))  # the first of several
    lines.backslash = best.backslash
    return best


def _fit(sample: Sequence[str], dialect: Dialect) -> tuple[float, int]:
    """Return the share of rows with as many fields as the header, and the number of these."""
    text = "".join(sample)
    rows = RowReader(Lines(iter([text.encode("utf-8", "surrogateescape")]), len(text) + 1), dialect)
    rows.lines.backslash = dialect.backslash
    header = next(iter(rows), None)
    if header is None or len(header.fields) < 2:
        return 0.0, 0
    rows.width = len(header.fields)
    fits = [not row.problem for row in rows]
    if len(text) >= SAMPLE_CHARS and len(fits) > 1:
        del fits[-1]  # the last row may be cut off
    return (sum(fits) / len(fits) if fits else 1.0), rows.width


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class RowReader:
    """The rows of a file. With a `width`, a row must have so many fields; empty ones after them are dropped."""

    def __init__(self, lines: Lines, dialect: Dialect) -> None:
        self.lines = lines
        self.delimiter = dialect.delimiter
        self.reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True)
        self.width = 0

    def __iter__(self) -> Iterator[Row]:
        while True:
            self.lines.begin_row()
            row = self._next()
            if row is None:
                return
            if row.problem:
                yield self._damage(row)
            elif row.fields:
                yield row

    def _next(self) -> Row | None:
        try:
            return self._check(next(self.reader))
        except StopIteration:
            return None
        except TooLong:
            return Row([], problem=f"it is longer than {self.lines.max_chars:,} characters", open=True)
        except csv.Error as error:
            unclosed = "a quote in it is not closed" if "unexpected end" in str(error) else "its quotes do not match"
            return Row([], problem=unclosed, open=True)

    def _check(self, fields: list[str]) -> Row:
        count = len(fields)
        if count > self.width > 0 and not any(fields[self.width :]):
            del fields[self.width :]
        elif count != self.width and self.width and fields:
            return Row([], problem=f"it has {count} field{'s' * (count > 1)}, the header {self.width}")
        bad_text = self.lines.bad_text
        return Row([], problem=bad_text) if bad_text and self.width else Row(fields)

    def _damage(self, row: Row) -> Row:
        """Return the damaged row: it ends where the next whole row begins."""
        problem = f"the row at line {self.lines.number + 1} cannot be read: {row.problem}"
        if not row.open:
            return Row([], self.lines.row, problem)
        self.lines.skip_line()
        length = self._end_after_quote() or self._end_before_quote() or len(self.lines.row)
        damaged = self.lines.row[:length]
        self.lines.put_back(length)
        return Row([], damaged, problem)

    def _end_after_quote(self) -> int:
        """Return after how many lines a row ends whose text has quotes that are not doubled; 0 if it has none."""
        lines = self.lines
        text = "".join(lines.row)
        at = _misplaced_quote(text, self.delimiter)
        if at < 1 or text[at - 1] in (self.delimiter, "\n", "\r"):  # a field begins with it: the row ended before
            return 0
        length = len(lines.row)
        is_open = text.count('"') % 2 == 1
        while is_open and len(lines.row) < length + MAX_TRIES and self._read_line() is not None:
            is_open = lines.row[-1].count('"') % 2 == 0
        if is_open:
            lines.put_back(length)
        return 0 if is_open else len(lines.row)

    def _end_before_quote(self) -> int:
        """Return after how many lines a row ends in which a quote is not closed; 0 if no whole row follows soon."""
        length = len(self.lines.row)
        self.lines.put_back(1)
        for keep in range(1, min(length, MAX_TRIES)):
            if self._row_follows():
                return keep
            self._read_line()
        while len(self.lines.row) < length and self._read_line() is not None:
            pass
        return 0

    def _read_line(self) -> str | None:
        try:
            return next(self.lines, None)
        except TooLong:
            return None

    def _row_follows(self) -> bool:
        """Return whether a whole row follows the lines of the damaged one, or nothing; no line is taken."""
        lines = self.lines
        head, chars, limit = lines.row, lines.chars, lines.max_chars
        lines.row, lines.chars, lines.bad_text, lines.max_chars = [], 0, "", min(limit, TRIAL_CHARS)
        row = self._next()
        is_balanced = "".join(lines.row).count('"') % 2 == 0
        lines.put_back()
        lines.row, lines.chars, lines.bad_text, lines.max_chars = head, chars, "", limit
        return row is None or (bool(row.fields) and is_balanced)


def _misplaced_quote(text: str, delimiter: str) -> int:
    """Return the place of the first quote that ends a field before its end; -1 if there is none."""
    position = 0
    while position < len(text):
        field = QUOTED.match(text, position)
        if field is None:
            ends = [at for each in (delimiter, "\n", "\r") if (at := text.find(each, position)) >= 0]
            position = min(ends) + 1 if ends and text[position] != '"' else len(text)
        elif text[field.end() : field.end() + 1] in (delimiter, "\n", "\r", ""):
            position = field.end() + 1
        else:
            return field.end() - 1
    return -1


def _read_header(rows: RowReader, name: str) -> tuple[str, ...]:
    header = next(iter(rows), None)
    if header is None:
        raise InputError(f"input {name!r} has no line with the names of its columns")
    if header.problem:
        raise InputError(f"input {name!r} has no header that can be read: {header.problem}")
    names = [field.strip() for field in header.fields]
    while names and not names[-1]:
        del names[-1]
    if len(names) > MAX_COLUMNS:
        raise InputError(f"input {name!r} has {len(names):,} columns, over the limit of {MAX_COLUMNS:,}")
    columns = tuple(field or f"column_{number}" for number, field in enumerate(names, 1))
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        places = " and ".join(str(number) for number, column in enumerate(columns, 1) if column == twice[0])
        raise InputError(f"input {name!r} has the column {twice[0]!r} more than once: {places}; give each its own name")
    if rows.lines.bad_text:
        raise InputError(f"input {name!r} has no header that can be read: {rows.lines.bad_text}; save it as UTF-8")
    return columns


def _encode(rows: RowReader, columns: Sequence[str], name: str) -> Iterator[Rows]:
    """Yield rows as JSON lines, and each damaged row by itself."""
    first = 0
    for row, values in _batches(rows):
        if values:
            yield Rows(first, len(values), encode_rows([dict(zip(columns, fields, strict=True)) for fields in values]))
            first += len(values)
        if row is not None:
            yield Rows(first, 1, row.raw, row.problem, len(row.raw))
            first += 1
    if not first:
        raise InputError(f"input {name!r} has a header but no rows")


def _batches(rows: RowReader) -> Iterator[tuple[Row | None, list[list[str]]]]:
    """Yield the fields of rows in batches, and the damaged row after each, if any."""
    values: list[list[str]] = []
    chars = 0
    for row in rows:
        chars += rows.lines.chars
        if row.problem:
            yield row, values
        else:
            values.append(row.fields)
            if chars < BATCH_CHARS:
                continue
            yield None, values
        values, chars = [], 0
    yield None, values


def _fields(rows: RowReader) -> Iterator[list[str] | Rows]:
    for row in rows:
        yield Rows(0, 1, row.raw, row.problem, len(row.raw)) if row.problem else row.fields
