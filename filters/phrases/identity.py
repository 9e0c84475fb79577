"""Sentences of answers in which a model says who made it, what it is, or when its knowledge ends; and cutting them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from curate.filters import phrases
from curate.filters.phrases.recall import recall

NOT_OWN = r'["“”«»「」『』|`#>:：<{]'  # what follows one of these is not the assistant's own sentence
SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s|\Z)|[。！？]+|$)", re.MULTILINE)
FOREIGN = re.compile(r"```.*?(?:```|\Z)|^(?:[>|]| {4}|\t).*$", re.DOTALL | re.MULTILINE)  # code and quotations
CLAUSE = re.compile(r"[^,，、]{2,120}[,，、]\s*(?=\S)")
NOBODY: phrases.More = (("name", ("\0",)), ("maker", ("\0",)))  # for phrases that need no name
LIMITS = {"refusal", "capability", "ai"}
AND = re.compile(r"(?:and|so|which|y|und|et|e|并且|而且)\b", re.IGNORECASE)  # the clause before it is no introduction
CONNECTIVE = re.compile(
    r"(?:however|nevertheless|nonetheless|that said|still|but|instead|sin embargo|no obstante|aun así|jedoch|"
    r"allerdings|dennoch|cependant|toutefois|néanmoins|no entanto|porém|contudo|但是|不过|然而|不過|しかし|ですが|"
    r"하지만|그러나)(?:[,，、]\s*|\s+|(?=[^\x00-\x7f]))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sentence:
    """A sentence of an answer, from `start` to `stop`, with the classes of phrases that it has."""

    start: int
    stop: int
    text: str
    kinds: frozenset[str]


@recall
def find_sentences(answers: pl.Series, names: Sequence[str], makers: Sequence[str]) -> list[list[Sentence]]:
    """Return the sentences of each answer that have a phrase of identity: claim, disclaimer or cutoff."""
    more: phrases.More = (("name", tuple(names)), ("maker", tuple(makers)))
    spaced, unspaced = _words(more)
    rows = [(row, *sentence) for row in _rows(answers, spaced, unspaced) for sentence in _split(answers[row])]
    chosen = [rows[index] for index in _rows(pl.Series([text for *_, text in rows], dtype=pl.String), spaced, unspaced)]
    own = [re.split(NOT_OWN, text, maxsplit=1)[0] for *_, text in chosen]
    found: list[list[Sentence]] = [[] for _ in range(len(answers))]
    for (row, start, stop, text), kinds in zip(chosen, phrases.find(own, "identity", more), strict=True):
        if kinds:
            found[row].append(Sentence(start, stop, text, frozenset(kinds)))
    return found


@functools.cache
def _words(more: phrases.More) -> tuple[list[str], list[str]]:
    """Return texts of which a sentence with a phrase has one: as they may be written, and without spaces."""
    spaced: set[str] = set()
    unspaced: set[str] = set()
    for phrase in phrases.read("identity", more):
        if phrase.language in phrases.UNSPACED:
            unspaced.update(phrase.stems)
        else:
            spaced.update(variant for text in phrase.raw_stems for variant in _spellings(text))
    return sorted(spaced), sorted(unspaced)


def _spellings(text: str) -> set[str]:
    """Return a text with and without contractions, with both apostrophes, and with a capital letter."""
    short = text.lower().replace("i am", "i'm").replace("do not", "don't")
    straight = {text.lower(), short, short[:1].upper() + short[1:]}
    return straight | {each.replace("'", "’") for each in straight}


def _rows(texts: pl.Series, spaced: list[str], unspaced: list[str]) -> list[int]:
    """Return the rows of texts that have one of these words."""
    text = pl.col("text")
    frame = pl.DataFrame({"text": texts}).with_row_index("row")
    if frame.is_empty():
        return []
    rows = set(frame.filter(text.str.contains_any(spaced, ascii_case_insensitive=True))["row"])
    east_asian = frame.filter(text.str.contains(phrases.EAST_ASIAN))
    if not east_asian.is_empty():
        joined = text.str.to_lowercase().str.replace_all(r"\W+", "")
        rows.update(east_asian.filter(joined.str.contains_any(unspaced))["row"])
    return sorted(rows)


def _split(answer: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, stop and text of the sentences outside code and quotations."""
    own = FOREIGN.sub(lambda match: "\n" * len(match.group()), answer)
    for match in SENTENCE.finditer(own):
        yield match.start(), match.end(), match.group()


def cut(answer: str, sentences: Sequence[Sentence]) -> str:
    """Return the answer without these sentences, or without their first clause if the rest of one says something.

    "As an AI language model, I think that X" becomes "I think that X"; "As an AI, I cannot do that" is cut whole.
    """
    parts: list[str] = []
    position = 0
    for sentence, stop in zip(sentences, _introductions(sentences), strict=True):
        parts.append(answer[position : sentence.start])
        position = sentence.start + stop if stop else _after(answer, sentence)
        connective = CONNECTIVE.match(answer, position)
        position = connective.end() if connective else position
        if (stop or connective) and not answer[position + 1 : position + 2].isupper():  # not iPhone
            parts.append(answer[position : position + 1].upper())
            position += 1
    return "".join((*parts, answer[position:])).strip()


def _introductions(sentences: Sequence[Sentence]) -> list[int]:
    """Return where the clause ends that is to be cut off each sentence; 0 if the whole sentence is to be cut."""
    clauses = [CLAUSE.match(sentence.text) for sentence in sentences]
    limits = phrases.find([sentence.text for sentence in sentences], "refusals")
    known = phrases.find([clause.group() + " I" if clause else "" for clause in clauses], "identity", NOBODY)
    return [
        clause.end() if clause and kinds and not found & LIMITS and not AND.match(sentence.text, clause.end()) else 0
        for sentence, clause, found, kinds in zip(sentences, clauses, limits, known, strict=True)
    ]


def _after(answer: str, sentence: Sentence) -> int:
    """Return where the text goes on after a sentence that is cut, and the spaces or empty lines that it leaves."""
    rest = re.compile(r"[ \t]*").match(answer, sentence.stop)
    stop = rest.end() if rest else sentence.stop
    alone = sentence.start == 0 or answer[sentence.start - 1] == "\n"
    lines = re.compile(r"\n+").match(answer, stop) if alone else None
    return lines.end() if lines else stop
