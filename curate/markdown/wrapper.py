"""Find the wrapper of ChatGPT's answers, `<div class="markdown prose">`, in an answer that does not begin with HTML.

Who copies an answer from the page may take words of it along: "Thought for 12 seconds", "1 / 2", "Regenerate".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from curate.markdown.chrome import has_class, inside_element
from curate.markdown.code import ATTRIBUTES

_DIV = re.compile(rf"<div\b(?=[^<>]*\bmarkdown\b){ATTRIBUTES}>", re.I)
_BLOCK = re.compile(
    r"(?:\s|<!--[^<>]*-->|<div\b[^<>]*>)*<(?:p|pre|[uo]l|h[1-6]|table|blockquote|hr|div|article)\b", re.I
)
_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})([^\n]*)")
_TAG = re.compile(rf"</?[a-zA-Z]{ATTRIBUTES}>")
_TIME = r"(?:(?:a[ ]few|\d+)[ ]?(?:hours?|minutes?|seconds?|[hms])\b[ ]?)+"
_PAGE_WORDS = re.compile(
    rf"""(?:(?:
        ChatGPT\b(?:[ ](?:said|Plus|Team|4o?|3\.5)\b)?:? | GPT-[\w.-]+ | Model:[ ]?[^\n]{{1,40}}(?=\n|\Z)
        | \d{{1,3}}\s?/\s?\d{{1,3}}\b | Copy\d+[ ]chars[ ]/[ ]\d+[ ]words
        | (?:Thought|Reasoned|Worked)[ ](?:about[^\n]{{1,80}}?[ ])?for[ ]{_TIME}
        | (?:Thinking|Reasoning|Analyzing|Searching|Browsing|Working)\b(?:\.{{3}}|…)?
        | Finished[ ](?:browsing|working|analyzing)\b | Searched[ ](?:\d+[ ]sites?|the[ ]web)\b
        | Used[ ](?:Browse[ ]with[ ]Bing|[A-Z][\w-]*(?:[ ][A-Z][\w-]*){{0,2}})
        | (?:Copy(?:[ ]code)?|Edit|Share|Sources?|Show[ ]work|Read[ ]aloud|(?:Good|Bad)[ ]response)\b
        | (?:Regenerate(?:[ ]response)?|(?:Stop|Continue)[ ]generating)\b
    )[\s.·|]*)++""",
    re.X,
)
_MAX_PAGE_WORDS = 200  # characters


@dataclass(frozen=True)
class Segment:
    """A part of an answer: an element in ChatGPT's HTML, or the text before, between and after such elements."""

    text: str
    is_html: bool


def has_wrapper(text: str) -> bool:
    """Return whether ChatGPT's wrapper is in a text, other than as code."""
    return "markdown" in text and any(True for _ in _wrappers(text))


def split_wrappers(text: str) -> list[Segment]:
    """Split a text into wrappers and what is around them; empty if there is a wrapper that cannot be converted.

    That is one without blocks inside, which is more likely mentioned than used.
    """
    segments: list[Segment] = []
    end = 0
    for opening in _wrappers(text):
        if opening.start() < end:
            continue  # inside the one before
        if not _BLOCK.match(text, opening.end()):
            return []
        before = text[end : opening.start()]
        element = inside_element(text, opening.end(), "div")
        end = len(text) if element is None else element[1]  # a cut answer is not closed
        segments += [_segment(before), Segment(text[opening.start() : end], True)]
    segments.append(_segment(text[end:]))
    return [segment for segment in segments if segment.text]


def _segment(text: str) -> Segment:
    text = text.strip()
    return Segment(text, _TAG.search(text) is not None)


def is_of_the_page(text: str) -> bool:
    """Return whether a text beside a wrapper is only labels and buttons of ChatGPT's page."""
    return len(text) <= _MAX_PAGE_WORDS and _PAGE_WORDS.fullmatch(text.strip("\u200b\ufeff \t\r\n")) is not None


def page_words_after(html: str) -> str:
    """Return the words of the page that follow the last tag of an answer; empty if there are others or none."""
    tail = html[html.rfind(">") + 1 :] if html[-1:] != ">" else ""
    return tail if tail.strip() and is_of_the_page(tail) else ""


def _wrappers(text: str) -> Iterator[re.Match[str]]:
    """Yield the opening tags of wrappers that are not code."""
    candidates = [tag for tag in _DIV.finditer(text) if has_class(tag[0], "markdown") and has_class(tag[0], "prose")]
    fences = _fenced(text) if candidates else []
    counted = backticks = fence = 0  # backticks are counted from the start of the line, up to `counted`
    for tag in candidates:
        line = text.rfind("\n", counted, tag.start()) + 1
        backticks = text.count("`", line or counted, tag.start()) + (0 if line else backticks)
        counted = tag.start()
        while fence < len(fences) and fences[fence][1] <= counted:
            fence += 1
        is_fenced = fence < len(fences) and fences[fence][0] <= counted
        if not is_fenced and backticks % 2 == 0:
            yield tag


def _fenced(text: str) -> list[tuple[int, int]]:
    """Return where fenced code starts and stops, in order."""
    spans: list[tuple[int, int]] = []
    position = opened = 0
    fence = ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if match and not fence:
            opened, fence = position, match[1]
        elif match and match[1].startswith(fence) and not match[2].strip():
            spans.append((opened, position + len(line)))
            fence = ""
        position += len(line) + 1
    return [*spans, (opened, len(text))] if fence else spans
