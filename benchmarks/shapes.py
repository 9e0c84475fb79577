"""MB/s and peak memory of reading hostile texts: damage of every kind, repeated, and texts that are costly to search.

    python benchmarks/shapes.py --megabytes 1

Each shape is read (cut into records and decoded, without cleaning) at a size and at four times that size, in a
process of its own. A rate that falls with the size shows work that grows faster than the text. A single record of
`--giant` MB, without a line end, is read from standard input.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common import MB, ROOT, parse, parser, save, table

from curate.errors import CurateError
from curate.ingest.decode import decode_records
from curate.ingest.reader import Reader
from curate.ingest.sources import open_inputs

GROWTH = 4
GOAL_MB_PER_S = 5
BLOCK_BYTES = 1 << 20
Unit = bytes | Callable[[int], bytes]


@dataclass(frozen=True)
class Shape:
    """A text: a beginning, a unit repeated (or made from its number) until the size is reached, and an end."""

    unit: Unit
    before: bytes = b""
    after: bytes = b""

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yield the text in blocks."""
        yield self.before
        written = number = 0
        while written < size:
            block = bytearray()
            while len(block) < min(BLOCK_BYTES, size - written):
                block += self.unit(number) if callable(self.unit) else self.unit
                number += 1
            written += len(block)
            yield bytes(block)
        yield self.after


def record(number: int, first_key: str = "id") -> bytes:
    """Return a short ShareGPT record, of about 300 bytes."""
    question = f"hello {number}: how do I read a file in Python, and what if it is not there?"
    answer = "Open it with `with open(path) as file:` and catch `FileNotFoundError`: say which {path} it was, and stop."
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({first_key: f"r{number}", "conversations": turns}).encode()


RECORD = record(0)
FIRST = b"[" + RECORD + b", "


def line(damage: Callable[[bytes, int], bytes]) -> Callable[[int], bytes]:
    """Return a unit: a line with a record, damaged."""
    return lambda number: damage(record(number), number) + b"\n"


def element(damage: Callable[[bytes, int], bytes]) -> Callable[[int], bytes]:
    """Return a unit: an element of an array, damaged."""
    return lambda number: damage(record(number), number) + b", "


def cut(data: bytes, number: int) -> bytes:
    """Cut a record off at a random place."""
    return data[: random.Random(number).randrange(5, len(data))]


def random_bytes(number: int) -> bytes:
    """Return 1,000 bytes of noise."""
    return random.Random(number).randbytes(1000)


def other_keys(number: int) -> bytes:
    """Return a record whose keys no other record has."""
    return record(number).replace(b'"id"', b'"key%d"' % number)


SHAPES = {
    # lines
    "lines, undamaged": Shape(line(lambda data, _: data)),
    "lines, each after a line '['": Shape(lambda number: b"[\n" + record(number) + b"\n"),
    "lines after one line '['": Shape(line(lambda data, _: data), before=b"[\n"),
    "lines with a zero byte": Shape(line(lambda data, _: data[:40] + b"\0" + data[41:])),
    "lines cut off at random": Shape(line(cut)),
    "lines cut off in a list": Shape(b'{"a": [1,\n'),
    "lines cut off in a turn": Shape(line(lambda data, _: data[:100])),
    "lines with a bare quote": Shape(line(lambda data, _: data.replace(b"hello", b'he"llo'))),
    "lines, every other one cut off": Shape(line(lambda data, number: cut(data, number) if number % 2 else data)),
    "lines with a comma": Shape(line(lambda data, _: data + b",")),
    "lines that end in a carriage return": Shape(lambda number: record(number) + b"\r"),
    "lines joined without an end": Shape(record),
    "lines '{'": Shape(b"{\n"),
    "lines ']'": Shape(b"]\n"),
    "lines of a record and ']'": Shape(lambda number: record(number) + b"\n]\n"),
    "lines of a byte-order mark and a record": Shape(lambda number: b"\xef\xbb\xbf" + record(number) + b"\n"),
    "lines of a string": Shape(b'"a line of text that is not a record"\n', before=RECORD + b"\n"),
    "lines of prose": Shape(b"A line of text, as in any file.\n", before=RECORD + b"\n"),
    # arrays
    "array, undamaged": Shape(element(lambda data, _: data), b"[", b"{}]"),
    "array, keys in two orders": Shape(element(lambda data, number: record(number, "ab"[number % 2])), b"[", b"{}]"),
    "array, other keys in each record": Shape(lambda number: other_keys(number) + b", ", b"[", b"{}]"),
    "array, other keys, every other one damaged": Shape(
        lambda number: other_keys(number)[: -1 if number % 2 else None] + b", ", FIRST, b"{}]"
    ),
    "array with a bare quote in each record": Shape(element(lambda data, _: data.replace(b"hello", b'he"llo')), FIRST),
    "array, every other bracket lost": Shape(element(lambda data, n: data[:-2] if n % 2 else data), FIRST, b"{}]"),
    "array, every tenth bracket lost": Shape(element(lambda data, n: data if n % 10 else data[:-2]), FIRST, b"{}]"),
    "array in an object, all brackets lost": Shape(element(lambda data, _: data[:-2]), b'{"data": ' + FIRST, b"{}]}"),
    "array without commas": Shape(lambda number: record(number) + b" ", b"[", b"]"),
    "array, records between open lists": Shape(element(lambda data, _: b'{"a": [1, ' + data), FIRST, b"{}]"),
    "array, indented, a zero byte in each": Shape(
        element(lambda data, _: json.dumps(json.loads(data), indent=2).encode()[:-8] + b"\0"), FIRST, b"{}]"
    ),
    "array of numbers": Shape(b"1, ", b'[{"id": 1}, ', b"1]"),
    "empty arrays": Shape(b"[]", before=RECORD),
    "object of arrays of records": Shape(lambda n: b'"a%d": [%b], ' % (n, record(n)), b"{", b'"z": 1}'),
    "object of arrays of numbers": Shape(lambda n: b'"a%d": [1, 2], ' % n, b"{", b'"z": 1}'),
    # one value
    "nested objects": Shape(b'{"a":'),
    "nested arrays": Shape(b"["),
    "nested lists of objects": Shape(b'[{"a":'),
    "nested objects, after records": Shape(b'{"a":', FIRST),
    "a string without an end": Shape(b"text ", FIRST + b'{"id": "x", "conversations": [{"from": "human", "value": "'),
    "a list of turns without an end": Shape(b'{"from": "human", "value": "a"}, ', FIRST + b'{"conversations": ['),
    "a list of objects without an end": Shape(b'{"a": 1}, ', FIRST + b'{"conversations": ['),
    "a string of code without an end": Shape(b"if (a) { b[0]; }\\n", FIRST + b'{"id": "'),
    "a record of many keys": Shape(lambda number: b'"key%d": %d, ' % (number, number), b"{", b'"z": 1}'),
    "a record of many turns": Shape(
        b'{"from": "human", "value": "a"}, ', b'{"id": "x", "conversations": [', b'{"from": "gpt", "value": "b"}]}'
    ),
    "escaped quotes": Shape(b'\\"', FIRST + b'"'),
    "backslashes": Shape(b"\\\\", FIRST + b'{"a": ["'),
    # single characters, after a record
    "braces": Shape(b"{", FIRST),
    "braces and quotes": Shape(b'{"', FIRST),
    "quotes": Shape(b'"', FIRST),
    "small objects": Shape(b'{"a":1}', FIRST + b"\0"),
    "white space": Shape(b" \n", before=RECORD),
    "commas": Shape(b",", FIRST),
    "zero bytes": Shape(bytes(1000), FIRST),
    "noise": Shape(random_bytes, FIRST),
    # records that are decoded one by one
    "keys that occur twice": Shape(line(lambda data, _: data[:-1] + b', "id": 2}')),
    "lone surrogates": Shape(line(lambda data, _: data.replace(b"hello", b"he\\ud800llo"))),
    "NaN": Shape(line(lambda data, _: data[:-1] + b', "a": NaN}')),
    "raw control characters": Shape(line(lambda data, _: data.replace(b"hello", b"he\tllo"))),
    "bytes that are not UTF-8": Shape(line(lambda data, _: data.replace(b"hello", b"he\xffllo"))),
    "short records that are not UTF-8": Shape(b'{"a":"\xff"}\n', before=RECORD + b"\n"),
    "numbers and commas": Shape(b"0,0,", before=RECORD + b"\n"),
    "short records with comments": Shape(b'{//\n//\n"a":1}\n', before=RECORD + b"\n"),
    "log lines with times in brackets": Shape(b"[2024-01-02 10:11:12] User: hello\n"),
    "space before each colon": Shape(line(lambda data, _: data.replace(b":", b" :"))),
    "strings that begin with a colon": Shape(line(lambda data, _: data.replace(b'"hello', b'":-) hello'))),
    "300 levels": Shape(line(lambda data, _: b'{"a":' * 300 + b"1" + b"}" * 300)),
    "numbers of 5,000 digits": Shape(b'{"a": ' + b"9" * 5000 + b"}\n"),
    # tiny records
    "lines of an empty object": Shape(b"{}\n", before=RECORD + b"\n"),
    "lines of null": Shape(b"null\n", before=RECORD + b"\n"),
    "lines of an empty string": Shape(b'""\n', before=RECORD + b"\n"),
    "array of empty objects": Shape(b"{},", FIRST, b"{}]"),
    "array of nulls": Shape(b"null,", FIRST, b"{}]"),
    "array of empty strings": Shape(b'"",', FIRST, b"{}]"),
    "lines of an empty object and a carriage return": Shape(b"{}\r\n", before=RECORD + b"\n"),
    "blank lines between records": Shape(lambda number: record(number) + b"\n" * 300),
    "lines of one key in single quotes": Shape(b"{'a':1}\n", before=RECORD + b"\n"),
    "lines with a comma before the end": Shape(line(lambda data, _: data[:-1] + b",}")),
    "lines of Python's None and True": Shape(line(lambda data, _: data[:-1] + b', "a": None, "b": True}')),
    # texts within texts
    "records encoded twice": Shape(lambda number: json.dumps(record(number).decode()).encode() + b"\n"),
    "records encoded three times": Shape(lambda n: json.dumps(json.dumps(record(n).decode())).encode() + b"\n"),
    "records in code fences": Shape(lambda number: b"```json\n" + record(number) + b"\n```\n"),
    "lines after 'data:'": Shape(line(lambda data, _: b"data: " + data)),
    "records in brackets, one each": Shape(lambda number: b"[" + record(number) + b"]\n"),
    "arrays of records, one after the other": Shape(lambda n: b"[" + record(n) + b", " + record(n) + b"]"),
    "records by id": Shape(lambda n: b'"r%d": %b, ' % (n, record(n)), b"{", b'"z": {}}'),
    # characters
    "UTF-16 with a mark": Shape(lambda number: (record(number) + b"\n").decode().encode("utf-16-le"), b"\xff\xfe"),
    "UTF-32 without a mark": Shape(lambda number: (record(number) + b"\n").decode().encode("utf-32-le")),
    "escapes of every character": Shape(line(lambda data, _: data.replace(b"read", b"\\u0072\\u0065\\u0061" * 20))),
    "pairs of surrogates": Shape(line(lambda data, _: data.replace(b"hello", b"\\ud83d\\ude00" * 40))),
    "half pairs at the end of strings": Shape(line(lambda data, _: data.replace(b'stop."', b'stop.\\ud83d"'))),
    "overlong UTF-8": Shape(line(lambda data, _: data.replace(b"hello", b"he\xc0\xaello"))),
    "lines separated by U+2028": Shape(lambda number: record(number) + "\u2028".encode()),
    # brackets and quotes at odd places
    "a closing brace too many": Shape(line(lambda data, _: data + b"}")),
    "colons lost": Shape(line(lambda data, _: data.replace(b": ", b" "))),
    "commas lost": Shape(line(lambda data, _: data.replace(b", ", b" "))),
    "quotes of keys lost": Shape(line(lambda data, _: data.replace(b'"value"', b"value"))),
    "typographic quotes": Shape(line(lambda data, _: data.replace(b'"', "“".encode()))),
    "strings that are never closed, one a line": Shape(line(lambda data, _: data[:-5].rpartition(b'"')[0])),
    "objects closed by brackets": Shape(line(lambda data, _: data.replace(b"}", b"]"))),
    "braces in a string without an end, after lines": Shape(b"{}[]", before=RECORD + b'\n{"id": "'),
    "a key of every length": Shape(lambda number: b'{"%b": 1}\n' % (b"k" * (number % 300)), before=RECORD + b"\n"),
    "1,000 empty lists in each record": Shape(line(lambda data, _: data[:-1] + b', "a": [' + b"[]," * 999 + b"[]]}")),
}
GIANT = Shape(b"text without a line end ", b'{"id": "x", "conversations": [{"from": "human", "value": "')


def read(path: str) -> None:
    """Read one file, or standard input, in this process; print the figures as JSON."""
    begin = time.process_time()
    records = problems = 0
    reader = Reader(open_inputs([path]))
    try:
        for chunk in reader:
            decoded = decode_records(chunk)
            records += len(decoded)
            problems += sum(record.problem is not None for record in decoded)
    except CurateError:
        pass  # a text without a whole record is refused as a whole
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"seconds": seconds, "records": records, "problems": problems, "warnings": len(reader.warnings)}
    print(json.dumps({**figures, "peak_mib": peak}))


def measure(shape: Shape, size: int, path: Path | None) -> dict[str, float]:
    """Read a shape in a process of its own, from a file or, without a path, from standard input."""
    command = [sys.executable, __file__, "--read", str(path or "-")]
    if path is not None:
        with path.open("wb") as file:
            file.writelines(shape.blocks(size))
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        if path is None:
            for block in shape.blocks(size):
                process.stdin.write(block)
        process.stdin.close()
        figures: dict[str, float] = json.loads(process.stdout.read())
    if path is not None:
        path.unlink()
    return {**figures, "mb_per_s": size / MB / max(figures["seconds"], 1e-6)}


def main() -> None:
    """Measure every shape, print the table, write the result."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--megabytes", type=float, default=1, metavar="MB", help="size of the smaller text")
    options_parser.add_argument("--giant", type=float, default=2000, metavar="MB", help="size of one record; 0: none")
    options_parser.add_argument("--only", default="", metavar="TEXT", help="shapes whose name contains this")
    options_parser.add_argument("--read", default="", metavar="FILE", help="read a file in this process, print figures")
    options = parse(options_parser, needs_shared=False)
    if options.read:
        read(options.read)
        return
    size = int(options.megabytes * MB)
    rows: list[list[object]] = []
    results: list[dict[str, object]] = []
    for name, shape in SHAPES.items():
        if options.only in name:
            small, large = (measure(shape, n, options.scratch / "shape.json") for n in (size, GROWTH * size))
            counts = int(large["records"]), int(large["problems"])
            rows.append([name, small["mb_per_s"], large["mb_per_s"], round(large["peak_mib"]), *counts])
            results.append({"shape": name, "small": small, "large": large})
            print(f"  {name}: {small['mb_per_s']:.1f}, {large['mb_per_s']:.1f} MB/s", file=sys.stderr, flush=True)
    if options.giant and options.only in "one record on standard input":
        giant = measure(GIANT, int(options.giant * MB), None)
        counts = int(giant["records"]), int(giant["problems"])
        rows.append(["one record on standard input", None, giant["mb_per_s"], round(giant["peak_mib"]), *counts])
        results.append({"shape": "one record on standard input", "large": giant})
    rows.sort(key=lambda row: float(str(row[2])))
    headers = ["shape", f"{options.megabytes:g} MB: MB/s", f"{GROWTH * options.megabytes:g} MB: MB/s", "peak MiB"]
    print(table([*headers, "records", "of these bad"], rows))
    slow = sum(float(str(row[2])) < GOAL_MB_PER_S for row in rows)
    print(f"\n{len(rows)} shapes, {slow} below {GOAL_MB_PER_S} MB/s")
    save("shapes", {"goal_mb_per_s": GOAL_MB_PER_S, "megabytes": options.megabytes, "shapes": results}, options.no_save)


if __name__ == "__main__":
    main()
