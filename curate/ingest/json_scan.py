"""Find where one JSON value ends, with msgspec's strict parser where possible.

JSON that only the standard library accepts (lone surrogates, NaN, raw control characters) and values nested too
deep for a recursive parser are handled separately.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
import numpy as np

from curate.ingest.text import literals

MAX_LENIENT_BYTES = 16 << 20  # a value that is not strict JSON must end within this many bytes
FIRST_LENIENT_BYTES = 1 << 9
BRACKET_BLOCK_BYTES = 1 << 18
SLACK = 16  # an error in the last bytes of a window may only mean that the rest of the value is missing

VALUE_STARTS = frozenset(b'{["-0123456789tfnNI')
VALUE_ENDS = frozenset(b" \t\r\n,]")
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
CONTROLS_TO_SPACES = bytes(32 if 0 < byte < 32 else byte for byte in range(256))  # a zero byte is damage, never text
ESCAPE = re.compile(rb"\\.", re.S)
BRACKET_STEPS = np.zeros(256, np.int8)
BRACKET_STEPS[list(b"[{")] = 1
BRACKET_STEPS[list(b"]}")] = -1

_raw_decoder = msgspec.json.Decoder(msgspec.Raw)


class ScanResult(NamedTuple):
    """The `end` of a value; or -1, with the `error` and the byte of it (`error_at`).

    `incomplete`: the value may continue past the window; with an error, if it is only nearly JSON. `literal_bytes` were
    read in vain as such.
    """

    end: int
    error_at: int = -1
    error: str = ""
    incomplete: bool = False
    literal_bytes: int = 0


INCOMPLETE = ScanResult(-1, -1, "", True)


def scan_value(
    window: memoryview, *, final: bool, in_array: bool, deep: bool = True, literal: bool = False
) -> ScanResult:
    """Find the end of the value at the start of a window. `final`: nothing follows the window.

    `deep`: also of one that is nested too deep for a recursive parser. `literal`: also of one that is only nearly JSON
    (see `text.literals`).
    Accepts lone surrogates, NaN, Infinity and raw control characters, as the standard library does.
    """
    if not len(window) or window[0] not in VALUE_STARTS:
        return ScanResult(-1, 0, f"no JSON value begins with {bytes(window[:8])!r}")
    result = _parse(window, deep)
    if result.end < 0 and _may_be_lenient(window, result):
        result = _parse_leniently(window, max(FIRST_LENIENT_BYTES, 2 * result.error_at))
    if literal and _may_be_literal(window, result):
        result = _scan_literal(window, result)
    if result.end >= 0:
        result = _check_end(window, result.end, in_array)
    uncertain = result.end == len(window) or (result.end < 0 and result.error_at >= len(window) - SLACK)
    return INCOMPLETE if uncertain and not (final or result.incomplete) else result


def _parse(window: memoryview, deep: bool = True) -> ScanResult:
    try:
        _raw_decoder.decode(window)
    except RecursionError:
        return _match_brackets(window) if deep else ScanResult(-1, 0, "nested too deep")
    except msgspec.DecodeError as error:
        message, _, position = str(error).rpartition(" (byte ")
        if not message:
            return INCOMPLETE  # "Input data was truncated" has no position
        offset = int(position.rstrip(")"))
        if "trailing characters" in message:  # not "trailing comma", which is an error inside the value
            return ScanResult(offset - 1)  # msgspec reports the position after the first trailing byte
        return ScanResult(-1, offset, message.removeprefix("JSON is malformed: "))
    return ScanResult(len(window))


def _may_be_lenient(window: memoryview, result: ScanResult) -> bool:
    """Return whether a strict parser stopped at something that the standard library accepts."""
    if result.incomplete:
        return b"\\u" in bytes(window[-SLACK:])
    if "surrogate" in result.error or "hex escape" in result.error:
        return True
    byte = window[result.error_at] if result.error_at < len(window) else 0
    return 0 < byte < 32 or byte in b"NI"


def _may_be_literal(window: memoryview, result: ScanResult) -> bool:
    """Return whether a strict parser stopped at something that `text.literals` reads."""
    if result.end >= 0 or result.incomplete or window[0] != ord("{"):
        return False
    near = bytes(window[max(0, result.error_at - 1) : result.error_at + 2])
    return not literals.LITERAL_BYTES.isdisjoint(near) or "trailing comma" in result.error


def _scan_literal(window: memoryview, strict: ScanResult) -> ScanResult:
    """Find the end of a value that is nearly JSON; a text that is not is judged as JSON."""
    try:
        return ScanResult(literals.find_end(window))
    except literals.LiteralError as error:
        if error.incomplete and len(window) <= literals.MAX_LITERAL_BYTES:
            return strict._replace(incomplete=True, literal_bytes=len(window))
        if kind := literals.describe_kind(bytes(window[:200])):
            strict = strict._replace(error_at=error.at, error=f"{kind}: {error}")
        return strict._replace(literal_bytes=error.at)


def _check_end(window: memoryview, end: int, in_array: bool) -> ScanResult:
    """Strip trailing white space, and refuse a word or number that runs into something else."""
    following = window[end] if end < len(window) else None
    while end > 1 and window[end - 1] in b" \t\r\n":
        end -= 1
        following = 32
    if in_array and window[0] not in b"{[" and following is not None and following not in VALUE_ENDS:
        return ScanResult(-1, end, "something follows a value without a comma")
    return ScanResult(end)


def _parse_leniently(window: memoryview, size: int) -> ScanResult:
    """Parse a window made strict, in as few of its bytes as possible: `size`, then four times as many."""
    while True:
        part = window[: min(size, MAX_LENIENT_BYTES)]
        result = _parse(memoryview(make_strict(bytes(part))))
        needs_more = (
            result.incomplete or result.end == len(part) or (result.end < 0 and result.error_at >= len(part) - SLACK)
        )
        if not needs_more or len(part) == len(window):
            return result
        if len(part) == MAX_LENIENT_BYTES:
            error = f"no end of a value that is not strict JSON within {MAX_LENIENT_BYTES} bytes"
            return ScanResult(-1, result.error_at, error)
        size *= 4


def make_strict(window: bytes) -> bytes:
    """Replace what only the standard library accepts with strict JSON of the same length, so that positions stay."""
    text = window.translate(CONTROLS_TO_SPACES).replace(b"NaN", b"0.0").replace(b"Infinity", b"0.000000")
    return SURROGATE_ESCAPE.sub(rb"\\u0020", text)


def _match_brackets(window: memoryview) -> ScanResult:
    """Find the end of a value too deep for a recursive parser, by counting brackets outside strings."""
    if len(window) > MAX_LENIENT_BYTES:
        return ScanResult(-1, 0, f"nested too deep, with no end within {MAX_LENIENT_BYTES} bytes")
    codes = np.frombuffer(ESCAPE.sub(b"  ", window), np.uint8)
    depth = quotes = 0
    for start in range(0, len(codes), BRACKET_BLOCK_BYTES):
        block = codes[start : start + BRACKET_BLOCK_BYTES]
        quotes_before = np.cumsum(block == ord('"'), dtype=np.int32) + quotes
        depths = np.cumsum(np.where(quotes_before & 1, 0, BRACKET_STEPS[block]), dtype=np.int32) + depth
        if depths.min() <= 0:
            return ScanResult(start + int(np.argmax(depths <= 0)) + 1)
        depth, quotes = int(depths[-1]), int(quotes_before[-1])
    return INCOMPLETE
