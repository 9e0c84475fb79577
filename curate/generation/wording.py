"""What curate says to models, and the seed tasks of its own: data of this package."""

from __future__ import annotations

import hashlib
import re
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from curate.errors import InputError, did_you_mean

_HAN = re.compile("[一-鿿]")  # written without blanks between words


@cache
def _source() -> str:
    return (resources.files(__package__) / "prompts.toml").read_text("utf-8")


@cache
def wording() -> dict[str, Any]:
    """Return the texts of `prompts.toml`."""
    return tomllib.loads(_source())


def prompts_hash() -> str:
    """Return the hash of curate's own prompts: with another wording, the data differ."""
    return hashlib.sha256(_source().encode()).hexdigest()[:16]


def check_languages(languages: tuple[str, ...]) -> tuple[str, ...]:
    """Return languages by their codes, each once; raises InputError for one that has no seeds."""
    known = wording()["languages"]
    for code in languages:
        if code not in known:
            raise InputError(f"no seeds in the language {code!r}{did_you_mean(code, known)}")
    return tuple(dict.fromkeys(languages)) or ("en",)


def seeds_text(language: str) -> str:
    """Return the seed tasks of a language, as JSON lines."""
    return (resources.files(__package__) / "seeds" / f"{language}.jsonl").read_text("utf-8")


@cache
def blocked_words(language: str) -> re.Pattern[str]:
    """Return what finds words of tasks that text alone cannot do; all languages' for one without a list."""
    lists: dict[str, list[str]] = wording()["blocked"]
    found = lists.get(language) or [word for each in lists.values() for word in each]
    patterns = [re.escape(word) if _HAN.match(word) else rf"\b{re.escape(word)}\b" for word in found]
    return re.compile("|".join(patterns), re.IGNORECASE)


def fill(text: str, **values: object) -> str:
    """Fill in the names of a text; braces in the values stay."""
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), text).strip()
