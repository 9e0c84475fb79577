"""Find personal data and secrets in texts, by the rules of `rules.toml`.

Polars searches all texts of a batch for what any value has in it, which one text in a hundred does; these it searches
for the triggers of each group of rules, and Python finds the values in what is left.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import polars as pl

from curate.filters.personal_data import checks, phones
from curate.pattern_cache import keep_patterns

Family = Literal["privacy", "secrets"]

BEFORE, AFTER = 40, 20  # characters in which a keyword must be
LONG_REPETITION = re.compile(r"\{\d\d.*")
# two-letter domains are countries'; of the others, those in common use
DOMAINS = (
    "[a-z]{2}|com|org|net|edu|gov|mil|int|info|biz|name|pro|aero|asia|coop|museum|jobs|mobi|travel|app|dev|cloud|tech|"
    "online|site|store|shop|blog|email|live|life|world|today|news|media|agency|digital|design|studio|solutions|company|"
    "group|global|network|systems|software|services|consulting|academy|school|university|health|care|clinic|finance|"
    "bank|legal|law|xyz|top|club|vip|fun|icu|space|website|wiki|ninja|rocks|berlin|london|nyc|paris|tokyo|africa|cat|eu"
)


@dataclass(frozen=True, slots=True)
class ValueRule:
    """One way in which a type of value is written; see `rules.toml`."""

    type: str
    group: str
    trigger: str
    pattern: re.Pattern[str]
    part: int  # the group of the pattern that is the value
    check: checks.Check
    words: Sequence[str] = ()  # patterns
    keywords: re.Pattern[str] | None = None  # any of them
    unless: re.Pattern[str] | None = None  # what may not be right before the value
    trim: bool = False
    hits: Sequence[str] = ()
    misses: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """A value in a text: its rule, and its start and end in characters."""

    rule: ValueRule
    start: int
    end: int


@functools.cache
def _tables() -> Mapping[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("rules.toml").read_text("utf-8"))


@functools.cache
def load_rules() -> Mapping[Family, Sequence[ValueRule]]:
    """Return the rules of each family, in the order of the file: of two that overlap, the earlier value counts."""
    tables = _tables()
    return {"privacy": [*map(_rule, tables["privacy"])], "secrets": [*map(_rule, tables["secrets"])]}


def _rule(table: Mapping[str, Any]) -> ValueRule:
    pattern = re.compile(str(table["pattern"]).replace("{tld}", DOMAINS), re.ASCII)
    name = str(table.get("check", "key"))
    words = table.get("keywords", ())
    return ValueRule(
        type=str(table["type"]),
        group=str(table["group"]),
        trigger=str(table.get("trigger") or LONG_REPETITION.sub("{10}", str(table["pattern"]))),
        pattern=pattern,
        part=0 if table.get("whole") else min(pattern.groups, 1),
        check=getattr(checks, name, None) or getattr(phones, name),
        words=words,
        keywords=re.compile("|".join(words), re.ASCII | re.IGNORECASE) if words else None,
        unless=re.compile(table["unless"], re.ASCII) if "unless" in table else None,
        trim=bool(table.get("trim")),
        hits=table["hits"],
        misses=table["misses"],
    )


def types(family: Family) -> list[str]:
    """Return the names of a family's types, each once."""
    return list(dict.fromkeys(rule.type for rule in load_rules()[family]))


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that Polars searches for together: with few regular expressions, it keeps them compiled."""

    rules: Sequence[ValueRule]
    trigger: str
    keywords: str | None  # one of which a text must have


@functools.cache
def _groups(family: Family) -> Sequence[Group]:
    by_name: defaultdict[str, list[ValueRule]] = defaultdict(list)
    for rule in load_rules()[family]:
        by_name[rule.group].append(rule)
    return [Group(rules, _trigger(rules), _keywords(rules)) for rules in by_name.values()]


def _trigger(rules: Sequence[ValueRule]) -> str:
    return "(?-u)" + "|".join(f"(?:{trigger})" for trigger in dict.fromkeys(rule.trigger for rule in rules))


def _keywords(rules: Sequence[ValueRule]) -> str | None:
    """Return a pattern of all keywords, if each rule has some; ASCII where it can be, which is compiled fast."""
    if not all(rule.keywords for rule in rules):
        return None
    words = [word for rule in rules for word in rule.words]
    return "|".join(f"(?i-u:{word})" if word.isascii() else word.replace(r"\b", r"(?-u:\b)") for word in words)


@keep_patterns
def find(texts: pl.Series, family: Family) -> dict[int, list[Hit]]:
    """Return the values in each text that has any, by its place in the series; those of a text in order."""
    blank = blank_escapes(texts)
    places = _search(blank, family)
    chosen = blank.gather(places)
    found: defaultdict[int, list[Hit]] = defaultdict(list)
    for group in _groups(family) if places else ():
        for index in _with_trigger(group, chosen):
            found[places[index]] += (hit for rule in group.rules for hit in _find_values(rule, chosen[index]))
    return {place: _apart(hits) for place, hits in sorted(found.items()) if hits}


def _search(texts: pl.Series, family: Family) -> list[int]:
    """Return the places of the texts that may have a value."""
    masks = [texts.str.contains(f"(?-u){pattern}") for pattern in _tables()["search"][family]]
    return functools.reduce(operator.or_, masks).fill_null(False).arg_true().to_list()


def _with_trigger(group: Group, texts: pl.Series) -> list[int]:
    """Return the places of the texts that have a trigger of the group, and a keyword if all its rules need one."""
    places = texts.str.contains(group.trigger).arg_true()
    if group.keywords is not None and len(places):
        places = places.filter(texts.gather(places).str.contains(group.keywords))
    return places.to_list()


def blank_escapes(texts: pl.Series) -> pl.Series:
    """Replace escapes of JSON and code (`\\n`, `\\u00e9`) by as many spaces: their letters are not part of a value."""
    escaped = texts.str.contains("\\", literal=True).fill_null(False)
    if not escaped.any():
        return texts
    places = escaped.arg_true()
    blank = texts.gather(places).str.replace_all(r"\\u[0-9a-fA-F]{4}", " " * 6).str.replace_all(r"\\[nrtbf]", "  ")
    return texts.scatter(places, blank)


def _find_values(rule: ValueRule, text: str) -> Iterator[Hit]:
    """Yield the values of a rule in a text, without escapes."""
    for match in rule.pattern.finditer(text):
        start, end = match.span(rule.part)
        if rule.unless is not None and rule.unless.search(text, max(0, start - 2 * BEFORE), start):
            continue
        if rule.keywords is None or _is_near(rule.keywords, text, start, end):
            end = _valid_end(rule, text, start, end)
            if end > start:
                yield Hit(rule, start, end)


def _is_near(keywords: re.Pattern[str], text: str, start: int, end: int) -> bool:
    return bool(keywords.search(text[max(0, start - BEFORE) : start]) or keywords.search(text[end : end + AFTER]))


def _valid_end(rule: ValueRule, text: str, start: int, end: int) -> int:
    """Return the end of the value, if the rule trims that of its longest valid beginning; `start` if none is valid."""
    while end > start:
        if rule.check(text[start:end]):
            return end
        if not rule.trim:
            break
        end = start + max(text.rfind(mark, start, end) - start for mark in " -(")
        while end > start and text[end - 1] in " -(":
            end -= 1
    return start


def _apart(hits: Sequence[Hit]) -> list[Hit]:
    """Return the values in order, of those that overlap the one whose rule comes first."""
    taken: list[Hit] = []
    for hit in sorted(hits, key=lambda hit: hit.start):  # stable: in the order of the rules where they start together
        if taken and hit.start < taken[-1].end:
            continue
        taken.append(hit)
    return taken


def hash_key(texts: Sequence[str]) -> bytes:
    """Return the key of a conversation's hashes: who has only a report cannot compute it."""
    return hashlib.blake2b("\x00".join(texts).encode("utf-8", "surrogatepass"), digest_size=32).digest()


def hash_value(value: str, key: bytes) -> str:
    """Return 16 bits of a value's keyed hash: too few to find the value by trying all."""
    return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), key=key, digest_size=2).hexdigest()
