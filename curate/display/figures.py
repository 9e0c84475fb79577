"""Format numbers for reports, pages and progress lines: counts, shares, losses, sizes and times."""

from __future__ import annotations

GIB, MIB, KIB = 2**30, 2**20, 2**10
MB = 10**6


def number(value: float) -> str:
    """Return a number with thousands separators: 1,234, or 1,234.5 for a float."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def significant(value: float) -> str:
    """Return a measured value with four significant digits: 0.0001235, 12.35, 12,346."""
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def loss(value: float, *, signed: bool = False) -> str:
    """Return a loss with four decimals; `signed` shows the sign of a change."""
    return f"{value:+.4f}" if signed else f"{value:.4f}"


def ratio(part: float, total: float) -> float:
    """Return part / total, or 0 if the total is 0."""
    return part / total if total else 0.0


def percent(part: float, total: float = 1.0, *, digits: int = 1, signed: bool = False) -> str:
    """Return a share in percent, with `digits` decimals: 12.5 %; `signed` shows the sign of a change."""
    return f"{100 * ratio(part, total):{'+' if signed else ''},.{digits}f} %"


def mb(size: float) -> str:
    """Return bytes in MB, without the unit: 1,234.5."""
    return f"{size / MB:,.1f}"


def gib(size: float) -> str:
    """Return bytes in GiB, without the unit: 0.52, 79.6."""
    value = size / GIB
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def duration(seconds: float) -> str:
    """Return 8 s, 3:07 min or 2:05 h."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    return f"{total // 60}:{total % 60:02} min" if total < 3600 else f"{total // 3600}:{total % 3600 // 60:02} h"


def plural(count: int, noun: str, plural_form: str = "") -> str:
    """Return the singular for a count of 1, else the plural."""
    return noun if count == 1 else plural_form or f"{noun}s"
