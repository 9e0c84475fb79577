"""The prompts of the judge, and what its replies say."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

from curate.arena.prompts import Chat

Verdict = Literal["A", "B", "C"]
LOWEST, HIGHEST = 1.0, 10.0
_BRACKETS = re.compile(r"\[\[\s*([^\[\]]{1,40}?)\s*\]\]")
_RATING = re.compile(r"\d{1,2}(?:\.\d{1,2})?")


@cache
def _texts() -> dict[str, str]:
    return {key: str(text).strip() for key, text in tomllib.loads(_source()).items()}


@cache
def _source() -> str:
    return (files("curate.judging") / "prompts.toml").read_text("utf-8")


def prompts_hash() -> str:
    """Return the hash of all prompts: figures of other prompts cannot be compared."""
    return hashlib.sha256(_source().encode()).hexdigest()[:16]


def single_messages(chat: Chat, turn: int, reference: str | None) -> list[dict[str, str]]:
    """Return the request for the rating of one answer; turns count from 1."""
    return _messages("single", turn, _show(chat, turn, "assistant"), reference, chat.prompt.id)


def pair_messages(first: Chat, second: Chat, turn: int, reference: str | None) -> list[dict[str, str]]:
    """Return the request for the preference between two answers; `first` is shown as A."""
    shown = f"{_show(first, turn, 'assistant A')}\n\n{_show(second, turn, 'assistant B')}"
    return _messages("pair", turn, shown, reference, first.prompt.id)


def _messages(kind: str, turn: int, chat: str, reference: str | None, mark: str) -> list[dict[str, str]]:
    texts = _texts()
    known = _block(f"reference to turn {turn}", reference, mark) if reference is not None else ""
    shown = "\n" + texts["reference"].format(turn=turn, text=known) + "\n" if known else ""
    earlier = texts["earlier"] if turn > 1 else ""
    content = texts[kind].format(turn=turn, earlier=earlier, reference=shown, chat=chat)
    return [{"role": "system", "content": texts["system"]}, {"role": "user", "content": content}]


def _show(chat: Chat, turns: int, who: str) -> str:
    mark = chat.prompt.id
    pairs = zip(chat.prompt.turns[:turns], chat.answers[:turns], strict=True)
    return "\n\n".join(
        f"{_block(f'user, turn {number}', asked, mark)}\n\n{_block(f'{who}, answer {number}', answer, mark)}"
        for number, (asked, answer) in enumerate(pairs, 1)
    )


def _block(title: str, text: str, mark: str) -> str:
    return f"===== {title} ({mark}) =====\n{text}\n===== end ({mark}) ====="


# ---- replies


def read_rating(text: str) -> float | None:
    """Return the rating in a reply; None if it has none, one out of range, or several that differ: never a guess."""
    found = {float(each) for each in _BRACKETS.findall(text) if _RATING.fullmatch(each)}
    value = found.pop() if len(found) == 1 else None
    return value if value is not None and LOWEST <= value <= HIGHEST else None


def read_verdict(text: str) -> Verdict | None:
    """Return the verdict in a reply; None if it has none, or several that differ: never a guess."""
    found: Sequence[Verdict] = [each for each in ("A", "B", "C") if each in _BRACKETS.findall(text)]
    return found[0] if len(found) == 1 else None
