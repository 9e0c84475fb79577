"""The control characters that stand for our own markup until a block of text is complete.

While an answer is walked, `*` or `[` in the text can only be the author's; what we put there ourselves
travels as one of these, so that it is known which characters a backslash may have to protect. Answers
that hold any of them are freed of them first. They become markdown in one pass at the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

OPAQUE = "\x01"  # a finished piece of markdown, kept aside: a fence, an image, a formula, the end of a link
CODE = "\x02"  # the same, for a code span
STRONG = "\x0e"
EMPHASIS = "\x0f"
STRONG_ALT = "\x10"  # underscores, for emphasis that touches other emphasis
EMPHASIS_ALT = "\x11"
STRIKE = "\x12"
LINK = "\x13"
BREAK = "\x14"  # <br>, with the white space around it

MARKDOWN = {
    STRONG: "**",
    EMPHASIS: "*",
    STRONG_ALT: "__",
    EMPHASIS_ALT: "_",
    STRIKE: "~~",
    LINK: "[",
}
ALTERNATIVE = {STRONG: STRONG_ALT, EMPHASIS: EMPHASIS_ALT, STRIKE: STRIKE}
SPACE = " \t\n\r\f"
WIDE_SPACE = "\u00a0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))

_MARKS = (OPAQUE, CODE, BREAK, *MARKDOWN)
_RESERVED = re.compile(f"[{''.join(_MARKS)}]")
_ASIDE = re.compile(f"[{OPAQUE}{CODE}]")


def without_marks(text: str) -> str:
    """Drop the control characters that would be taken for marks; they are no text."""
    return _RESERVED.sub("", text) if any(mark in text for mark in _MARKS) else text


def spelled_out(text: str, aside: Sequence[str]) -> str:
    """Turn marks into markdown and put the pieces that were kept aside back, in their order."""
    for mark, markdown in MARKDOWN.items():
        if mark in text:
            text = text.replace(mark, markdown)
    if not aside:
        return text
    between = _ASIDE.split(text)
    return "".join(part for pair in zip(between, (*aside, ""), strict=True) for part in pair)
