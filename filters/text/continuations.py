"""Join an answer that was cut off and the answer that goes on after "continue"."""

from __future__ import annotations

import re

from curate.filters.text.endings import BREAKS_OFF, find_cut, last_block

REACH = 400  # characters at the end of an answer that the next one may say again
SAME = 8  # characters that must be the same for that

_FULL = re.compile(r"[.!?…。！？．؟۔।:：;；)\]}\"'”’»」』`|*_~>-]\s*$")
_LEAD = re.compile(  # "Sure, here is the rest of the code:"
    r"(?:(?:sure|certainly|of course|absolutely|okay|yes|sorry|apologies|my apologies|i apologi[sz]e)\b"
    r"[^\n:]{0,160})?"
    r"(?:here(?:['’]s| is| are)|continuing|to continue|this is|below is)?\b[^\n:]{0,100}"
    r"\b(?:rest|remaind\w+|remaining|continu\w+|left off|missing part)\b[^\n:]{0,100}(?::|\.(?=\n))\s*",
    re.IGNORECASE,
)
_DECLINES = re.compile(
    r"(?:i(?:['’]m| am) (?:sorry|afraid)|sorry|i apologi[sz]e|unfortunately)[^\n]{0,120}"
    r"\b(?:can(?:['’]t|not)|unable|limit|already|no more|do(?:n['’]t| not))\b",
    re.IGNORECASE,
)
_OPENING_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})[^\n`]*\n")
_CLOSING_FENCE = re.compile(r"\n[ \t]*(?:`{3,}|~{3,})[ \t]*$")
_NEW = re.compile(  # a list, a heading, a table, or an answer of its own
    r"(?:[-*+•#|]|\d{1,3}[.)])\s|\||(?:sure|certainly|of course|absolutely|okay|yes|sorry|apologies)\b", re.IGNORECASE
)
_NUMBER = re.compile(r"\d{1,3}[.)] \(continued\)\s*")
LEAST = 20  # characters of an answer that goes on


def join_answers(first: str, second: str) -> str | None:
    """Return both answers as one; None if the first was not cut off, or the second does not clearly go on with it."""
    first = first.rstrip()
    if len(first) < LEAST or not second.strip() or _DECLINES.match(second.lstrip()[:REACH]):
        return None
    start, stop = last_block(first)
    if start is not None and (stop is None or stop == len(first)):
        return _join_code(first, second, closed=stop is not None)
    if find_cut(first) is None and _FULL.search(first):
        return None
    return _join_prose(first, second)


def _join_code(first: str, second: str, *, closed: bool) -> str | None:
    """Join code: a fence that closes the first part and one that opens the second are left out."""
    if closed and find_cut(first) is None:
        return None
    body, led = _without_lead(second)
    fence = _OPENING_FENCE.match(body)
    if closed and not fence:
        return None  # what follows may be code or text
    if not fence and led:
        return None
    code = body[fence.end() :] if fence else body
    whole = _CLOSING_FENCE.sub("", first) if closed else first
    overlap = _overlap(whole, code)
    if overlap is None and (_begins_again(whole, code) or (led and not code[:1].isspace() and code[:1] not in ")]}")):
        return None
    if overlap:
        return whole + code[overlap:]
    tight = whole[-1] in "([{.\"'_" or code[:1] in ".,;)]}"
    return whole + ("" if tight else "\n") + code


def _join_prose(first: str, second: str) -> str | None:
    body, led = _without_lead(second)
    overlap = _overlap(first, body)
    if overlap:
        return first + body[overlap:]
    body = _NUMBER.sub("", body, count=1)
    if _begins_again(first, body) or _NEW.match(body) or (led and not body[:1].islower()):
        return None
    cut = find_cut(first)
    if body[:1].isupper() and not (cut and cut.reason == BREAKS_OFF):
        return None  # a sentence of its own, it seems
    return first + _joint(first, body) + body


def _without_lead(text: str) -> tuple[str, bool]:
    """Return an answer without a first line such as "Here is the rest:", and whether it had one."""
    words = text.lstrip()
    lead = _LEAD.match(words[:REACH])
    return (words[lead.end() :], True) if lead else (text.lstrip("\n"), False)


def _overlap(first: str, second: str) -> int | None:
    """Return how many characters at the start of the second text end the first; case does not matter."""
    tail, head = first[-REACH:].lower(), second[:REACH].lower()
    if len(tail) != len(first[-REACH:]) or len(head) != len(second[:REACH]):
        return None
    sizes = range(min(len(tail), len(head)), SAME - 1, -1)
    return next((size for size in sizes if tail.endswith(head[:size])), None)


def _begins_again(first: str, second: str) -> bool:
    """Return whether the first long line of the second text is in the first one: it says it again."""
    line = next((line.strip() for line in second[:2000].splitlines() if len(line.strip()) >= 3 * SAME), "")
    return bool(line) and line in first


def _joint(first: str, second: str) -> str:
    """Return what stands between the end of a text and what goes on with it."""
    before, after = first[-1], second[:1]
    if (
        after in ".,;:!?)]}%’'"
        or "\u3000" <= before <= "\u9fff"
        or "\u3000" <= after <= "\u9fff"
        or before in "([{“‘-/"
    ):
        return ""
    if after.islower() and before.isalpha():
        word = re.split(r"\W", first)[-1] + re.split(r"\W", second, maxsplit=1)[0]
        parts = re.findall(r"\w+", first[: -len(word)] + second)
        return "" if len(word) > 3 and word.lower() in map(str.lower, parts) else " "
    return " "
