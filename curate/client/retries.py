"""When a request is repeated, and how long to wait before."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

REFUSED_ALL = (401, 402, 403, 404, 405, 407)  # whatever is asked, the server will say the same
BUSY = (408, 409, 425, 429, 502, 503, 504)  # the server cannot answer now
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds


@dataclass(frozen=True)
class Failure:
    """A failed attempt: why; whether to try again; whether the server, and not the request, is at fault."""

    error: str
    again: bool
    server: bool
    wait: float = 0.0  # seconds that the server asks for


def classify(status: int, headers: Mapping[str, str], error: str) -> Failure:
    """Return what a status other than 200 means."""
    shown = f"{status}: {error}" if error else str(status)
    if status in BUSY:
        return Failure(shown, True, True, read_retry_after(headers))
    if status >= 500:
        return Failure(shown, True, False, read_retry_after(headers))
    return Failure(shown, False, status in REFUSED_ALL or status < 400)


def read_retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, given as seconds, milliseconds or a date; 0 if it does not."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) / unit
            return seconds if 0 < seconds < 1e9 else 0.0
        except ValueError:
            pass
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            continue
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return 0.0


def wait_before(attempt: int, asked: float, chance: random.Random) -> float:
    """Return the seconds to wait before attempt 2, 3, …: longer each time, with jitter, and no less than asked for."""
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1))
    return asked + chance.uniform(longest / 2, longest)
