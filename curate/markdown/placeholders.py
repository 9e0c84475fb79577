"""Control characters that stand for generated markup until a block of text is complete.

During the walk, a `*` or `[` in an answer's text can only be the author's, since generated markup is one of these
characters. So it is clear which characters may need a backslash. Placeholders are removed from the input first, and
become markdown in one pass at the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

OPAQUE = "\x01"  # finished markdown, stored separately: a fence, an image, a formula, the end of a link
CODE = "\x02"  # the same for a code span
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

_PLACEHOLDERS = (OPAQUE, CODE, BREAK, *MARKDOWN)
_RESERVED = re.compile(f"[{''.join(_PLACEHOLDERS)}]")
_OPAQUE_OR_CODE = re.compile(f"[{OPAQUE}{CODE}]")


def remove_placeholders(text: str) -> str:
    """Remove control characters that would be read as placeholders."""
    return _RESERVED.sub("", text) if any(placeholder in text for placeholder in _PLACEHOLDERS) else text


def replace_placeholders(text: str, opaque: Sequence[str]) -> str:
    """Replace placeholders by markdown, and insert the stored markdown in order."""
    for placeholder, markdown in MARKDOWN.items():
        if placeholder in text:
            text = text.replace(placeholder, markdown)
    if not opaque:
        return text
    between = _OPAQUE_OR_CODE.split(text)
    return "".join(part for pair in zip(between, (*opaque, ""), strict=True) for part in pair)
