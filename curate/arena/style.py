"""The style of answers, by which people are swayed: their length, headers, lists and bold text."""

from __future__ import annotations

import re
from collections.abc import Sequence

FEATURES = ("length", "headers", "lists", "bold")

_CODE = re.compile(r"^(```|~~~).*?(?:^\1|\Z)", re.M | re.S)
_PATTERNS = (
    re.compile(r"^ {0,3}#{1,6} ", re.M),
    re.compile(r"^\s*(?:[-*+]|\d{1,9}[.)]) ", re.M),
    re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
)


def measure(answers: Sequence[str]) -> tuple[float, ...]:
    """Return the amounts of `FEATURES` in a model's answers of one chat; code blocks count by their length only.

    The features are those of Chatbot Arena's style control (Li et al. 2024), with characters in place of tokens.
    """
    text = "\n\n".join(answers)
    prose = _CODE.sub("", text)
    return (float(len(text)), *(float(len(pattern.findall(prose))) for pattern in _PATTERNS))


def contrast(left: Sequence[float], right: Sequence[float]) -> tuple[float, ...]:
    """Return (a − b) / (a + b) for each amount, 0 where both are 0."""
    return tuple((a - b) / (a + b) if a + b else 0.0 for a, b in zip(left, right, strict=True))
