"""Escape exactly those characters of a text that markdown would read as markup.

The rules are CommonMark's (with tables and strikethrough): a `*` is escaped only where it would open or
close emphasis, a `1.` only where it would start a list. Generated markup in the text is a placeholder
(see `placeholders`), so a `*` is always the author's.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from html.entities import html5

from curate.markdown.placeholders import CODE, EMPHASIS, EMPHASIS_ALT, LINK, OPAQUE, STRIKE, STRONG, STRONG_ALT

MAX_DELIMITER_RUNS = 400  # of one text that are paired; past it all are escaped

_RISK = re.compile(r"[*_`\\~&<\[\]]")
_STARTERS = frozenset("#>+-=~|:0123456789*_`")
_LINE = re.compile(
    r"^[ \t]*(?:"
    r"(?P<list>\d{1,9})(?=[.)](?:[ \t\n]|\Z))"
    r"|(?P<marker>\#{1,6}(?=[ \t\n]|\Z)|>|[-+*](?=[ \t\n]|\Z)|~~~|=+(?=[ \t]*$)"
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
    positions: set[int] = set()
    if "*" in text or _LOOSE_LINE.search(text):
        positions |= _emphasis(text)
    if "`" in text:
        positions |= _code_spans(text)
    if "~~" in text or (STRIKE in text and "~" in text):
        positions |= _strikes(text)
    if "[" in text or (LINK in text and "]" in text):
        positions |= _links(text)
    for pattern, character in ((_BACKSLASH, "\\"), (_AUTOLINK, "<")):
        if character in text:
            positions.update(match.start() for match in pattern.finditer(text))
    if "&" in text:
        positions.update(e.start() for e in _ENTITY.finditer(text) if e[1] is None or e[1] in html5)
    return _insert_backslashes(text, positions) if positions else text


def escape_lines(text: str) -> str:
    """Escape what would start a heading, list, quote, rule, fence or table at the start of a line."""
    if "\n" in text or text[:1] in _STARTERS:
        return _LINE.sub(_escape_match, text)
    return text


def _escape_match(match: re.Match[str]) -> str:
    first = not match.start()
    if number := match["list"]:
        # Only a list that starts at 1 can interrupt a paragraph.
        return f"{match[0]}\\" if first or number == "1" else match[0]
    marker = match["marker"]
    if first and (marker[0] == "=" or match["column"] or marker[-1] == "|"):
        return match[0]  # underlines of headings and tables have a line above them
    if match["column"] and "|" not in match.string:
        return match[0]
    before = match[0][: -len(marker)]
    if match["rule"] and marker[0] in "*_":  # every character, since those left could open or close emphasis
        return before + marker.replace(marker[0], f"\\{marker[0]}")
    return f"{before}\\{marker}"


def _insert_backslashes(text: str, positions: set[int]) -> str:
    parts: list[str] = []
    start = 0
    for position in sorted(positions):
        parts += text[start:position], "\\"
        start = position
    return "".join((*parts, text[start:]))


@dataclass(slots=True, eq=False)
class _DelimiterRun:
    """A delimiter run in CommonMark's sense: adjacent `*` or `_`. `position`: in the text, -1 for our markup."""

    position: int
    character: str
    length: int
    can_open: bool
    can_close: bool
    unpaired: int = 0  # of `length`
    paired: bool = False

    def positions(self) -> range:
        """Return its positions in the text; none for our markup."""
        return range(self.position, self.position + self.length) if self.position >= 0 else range(0)


def _emphasis(text: str) -> set[int]:
    """Return the positions of `*` and `_` that would be paired into emphasis, or that touch our own."""
    runs: list[_DelimiterRun] = []
    positions: set[int] = set()
    for match in _RUN.finditer(text):
        characters = match[0]
        if characters[0] in "*_" and characters == characters[0] * len(characters):
            _add(runs, text, match.start(), match.end(), characters[0], match.start())
        elif any(character in characters for character in "*_"):
            positions.update(match.start() + i for i, character in enumerate(characters) if character in "*_")
            for own in _OWN.finditer(text, match.start(), match.end()):  # can pair with a later run
                _add(runs, text, *own.span(), "*" if characters[-1] in f"*{STRONG}{EMPHASIS}" else "_", -1)
        else:
            _add(runs, text, match.start(), match.end(), "*" if characters[0] in (STRONG, EMPHASIS) else "_", -1)
    if len(runs) > MAX_DELIMITER_RUNS:
        return positions.union(*(run.positions() for run in runs))
    while paired := _pair(runs):  # an escaped run frees its partner to be paired with another
        positions.update(*(run.positions() for run in paired))
        runs = [run for run in runs if run not in paired]
    return positions


def _add(runs: list[_DelimiterRun], text: str, start: int, end: int, character: str, position: int) -> None:
    """Add a run, unless the characters around it mean that it can neither open nor close emphasis."""
    before = _kind(text[start - 1]) if start else "space"
    after = _kind(text[end]) if end < len(text) else "space"
    # CommonMark calls these left-flanking and right-flanking.
    opens = after == "word" or (after == "punctuation" and before != "word")
    closes = before == "word" or (before == "punctuation" and after != "word")
    if character == "_":
        opens, closes = (
            opens and (not closes or before == "punctuation"),
            closes and (not opens or after == "punctuation"),
        )
    if opens or closes:
        length = end - start if position >= 0 else sum(_LENGTH.get(placeholder, 1) for placeholder in text[start:end])
        runs.append(_DelimiterRun(position, character, length, opens, closes))


def _kind(character: str) -> str:
    if character.isalnum():
        return "word"
    if character.isspace():
        return "space"
    return "punctuation" if character < "\x20" or unicodedata.category(character)[0] in "PS" else "word"


def _pair(runs: list[_DelimiterRun]) -> list[_DelimiterRun]:
    """Pair runs as CommonMark does, and return the author's runs that were paired."""
    if not any(run.position >= 0 for run in runs):
        return []
    openers: list[_DelimiterRun] = []
    for run in runs:
        run.unpaired, run.paired = run.length, False
        while run.can_close and run.unpaired:
            index = next((i for i in range(len(openers) - 1, -1, -1) if _can_pair(openers[i], run)), -1)
            if index < 0:
                break
            opener = openers[index]
            del openers[index + 1 :]
            used = 2 if opener.unpaired >= 2 and run.unpaired >= 2 else 1
            opener.unpaired -= used
            run.unpaired -= used
            opener.paired = run.paired = True
            if not opener.unpaired:
                openers.pop()
        if run.can_open and run.unpaired:
            openers.append(run)
    return [run for run in runs if run.paired and run.position >= 0]


def _can_pair(opener: _DelimiterRun, closer: _DelimiterRun) -> bool:
    """Return whether two runs may pair, by CommonMark's rules 9 and 10 for emphasis."""
    if opener.character != closer.character:
        return False
    if not (opener.can_close or closer.can_open):
        return True
    threes = opener.length % 3 == 0 and closer.length % 3 == 0
    return threes or (opener.length + closer.length) % 3 != 0


def _code_spans(text: str) -> set[int]:
    """Return the positions of all backticks, if any run of them would begin a code span or a fence.

    All, since a run with only its first backtick escaped is a shorter run, which could end another span.
    """
    runs = _BACKTICKS.findall(text)
    if CODE not in text and len({len(run) for run in runs}) == len(runs) and not _FENCE.search(text):
        return set()
    return {position for position, character in enumerate(text) if character == "`"}


def _strikes(text: str) -> set[int]:
    matches = list(_TILDES.finditer(text))
    if len(matches) < 2:
        return set()
    return {position for match in matches if match[0] != STRIKE for position in range(*match.span())}


def _links(text: str) -> set[int]:
    """Return the positions of brackets that would form a link, image or definition, or would end one of our links."""
    positions: set[int] = set()
    ends: set[int] = set()
    start = depth = 0
    for link in _LINK.finditer(text):
        for bracket in _BRACKET.findall(text, start, link.start()):
            depth = depth + 1 if bracket == "[" else max(0, depth - 1)
        start = link.end()
        # Inside an open bracket, escape the closing one: it would otherwise close the outer bracket.
        positions.add(link.start("end") if depth else link.start())
        ends.add(link.start("end"))
    positions |= {end.start() for end in _LINK_END.finditer(text)} - ends
    positions |= {definition.start() for definition in _DEFINITION.finditer(text)}
    for inside in _LINK_TEXT.finditer(text):
        if inside[1].count("[") != inside[1].count("]") or "](" in inside[1]:
            positions.update(inside.start(1) + i for i, c in enumerate(inside[1]) if c in "[]")
    return positions
