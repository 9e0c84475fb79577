"""Which answers repeat themselves, or an earlier answer of their conversation, and how much."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from curate.filters.text.prose import without_code, without_lists
from curate.filters.text.repeats import GRAM, find_repeats

SHORTEST = 40  # words of prose of which a share is measured
COPY = 200  # characters of an answer that may be a copy of another
_AGAIN = (
    r"\b(?:repeat\w*|again|once more|verbatim|same (?:answer|text|thing)|resend)\b"
    r"|重复|重複|反复|反復|繰り返|もう一度|再说|再发|반복|다시"
    r"|wiederhol|nochmal|repit|repet|de nuevo|otra vez|répèt|encore"
)
AGAIN = re.compile(_AGAIN, re.IGNORECASE)  # a prompt that asks for an earlier answer again
ASKED = re.compile(  # a prompt that asks for a passage several times
    rf"{_AGAIN}|\b(?:times|over and over|chant|mantra|lyrics|song|poem|refrain|chorus)\b|\b\d{{2,}}\b"
    r"|[次遍回]|번|노래|歌|詩|诗|\bmal\b|veces|vezes|fois",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """An answer, the prompt before it, and the number of its conversation."""

    conversation: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Repetition:
    """What an answer repeats: a passage `times` in a row, `share` of its prose, one passage `most` times, or an answer.

    `passage` is an excerpt.
    """

    times: int = 1
    share: float = 0.0
    most: int = 1
    copies: int = 0
    passage: str = ""


def find_repetition(answers: Sequence[Answer]) -> dict[int, Repetition]:
    """Return the repetition in answers, by their position; most have none."""
    repeats = find_repeats([answer.text for answer in answers])
    suspects = np.flatnonzero((repeats.shares * repeats.words >= 3 * GRAM) | (repeats.times > 1)).tolist()
    found = _measure(suspects, answers)
    for index in _copies(answers):
        found[index] = Repetition(copies=1, passage=answers[index].text[:200])
    return found


def _copies(answers: Sequence[Answer]) -> Iterator[int]:
    """Yield the answers that an earlier answer of their conversation said word for word, without being asked to."""
    said: set[tuple[int, str]] = set()
    for index, answer in enumerate(answers):
        if len(answer.text) < COPY:
            continue
        key = (answer.conversation, answer.text.strip())
        if key in said and not AGAIN.search(answer.prompt):
            yield index
        said.add(key)


def _measure(suspects: Sequence[int], answers: Sequence[Answer]) -> dict[int, Repetition]:
    """Measure the prose of these answers."""
    texts = without_code([answers[index].text for index in suspects])
    loops, prose = find_repeats(texts), find_repeats(without_lists(texts))
    found = {}
    for place, index in enumerate(suspects):
        passage = loops.passages[place]
        times = int(loops.times[place])
        if times > 1 and (not re.search(r"[^\W\d_]", passage) or _was_asked(answers[index].prompt, passage)):
            times, passage = 1, ""
        long = prose.words[place] >= SHORTEST and re.search(r"[^\W\d_]", prose.passages[place])
        share, most = (float(prose.shares[place]), int(prose.most[place])) if long else (0.0, 1)
        if times > 1 or share > 0:
            found[index] = Repetition(times, share, most, passage=passage or prose.passages[place])
    return found


def _was_asked(prompt: str, passage: str) -> bool:
    """Return whether a prompt has the passage and asks for its repetition."""
    start = " ".join(passage.casefold().split())[:40]
    return start in " ".join(prompt.casefold().split()) and ASKED.search(prompt) is not None
