"""Phrases of answers in eight languages, as data: how an answer declines, and how a model says what it is.

A phrase is plain text with four marks: `{list}` is any text of that list of its section, `[{list}]` may be missing,
`…` is up to 60 characters, and `^` is the start of the sentence. Phrases are compared with normalized sentences: case,
punctuation and white space do not matter, nor spaces between words in Chinese, Japanese and Korean.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

LANGUAGES = ("en", "ko", "zh", "ja", "es", "de", "fr", "pt")
UNSPACED = frozenset({"ko", "zh", "ja"})
EAST_ASIAN = "[぀-ヿ㐀-鿿가-힣]"
GAP = ".{0,60}"
ANCHORS = (
    "ai",
    "as_ai",
    "own",
    "sorry",
    "lack",
    "cannot",
    "understand",
    "unable",
    "provide",
)  # lists by how rare their texts are

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
    """A phrase of a language and a class; `lists` are those of its section."""

    language: str
    kind: str
    text: str
    lists: Mapping[str, tuple[str, ...]]

    @property
    def pattern(self) -> str:
        """The regular expression for normalized sentences, in syntax that Python and Polars share."""
        space = "" if self.language in UNSPACED else " "
        parts: list[str] = []
        for optional, name, gap, text in TOKEN.findall(self.text.removeprefix("^")):
            if optional:
                parts.append(f"(?:{self._alternation(optional)}{space})?")
            elif gap:
                parts.append(GAP)
            else:
                parts.append((self._alternation(name) if name else self._literal(text)) + space)
        start = "^" if self.text.startswith("^") else ""
        return start + space + "".join(part for part in parts if part.strip() or part == "").replace("  ", " ")

    def _literal(self, text: str) -> str:
        return re.escape(self._normal(text)).replace(r"\ ", " ")

    def _alternation(self, name: str) -> str:
        return "(?:" + "|".join(sorted(map(self._literal, self.lists[name]), key=lambda each: (-len(each), each))) + ")"

    def _normal(self, text: str) -> str:
        return normalize(text, self.language in UNSPACED).strip()

    @property
    def stems(self) -> tuple[str, ...]:
        """Texts of which a normalized sentence must have one for the phrase to match it."""
        return tuple(self._normal(text).removesuffix(" .") for text in self.raw_stems)

    @property
    def raw_stems(self) -> tuple[str, ...]:
        """The same as they are in the file."""
        choices: list[tuple[str, tuple[str, ...]]] = []  # name of a list, and its texts after the words before it
        before = ""
        for optional, name, gap, text in TOKEN.findall(self.text.removeprefix("^")):
            texts = self.lists[name] if name else (text.strip(),)
            if not optional and not gap:
                choices.append((name, tuple(before + each for each in texts)))
            before = "" if name or optional or gap else text
        names = [self.lists[name] for name, _ in choices if name in ("name", "maker")]  # rare by themselves
        anchors = names or [texts for anchor in ANCHORS for name, texts in choices if name == anchor]
        return anchors[0] if anchors else max((texts for _, texts in choices), key=lambda texts: min(map(len, texts)))


More = tuple[tuple[str, tuple[str, ...]], ...]  # further lists, such as the names in a filter's settings


@functools.cache
def read(section: str, more: More = ()) -> tuple[Phrase, ...]:
    """Return the phrases of a section (`refusals`, `identity`) in all languages."""
    return tuple(phrase for language in LANGUAGES for phrase in _read(language, section, more))


def _read(language: str, section: str, more: More) -> Iterator[Phrase]:
    source = resources.files(__package__).joinpath(f"{language}.toml")
    data = tomllib.loads(source.read_text("utf-8"))[section]
    lists = {name: tuple(texts) for name, texts in data.pop("lists").items()} | dict(more)
    for kind, texts in data.items():
        yield from (Phrase(language, kind, text, lists) for text in texts)


@functools.cache
def stems(section: str, more: More = ()) -> dict[str, tuple[str, ...]]:
    """Return, for each language, texts of which one is in every sentence that a phrase matches."""
    found: dict[str, set[str]] = {language: set() for language in LANGUAGES}
    for phrase in read(section, more):
        found[phrase.language].update(phrase.stems)
    return {language: tuple(sorted(texts)) for language, texts in found.items()}


def find(sentences: Sequence[str], section: str, more: More = ()) -> list[set[str]]:
    """Return the classes of which each sentence has a phrase."""
    return [_find(sentence, section, more) for sentence in sentences]


def _find(sentence: str, section: str, more: More) -> set[str]:
    found: set[str] = set()
    for unspaced in (False, True) if re.search(EAST_ASIAN, sentence) else (False,):
        text = normalize(sentence, unspaced)
        index = _by_beginning(section, more, unspaced)
        for beginning in {"", *(text if unspaced else text.split())}:
            for stem, kind, pattern in index.get(beginning, ()):
                if kind not in found and stem in text and _compile(pattern).search(text):
                    found.add(kind)
    return found


@functools.cache
def _by_beginning(section: str, more: More, unspaced: bool) -> dict[str, list[tuple[str, str, str]]]:
    """Return stem, class and pattern of phrases by the stem's first word, or by its first letter without spaces."""
    index: dict[str, list[tuple[str, str, str]]] = {}
    for phrase in read(section, more):
        if (phrase.language in UNSPACED) is unspaced:
            pattern = phrase.pattern
            for stem in phrase.stems:
                beginning = stem[:1] if unspaced else stem.partition(" ")[0]
                index.setdefault(beginning, []).append((stem, phrase.kind, pattern))
    return index


@functools.cache
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
