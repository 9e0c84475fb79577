"""Phrases of answers in eight languages, as data: how an answer declines, and how a model says what it is.

A phrase is plain text with three marks: `{list}` is any text of that list of its file, `[{list}]` may be missing, and
`…` is up to 60 characters. Phrases are compared with normalized sentences, so case, punctuation and white space do not
matter, nor do spaces between words in Chinese, Japanese and Korean.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

LANGUAGES = ("en", "ko", "zh", "ja", "es", "de", "fr", "pt")
UNSPACED = frozenset({"ko", "zh", "ja"})
GAP = ".{0,60}"
ANCHORS = ("ai", "sorry", "lack", "cannot", "understand", "unable", "provide")  # lists by how rare their texts are

TOKEN = re.compile(r"\[\{(\w+)\}\]|\{(\w+)\}|(…)|([^{}\[\]…]+)")
PUNCTUATION = re.compile(r"[^\w'.?!]+|_")
END = re.compile(r"[.?!]+")
CONTRACTIONS = {
    "can't": "cannot",
    "can not": "cannot",
    "won't": "will not",
    "n't": " not",
    "i'm": "i am",
    "i'd": "i would",
    "i'll": "i will",
    "it's": "it is",
    "that's": "that is",
    "you're": "you are",
}
# what stands between words, as a space: for a first look at many texts, before `normalize`
SEPARATORS = ',.;:!?()[]{}*_\n\t\u00a0"“”—–-，、。！？'
PLAIN = {
    "’": "'",
    "ß": "ss",
    **{mark + " ": " " for mark in SEPARATORS},
    **dict.fromkeys(SEPARATORS, " "),
    "  ": " ",
    "   ": " ",
}


def normalize(text: str, unspaced: bool = False) -> str:
    """Return a sentence in lower case, with one space between words and around it, and contractions written out.

    Of punctuation only the full stop is left; with `unspaced`, neither that nor a space.
    """
    text = text.lower().replace("’", "'").replace("ß", "ss")
    if unspaced:
        return "".join(re.findall(r"\w+", text))
    for short, full in CONTRACTIONS.items():
        if short in text:
            text = text.replace(short, full)
    text = END.sub(" . ", PUNCTUATION.sub(" ", text)).replace("'", " ")
    return f" {' '.join(text.split())} "


@dataclass(frozen=True)
class Phrase:
    """A phrase of a language and a class; `lists` are those of its file."""

    language: str
    kind: str
    text: str
    lists: Mapping[str, tuple[str, ...]]

    @property
    def pattern(self) -> str:
        """The regular expression for normalized sentences, in syntax that Python and Polars share."""
        space = "" if self.language in UNSPACED else " "
        parts: list[str] = []
        for optional, name, gap, text in TOKEN.findall(self.text):
            if optional:
                parts.append(f"(?:{self._alternation(optional)}{space})?")
            elif gap:
                parts.append(GAP)
            else:
                parts.append((self._alternation(name) if name else self._literal(text)) + space)
        return space + "".join(part for part in parts if part.strip() or part == "").replace("  ", " ")

    def _literal(self, text: str) -> str:
        return re.escape(self._normal(text)).replace(r"\ ", " ")

    def _alternation(self, name: str) -> str:
        return "(?:" + "|".join(sorted(map(self._literal, self.lists[name]), key=lambda each: (-len(each), each))) + ")"

    def _normal(self, text: str) -> str:
        return normalize(text, self.language in UNSPACED).strip()

    @property
    def stems(self) -> tuple[str, ...]:
        """Texts of which a normalized sentence must have one for the phrase to match it."""
        choices: list[tuple[str, tuple[str, ...]]] = []  # name of a list, and its texts after the words before it
        before = ""
        for optional, name, gap, text in TOKEN.findall(self.text):
            texts = self.lists[name] if name else (text,)
            if not optional and not gap:
                choices.append((name, tuple(self._normal(before + each).removesuffix(" .") for each in texts)))
            before = "" if name or optional or gap else text
        anchors = [texts for anchor in ANCHORS for name, texts in choices if name == anchor]
        return anchors[0] if anchors else max((texts for _, texts in choices), key=lambda texts: min(map(len, texts)))

    def expansions(self) -> Iterator[str]:
        """Yield texts that the phrase must match: each text of each of its lists once, with no optional part."""
        text = re.sub(r"\[[^\]]*\]\s?", "", self.text).replace("…", " ")
        names = re.findall(r"\{(\w+)\}", text)
        first = {name: self.lists[name][0] for name in names}
        if not names:
            yield text
        for name in names:
            for choice in self.lists[name]:
                yield text.format(**{**first, name: choice})


@functools.cache
def read(section: str) -> tuple[Phrase, ...]:
    """Return the phrases of a section (`refusals`, `identity`) in all languages."""
    return tuple(phrase for language in LANGUAGES for phrase in _read(language, section))


def _read(language: str, section: str) -> Iterator[Phrase]:
    source = resources.files(__package__).joinpath(f"{language}.toml")
    data = tomllib.loads(source.read_text("utf-8"))
    lists = {name: tuple(texts) for name, texts in data["lists"].items()}
    for kind, texts in data[section].items():
        yield from (Phrase(language, kind, text, lists) for text in texts)


@functools.cache
def patterns(section: str, language: str) -> dict[str, str]:
    """Return a pattern for each class of a section, in one language."""
    kinds: dict[str, list[str]] = {}
    for phrase in read(section):
        if phrase.language == language:
            kinds.setdefault(phrase.kind, []).append(phrase.pattern)
    return {kind: "|".join(parts) for kind, parts in kinds.items()}


@functools.cache
def stems(section: str) -> dict[str, tuple[str, ...]]:
    """Return, for each language, texts of which one is in every sentence that a phrase matches."""
    return {
        language: tuple(sorted({stem for each in read(section) if each.language == language for stem in each.stems}))
        for language in LANGUAGES
    }
