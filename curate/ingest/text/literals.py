"""Read records that are nearly JSON: as Python prints them, or with comments or a comma too many.

    {'from': 'human', 'ok': True, 'note': None}     Python's repr
    {"from": "human", /* who */ "value": "a",}      a comment and a trailing comma

Nothing is evaluated. One pass over the tokens checks the grammar and writes strict JSON. A text that breaks the grammar
anywhere is refused: in damaged JSON, a quote or a slash is no reason to guess.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

MAX_LITERAL_BYTES = 4 << 20  # of one record
MAX_LITERAL_DEPTH = 256
PYTHON_REPR, COMMENTS, TRAILING_COMMA = "python_repr", "json_comments", "trailing_comma"  # the repairs

SPACE = re.compile(rb"(?:[ \t\r\n]++|//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+\*/|\#[^\n]*+)*+")
TOKEN = re.compile(
    rb"""[ \t\r\n]*+(?:
        (?P<string> "(?:[^"\\\x00-\x08\n-\x1f]++|\\[^\x00-\x1f])*+" | '(?:[^'\\\x00-\x08\n-\x1f]++|\\[^\x00-\x1f])*+' )
        | (?P<word> -?[A-Za-z_][\w.]*+ ) | (?P<number> -?\d[\w.+-]*+ ) | (?P<mark> [{}\[\]():,] )
    )""",
    re.X,
)
CONTROL = re.compile(rb"[\x00-\x08\n-\x1f]")
BAD_ESCAPE = re.compile(rb'(?:[^\\]++|\\["\\/bfnrt]|\\u[\da-fA-F]{4})*+\\', re.S)
NUMBER = re.compile(rb"-?(?:0|[1-9]\d*+)(?:\.\d++)?(?:[eE][-+]?\d++)?")
WORDS = {
    **{word: word for word in (b"true", b"false", b"null", b"NaN", b"Infinity", b"-Infinity")},
    **{
        b"True": b"true",
        b"False": b"false",
        b"None": b"null",
        b"nan": b"NaN",
        b"inf": b"Infinity",
        b"-inf": b"-Infinity",
    },
}
PYTHON_WORDS = frozenset((b"True", b"False", b"None", b"nan", b"inf", b"-inf"))
EXPECTED = {"value": "a value", "key": "a key", "colon": "a colon", "end": "a comma or a closing bracket"}
CLOSING = {b"{": b"}", b"[": b"]", b"(": b")"}
LITERAL_BYTES = frozenset(b"'/#TFNni(,]}-")  # at which a strict parser stops in such a record
ESCAPE = re.compile(
    r"\\(?:([\\'\"])|([abfnrtv])|(?:x([\da-fA-F]{2})|u([\da-fA-F]{4})|U(00(?:0[\da-fA-F]|10)[\da-fA-F]{4}))|)"
)
CONTROLS = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
PYTHON_START = re.compile(rb"[\[{(\s]*'")
SCRIPT_START = re.compile(rb"[\[\s]*\{\s*[A-Za-z_$][\w$]*\s*:")


class LiteralError(ValueError):
    """What is wrong with a text, at which byte, and whether only its end is missing."""

    def __init__(self, what: str, at: int, *, incomplete: bool = False) -> None:
        super().__init__(what)
        self.at = at
        self.incomplete = incomplete


class Record(NamedTuple):
    """A record as strict JSON, the repairs that it took (name: the text that was repaired), and the byte after it."""

    json: bytes
    repairs: dict[str, str]
    end: int


def read_literal(data: bytes | memoryview) -> Record:
    """Read the value at the start of a text; raises LiteralError."""
    reader = _Reader(data)
    reader.read()
    return Record(reader.to_json(), reader.repairs, reader.position)


def find_end(data: bytes | memoryview) -> int:
    """Return the byte after the value at the start of a text; raises LiteralError."""
    reader = _Reader(data)
    reader.read()
    return reader.position


def describe_kind(data: bytes) -> str:
    """Say what a text that is not JSON seems to be, and what to type; empty if it is not known."""
    if PYTHON_START.match(data, 0, 200):
        return "a record as Python prints it, not JSON (write it with json.dumps)"
    if SCRIPT_START.match(data, 0, 200):
        return "JavaScript with keys that have no quotes, not JSON (write it with JSON.stringify)"
    return ""


class _Reader:
    """Reads one value, token by token; `parts` are strict JSON but for the strings, which keep their quotes."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data
        self.limit = min(len(data), MAX_LITERAL_BYTES)
        self.position = 0
        self.parts: list[bytes] = []
        self.strings: list[int] = []  # their indices in `parts`
        self.repairs: dict[str, str] = {}
        self.brackets: list[bytes] = []  # open ones
        self.commas: list[int] = []  # in each of them
        self.expected = "value"  # or key, colon, end: a comma or the closing bracket
        self.may_close = False  # although a value is expected: after an opening bracket or a comma

    def read(self) -> None:
        """Read tokens up to the end of the value."""
        while True:
            token = TOKEN.match(self.data, self.position, self.limit)
            if token is None:
                self._skip_space()
                continue
            kind = token.lastgroup or ""
            text = token[kind]
            self.position = token.end() - len(text)
            if kind in ("word", "number") and token.end() == self.limit:
                raise self._error("the record is not closed", incomplete=True)
            if kind == "mark":
                self._read_mark(text)
            else:
                self._read_scalar(text, kind)
            self.position = token.end()
            if not self.brackets:
                return self._check_strings()

    def _check_strings(self) -> None:
        """Raise LiteralError for an escape that JSON does not have, if the strings are JSON's."""
        if PYTHON_REPR not in self.repairs and any(BAD_ESCAPE.match(self.parts[index]) for index in self.strings):
            raise self._error("an escape that JSON does not have")

    def _skip_space(self) -> None:
        """Skip white space and comments; raises LiteralError if there are none."""
        space = SPACE.match(self.data, self.position, self.limit)
        if space is None or space.end() == self.position:
            raise self._unreadable()
        if text := space[0].strip(b" \t\r\n"):
            self.repairs.setdefault(COMMENTS, text[:200].decode("utf-8", "replace"))
        self.position = space.end()

    def _read_mark(self, mark: bytes) -> None:
        if mark in CLOSING and self.expected == "value":
            self._open(mark)
        elif mark == b":" and self.expected == "colon":
            self.parts.append(mark)
            self.expected = "value"
            self.may_close = False
        elif mark == b"," and self.expected == "end":
            self.parts.append(mark)
            self.commas[-1] += 1
            self.expected = "key" if self.brackets[-1] == b"{" else "value"
            self.may_close = True
        elif self.brackets and mark == CLOSING[self.brackets[-1]] and (self.expected == "end" or self.may_close):
            self._close(mark)
        else:
            raise self._error(f"a {mark.decode()!r} in place of {EXPECTED[self.expected]}")

    def _open(self, mark: bytes) -> None:
        if len(self.brackets) == MAX_LITERAL_DEPTH:
            raise self._error(f"nested deeper than {MAX_LITERAL_DEPTH} levels")
        if mark == b"(":
            self.repairs.setdefault(PYTHON_REPR, "a tuple")
        self.parts.append(b"[" if mark == b"(" else mark)
        self.brackets.append(mark)
        self.commas.append(0)
        self.expected = "key" if mark == b"{" else "value"
        self.may_close = True

    def _close(self, mark: bytes) -> None:
        bracket, commas = self.brackets.pop(), self.commas.pop()
        if self.expected != "end" and commas:
            self.parts.pop()
            if bracket != b"(":
                self.repairs.setdefault(TRAILING_COMMA, f",{mark.decode()}")
        elif bracket == b"(" and self.expected == "end" and not commas:
            raise self._error("a value in round brackets, which is no tuple")
        self.parts.append(b"]" if bracket == b"(" else mark)
        self.expected = "end"

    def _read_scalar(self, text: bytes, kind: str) -> None:
        if self.expected not in ("value", "key"):
            raise self._error(f"a {kind} in place of {EXPECTED[self.expected]}")
        is_key = self.expected == "key"
        if kind == "string":
            self.strings.append(len(self.parts))
            if text[:1] == b"'":
                self.repairs.setdefault(PYTHON_REPR, text[:200].decode("utf-8", "replace"))
        elif kind == "number" and not NUMBER.fullmatch(text):
            raise self._error(f"no number that can be read, {text[:20].decode('utf-8', 'replace')!r}")
        elif kind == "number" and is_key:
            text = b'"' + text + b'"'
        elif kind == "word":
            text = self._read_word(text, is_key)
        self.parts.append(text)
        self.expected = "colon" if is_key else "end"
        self.may_close = False

    def _read_word(self, word: bytes, is_key: bool) -> bytes:
        if is_key or word not in WORDS:
            what = "a key without quotes" if is_key else "a word that is no value"
            raise self._error(f"{what}, {word[:40].decode('utf-8', 'replace')!r}")
        if word in PYTHON_WORDS:
            self.repairs.setdefault(PYTHON_REPR, word.decode())
        return WORDS[word]

    def _error(self, what: str, *, incomplete: bool = False) -> LiteralError:
        return LiteralError(what, self.position, incomplete=incomplete)

    def _unreadable(self) -> LiteralError:
        """Return the error for a place where no token begins: the text may only end too early."""
        rest = bytes(self.data[self.position : self.limit])
        is_string = rest[:1] in (b'"', b"'") and not CONTROL.search(rest)
        is_comment = rest == b"/" or (rest[:2] == b"/*" and b"*/" not in rest)
        if len(self.data) > self.limit and (not rest or is_string or is_comment):
            return self._error(f"longer than {MAX_LITERAL_BYTES} bytes")
        if not rest or rest == b"-" or is_string or is_comment:
            return self._error("the record is not closed", incomplete=True)
        return self._error(f"no value, key or bracket begins with {rest[:8]!r}")

    def to_json(self) -> bytes:
        """Return strict JSON; raises LiteralError for an escape that has no clear meaning."""
        if PYTHON_REPR in self.repairs:
            for index in self.strings:
                self.parts[index] = _to_json_string(self.parts[index])
        return b"".join(self.parts)


def _to_json_string(token: bytes) -> bytes:
    """Return a string of Python's as one of JSON's."""
    text = token[1:-1].decode("utf-8", "surrogateescape")
    if "\\" in text:
        text = ESCAPE.sub(_unescape, text)
    return json.dumps(text).encode()


def _unescape(match: re.Match[str]) -> str:
    same, control, *codes = match.groups()
    if same or control:
        return same or CONTROLS[control]
    if code := next(filter(None, codes), None):
        return chr(int(code, 16))
    raise LiteralError(f"an escape that Python does not print, {match.string[match.start() : match.start() + 2]!r}", 0)
