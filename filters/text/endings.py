"""Which answers were cut off: how their last line, or their last block of code, ends."""

from __future__ import annotations

import re
from itertools import islice
from typing import NamedTuple

SHORTEST = 160  # UTF-8 bytes of an answer of which a last sentence without a full stop is judged
SHORT = 60  # bytes, where its last word is one that no sentence ends in
LINE = 6  # words of a last line without a full stop that is judged
BREAKS_OFF = "the last sentence breaks off"
SIBLINGS = 2  # lines before it that must end in a full stop, if it has no sentence before its end

_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
_TEXT = re.compile(  # texts and comments in code; one that is not closed goes to the end
    r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|`[^`]*`|/\*.*?(?:\*/|\Z)|(?<!:)//[^\n]*|(?:^|(?<=\s))#[^\n]*',
    re.DOTALL,
)
_OPENS, _CLOSES = "([{", ")]}"
# The end of a sentence, with what may follow it: quotes, brackets, emphasis, a note's mark.
_STOPS = ".!?…。！？．؟۔।॥։।;；"
_FULL = re.compile(rf"[{_STOPS}:：][\"'”’»」』）)\]*_`~\s]*$")
_SENTENCE = re.compile(  # the stop comes first, and what may not be before it after it: found faster
    rf"[{_STOPS.replace(';；', '')}](?:(?<![A-Z0-9].)(?<!\b\w.)(?<!\b(?:Dr|Mr|Ms|vs|St|No).)"
    rf"(?<!\b(?:Mrs|Inc|etc|e\.g|i\.e).)[\"'”’»」』）)\]*_]*\s+\S|(?<=[。！？])\S)"
)
_WIDE = re.compile("[\u3040-\u9fff]")  # a letter of Chinese or Japanese is half a word
_ITEM = re.compile(r"[ \t]*(?:[-*+•·]|\(?(?:\d{1,3}|[A-Za-z])[.):])[ \t]+")
_NO_SENTENCE = re.compile(r"[ \t]*(?:#|\||>|\[|<|@|\$|[-=_*]{3,}|\*\*[^*]*\*\*:?\s*$)")
_ADDRESS = re.compile(r"(?:https?://|www\.|#)\S{0,150}$")
# Words that no sentence ends in, of English, German, French, Spanish and Portuguese.
_OPEN_WORDS = (
    *("the", "an", "and", "or", "but", "because", "if", "their", "its", "your", "our", "whose", "which", "than"),
    *("such as", "including", "e.g.", "is a", "are a", "of a", "as a", "in a", "with a", "for a", "and a", "to a"),
    *("by a", "der", "das", "dem", "ein", "eine", "einen", "einem", "einer", "und", "oder", "aber", "weil", "dass"),
    *("sowie", "le", "les", "un", "une", "des", "du", "et", "ou", "mais", "qui", "dans", "pour", "avec", "el", "los"),
    *("las", "una", "pero", "para", "por", "del", "uma"),
)
_OPEN_ENDS = re.compile(
    r"[,，、(（\[{“‘「『《/&+=→–—]$|(?<=[\u4e00-\u9fff])[的和与及或在是把被]$|(?<=[\u3040-\u9fff])[はがをにのとで]$"
)


class Cut(NamedTuple):
    """How an answer was cut off, and the line where."""

    reason: str
    line: str


def find_cut(text: str) -> Cut | None:
    """Return how an answer was cut off, or None if it ends as it should, as far as can be seen."""
    text = text.rstrip()
    if "```" in text or "~~~" in text:
        start, stop = last_block(text)
        if stop is None:
            return Cut("a code block is not closed", _last_line(text))
        if stop == len(text) and start is not None:
            code = text[start:stop].rpartition("\n")[0]
            return Cut("the code leaves brackets open", _last_line(code)) if _leaves_open(code) else None
        return _cut_sentence(text, text[stop:].strip())
    return _cut_sentence(text, text)


def _last_line(text: str) -> str:
    return text[text.rfind("\n") + 1 :].strip()


def last_block(text: str) -> tuple[int | None, int | None]:
    """Return where the last code block's content starts, and where it is over; None if it is not.

    (None, 0): there is no block.
    """
    fence, start, stop = "", None, 0
    for match in _FENCE.finditer(text):
        mark, info = match[1], match[2].strip()
        if not fence:
            if mark[0] == "~" or "`" not in info:
                fence, start = mark, match.end()
        elif mark.startswith(fence) and not info:
            fence, stop = "", match.end()
    closed = not fence or (start is not None and not text[start:].strip())
    return start, (stop if not fence else len(text)) if closed else None


def _leaves_open(code: str) -> bool:
    """Return whether code opens more brackets than it closes, beside texts and comments."""
    code = _TEXT.sub("", code)
    return any(code.count(opens) > code.count(closes) for opens, closes in zip(_OPENS, _CLOSES, strict=True))


def _cut_sentence(answer: str, text: str) -> Cut | None:
    """Return the cut of an answer's last sentence, if it is in a line of prose or a list; `text` follows all code."""
    size = len(answer.encode("utf-8", "surrogatepass"))
    if size < SHORT or _FULL.search(text[-12:]):
        return None
    line = _last_line(text)
    if _NO_SENTENCE.match(line) or _ADDRESS.search(line[-160:]):
        return None
    bare = line.rstrip("*_` ")
    if _ends_open(bare) or (_OPEN_ENDS.search(bare[-2:]) and _count_words(line) >= LINE):
        return Cut(BREAKS_OFF, line)
    if size < SHORTEST or not bare[-1:].isalpha() or "\u0e00" <= bare[-1] <= "\u0eff" or _count_words(line) < LINE:
        return None
    if _SENTENCE.search(line) or _siblings_stop(text, line):
        return Cut("the last sentence has no end", line)
    return None


def _ends_open(line: str) -> bool:
    """Return whether a line ends in a word that no sentence ends in."""
    end = f" {line[-16:].lower()}"
    if not end.endswith(_OPEN_WORDS):
        return False
    before = {end[-len(word) - 1] for word in _OPEN_WORDS if end.endswith(word)}
    return any(letter.isspace() or letter in '("“*_' for letter in before)


def _count_words(line: str) -> int:
    wide = 0 if line.isascii() else len(_WIDE.findall(line))
    return len(line.split()) + wide // 2


def _siblings_stop(text: str, line: str) -> bool:
    """Return whether the lines before the last one that are like it all end in a full stop."""
    is_item = _ITEM.match(line) is not None
    backwards = reversed(text[: -len(line)].splitlines())
    lines = list(islice((other for other in backwards if _count_words(other) >= LINE), 8))
    alike = [other for other in lines if (_ITEM.match(other) is not None) == is_item and not _NO_SENTENCE.match(other)]
    return len(alike) >= SIBLINGS and all(_FULL.search(other[-12:]) for other in alike)
