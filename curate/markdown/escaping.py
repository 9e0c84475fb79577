"""Escape exactly those characters of a text that markdown would read as markup.

The rules are CommonMark's (with tables and strikethrough): a `*` is escape_inline only where it would open or
close emphasis, a `1.` only where it would start a list. Generated markup in the text is a placeholder
(see `placeholders`), so a `*` is always the author's.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from html.entities import html5

from curate.markdown.placeholders import CODE, EMPHASIS, EMPHASIS_ALT, LINK, OPAQUE, STRIKE, STRONG, STRONG_ALT

MAX_RUNS = 400  # delimiter runs of one text that are paired; past it every one is protected

_RISK = re.compile(r"[*_`\\~&<\[\]]")
_STARTERS = frozenset("#>+-=~|:0123456789*_`")
_LINE = re.compile(
    r"^[ \t]*(?:"
    r"(?P<list>\d{1,9})(?=[.)](?:[ \t\n]|\Z))"
    r"|(?P<mark>\#{1,6}(?=[ \t\n]|\Z)|>|[-+*](?=[ \t\n]|\Z)|~~~|=+(?=[ \t]*$)"
    r"|-+(?=[ \t]*$)|(?P<rule>[-*_])(?:[ \t]*(?P=rule)){2,}(?=[ \t]*$)"
    r"|(?P<column>:-+:?|-+:)(?=[ \t]*$)|\|?[ \t]*:?-+:?[ \t]*\|(?=[-:| \t]*$)|\|(?=[ \t]*:?-+:?[ \t]*$)))",
    re.M,
)
_STARS, _LINES = f"[*{STRONG}{EMPHASIS}]", f"[_{STRONG_ALT}{EMPHASIS_ALT}]"
_RUN = re.compile(f"[*_{STRONG}{EMPHASIS}{STRONG_ALT}{EMPHASIS_ALT}](?:(?<={_STARS}){_STARS}*|(?<={_LINES}){_LINES}*)")
_OWN = re.compile(f"[{STRONG}{EMPHASIS}{STRONG_ALT}{EMPHASIS_ALT}]+")
_LOOSE_LINE = re.compile(r"_(?:(?<![A-Za-z0-9]_)|(?![A-Za-z0-9_]))")  # not inside a word
_LENGTH = {STRONG: 2, STRONG_ALT: 2}
_BACKTICKS = re.compile("`+")
_FENCE = re.compile(r"^[ \t]*```", re.M)
_TILDES = re.compile(f"~~+|{STRIKE}|(?<={STRIKE})~|~(?={STRIKE})")
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~\n\x01\x02\x0e-\x14]"""
_BACKSLASH = re.compile(rf"\\(?={_PUNCTUATION})")
_ENTITY = re.compile(r"&(?=#\d{1,7};|#[xX][0-9a-fA-F]{1,6};|([A-Za-z][A-Za-z0-9]*;))")
_AUTOLINK = re.compile(r"<(?=[A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>]*>|[\w.!#$%&'*+/=?^`{|}~-]+@[\w.-]+>)", re.A)
_DESTINATION = r"""\(\s*(?:<[^<>\n]*>|[^\s()<][^\s()]*(?:\([^\s()]*\)[^\s()]*)*)?(?:\s+["'(][^\n]*)?\s*\)"""
_LINK = re.compile(rf"\[[^\[\]]*(?P<end>\])(?={_DESTINATION})")
_LINK_END = re.compile(rf"\](?={_DESTINATION})")
_DEFINITION = re.compile(r"\A\[(?=[^\[\]]+\]:\s*(?:<[^<>\n]*>|\S+)[ \t]*(?:[\"'(].*)?$)", re.M)
_BRACKET = re.compile(r"[\[\]]")
_LINK_TEXT = re.compile(f"{LINK}([^{LINK}{OPAQUE}]*[\\[\\]][^{LINK}{OPAQUE}]*)")


def escape_inline(text: str) -> str:
    """Escape characters that markdown would read as inline markup."""
    if not _RISK.search(text):
        return text
    places: set[int] = set()
    if "*" in text or _LOOSE_LINE.search(text):
        places |= _emphasis(text)
    if "`" in text:
        places |= _code_spans(text)
    if "~~" in text or (STRIKE in text and "~" in text):
        places |= _strikes(text)
    if "[" in text or (LINK in text and "]" in text):
        places |= _links(text)
    for pattern, character in ((_BACKSLASH, "\\"), (_AUTOLINK, "<")):
        if character in text:
            places.update(found.start() for found in pattern.finditer(text))
    if "&" in text:
        places.update(e.start() for e in _ENTITY.finditer(text) if e[1] is None or e[1] in html5)
    return _with_backslashes(text, places) if places else text


def escape_lines(text: str) -> str:
    """Escape what would start a heading, list, quote, rule, fence or table at the start of a line."""
    if "\n" in text or text[:1] in _STARTERS:
        return _LINE.sub(_escape_match, text)
    return text


def _escape_match(found: re.Match[str]) -> str:
    first = not found.start()
    if number := found["list"]:
        # Only a list that starts at 1 can break into a paragraph.
        return f"{found[0]}\\" if first or number == "1" else found[0]
    mark = found["mark"]
    if first and (mark[0] == "=" or found["column"] or mark[-1] == "|"):
        return found[0]  # underlines of headings and tables have a line above them
    if found["column"] and "|" not in found.string:
        return found[0]
    before = found[0][: -len(mark)]
    if found["rule"] and mark[0] in "*_":  # all, since what was left of the run could be paired
        return before + mark.replace(mark[0], f"\\{mark[0]}")
    return f"{before}\\{mark}"


def _with_backslashes(text: str, places: set[int]) -> str:
    parts: list[str] = []
    at = 0
    for place in sorted(places):
        parts += text[at:place], "\\"
        at = place
    return "".join((*parts, text[at:]))


@dataclass(slots=True, eq=False)
class _Run:
    """A run of `*` or `_`; `at` is where it stands if the author wrote it, -1 if it is our markup."""

    at: int
    character: str
    length: int
    can_open: bool
    can_close: bool
    left: int = 0  # of `length`, not yet paired
    hit: bool = False

    def places(self) -> range:
        """Return where in the text it stands; nowhere, if it is ours."""
        return range(self.at, self.at + self.length) if self.at >= 0 else range(0)


def _emphasis(text: str) -> set[int]:
    """Return the places of `*` and `_` that would be paired into emphasis, or that touch our own."""
    runs: list[_Run] = []
    places: set[int] = set()
    for found in _RUN.finditer(text):
        whole = found[0]
        if whole[0] in "*_" and whole == whole[0] * len(whole):
            _add(runs, text, found.start(), found.end(), whole[0], found.start())
        elif any(character in whole for character in "*_"):
            places.update(found.start() + i for i, character in enumerate(whole) if character in "*_")
            for own in _OWN.finditer(text, found.start(), found.end()):  # pairs with what stands further on
                _add(runs, text, *own.span(), "*" if whole[-1] in f"*{STRONG}{EMPHASIS}" else "_", -1)
        else:
            _add(runs, text, found.start(), found.end(), "*" if whole[0] in (STRONG, EMPHASIS) else "_", -1)
    if len(runs) > MAX_RUNS:
        return places.union(*(run.places() for run in runs))
    while hit := _paired(runs):  # what is protected frees its partner to be paired with another
        places.update(*(run.places() for run in hit))
        runs = [run for run in runs if run not in hit]
    return places


def _add(runs: list[_Run], text: str, start: int, end: int, character: str, at: int) -> None:
    """Add a run unless it can neither open nor close, by what stands before and after it."""
    before = _kind(text[start - 1]) if start else "space"
    after = _kind(text[end]) if end < len(text) else "space"
    left = after == "word" or (after == "punctuation" and before != "word")
    right = before == "word" or (before == "punctuation" and after != "word")
    if character == "_":
        left, right = left and (not right or before == "punctuation"), right and (not left or after == "punctuation")
    if left or right:
        length = end - start if at >= 0 else sum(_LENGTH.get(mark, 1) for mark in text[start:end])
        runs.append(_Run(at, character, length, left, right))


def _kind(character: str) -> str:
    if character.isalnum():
        return "word"
    if character.isspace():
        return "space"
    return "punctuation" if character < "\x20" or unicodedata.category(character)[0] in "PS" else "word"


def _paired(runs: list[_Run]) -> list[_Run]:
    """Pair runs as CommonMark does and return the author's that take part."""
    if not any(run.at >= 0 for run in runs):
        return []
    openers: list[_Run] = []
    for run in runs:
        run.left, run.hit = run.length, False
        while run.can_close and run.left:
            place = next((i for i in range(len(openers) - 1, -1, -1) if _fit(openers[i], run)), -1)
            if place < 0:
                break
            opener = openers[place]
            del openers[place + 1 :]
            used = 2 if opener.left >= 2 and run.left >= 2 else 1
            opener.left -= used
            run.left -= used
            opener.hit = run.hit = True
            if not opener.left:
                openers.pop()
        if run.can_open and run.left:
            openers.append(run)
    return [run for run in runs if run.hit and run.at >= 0]


def _fit(opener: _Run, closer: _Run) -> bool:
    if opener.character != closer.character:
        return False
    if not (opener.can_close or closer.can_open):
        return True
    threes = opener.length % 3 == 0 and closer.length % 3 == 0
    return threes or (opener.length + closer.length) % 3 != 0


def _code_spans(text: str) -> set[int]:
    """Return the places of all backticks, if any run of them would begin a code span or a fence.

    All, since a protected run of two is two runs of one, which end what another one begins.
    """
    runs = [run[0] for run in _BACKTICKS.finditer(text)]
    if CODE not in text and len({len(run) for run in runs}) == len(runs) and not _FENCE.search(text):
        return set()
    return {place for place, character in enumerate(text) if character == "`"}


def _strikes(text: str) -> set[int]:
    runs = list(_TILDES.finditer(text))
    if len(runs) < 2:
        return set()
    return {place for run in runs if run[0] != STRIKE for place in range(*run.span())}


def _links(text: str) -> set[int]:
    """Return the places of brackets that would make a link, an image or a definition, or would end one of ours."""
    places: set[int] = set()
    ends: set[int] = set()
    at = depth = 0
    for link in _LINK.finditer(text):
        for bracket in _BRACKET.findall(text, at, link.start()):
            depth = depth + 1 if bracket == "[" else max(0, depth - 1)
        at = link.end()
        # In an open bracket the closing one goes, or else it would close that.
        places.add(link.start("end") if depth else link.start())
        ends.add(link.start("end"))
    places |= {end.start() for end in _LINK_END.finditer(text)} - ends
    places |= {definition.start() for definition in _DEFINITION.finditer(text)}
    for inside in _LINK_TEXT.finditer(text):
        if inside[1].count("[") != inside[1].count("]") or "](" in inside[1]:
            places.update(inside.start(1) + i for i, c in enumerate(inside[1]) if c in "[]")
    return places
