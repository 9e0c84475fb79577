"""Where one JSON value ends, whatever it holds: found by msgspec's parser, and past what that refuses, exactly."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

MENDED = 16 << 20  # bytes of a value up to which what strict JSON refuses is looked past
SLACK = 16  # bytes before the end of a window in which a refusal may only mean that the rest is missing

STARTS = frozenset(b'{["-0123456789tfnNI')
ENDS = frozenset(b" \t\r\n,]")
ESCAPED = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
CONTROL = bytes(32 if 0 < byte < 32 else byte for byte in range(256))  # a zero byte is damage, never text
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.S)
FIRST_LOOK = 1 << 12

_value = msgspec.json.Decoder(msgspec.Raw)


class Found(NamedTuple):
    """`end` of the value, or -1 and `place` and `why` of what is wrong; `open`: the value runs past the window."""

    end: int
    place: int = -1
    why: str = ""
    open: bool = False


OPEN = Found(-1, -1, "", True)


def scan(window: memoryview, *, final: bool, in_array: bool) -> Found:
    """Find the end of the value that a window begins with. `final`: nothing comes after the window.

    Lone surrogates, NaN, Infinity and raw control characters are looked past, as the standard parser reads them.
    """
    if not len(window) or window[0] not in STARTS:
        return Found(-1, 0, f"no JSON value begins with {bytes(window[:8])!r}")
    found = _parse(window)
    if found.end < 0 and (not found.open or b"\\u" in bytes(window[-SLACK:])):
        found = _parse_mended(window, max(FIRST_LOOK, 2 * found.place))
    if found.end >= 0:
        found = _checked(window, found, in_array)
    unsure = found.end == len(window) or (found.end < 0 and found.place >= len(window) - SLACK)
    return OPEN if unsure and not final else found


def _parse(window: memoryview) -> Found:
    try:
        _value.decode(window)
    except RecursionError:
        return _balanced(window)
    except msgspec.DecodeError as error:
        words, _, place = str(error).rpartition(" (byte ")
        if not words:
            return OPEN  # "Input data was truncated"
        at = int(place.rstrip(")"))
        if "trailing characters" in words:  # not a trailing comma, which is an error inside the value
            return Found(at - 1)  # the parser counts the first byte after the value in
        return Found(-1, at, words.removeprefix("JSON is malformed: "))
    return Found(len(window))


def _checked(window: memoryview, found: Found, in_array: bool) -> Found:
    """Take the white space off the end, and refuse a word or number that runs into something else."""
    end = found.end
    after = window[end] if end < len(window) else None
    while end > 1 and window[end - 1] in b" \t\r\n":
        end -= 1
        after = 32
    if in_array and window[0] not in b"{[" and after is not None and after not in ENDS:
        return Found(-1, end, "something follows a value without a comma")
    return Found(end)


def _parse_mended(window: memoryview, size: int) -> Found:
    """Parse what mending leaves of a window, in as little of it as it takes."""
    while True:
        part = window[: min(size, MENDED)]
        found = _parse(memoryview(mend(bytes(part))))
        more = found.open or found.end == len(part) or (found.end < 0 and found.place >= len(part) - SLACK)
        if not more or len(part) == len(window):
            return found
        if len(part) == MENDED:
            return Found(-1, found.place, f"no end of a value that is not strict JSON within {MENDED} bytes")
        size *= 4


def mend(window: bytes) -> bytes:
    """Replace what only the standard parser accepts, byte for byte, so that a strict one finds the same ends."""
    text = window.translate(CONTROL).replace(b"NaN", b"0.0").replace(b"Infinity", b"0.000000")
    return ESCAPED.sub(rb"\\u0020", text)


def _balanced(window: memoryview) -> Found:
    """Find the end of a value nested too deep for a parser that recurses, by counting brackets outside strings."""
    depth = 0
    if len(window) > MENDED:
        return Found(-1, 0, f"nested too deep, with no end within {MENDED} bytes")
    for token in TOKEN.finditer(window):
        byte = window[token.start()]
        if byte in b"[{":
            depth += 1
        elif byte in b"]}":
            depth -= 1
            if not depth:
                return Found(token.end())
        elif token.end() - token.start() == 1:
            return OPEN  # a quote without its partner
    return OPEN
