"""Format numbers for reports, pages and progress lines: counts, shares, losses, sizes and times."""

from __future__ import annotations

from collections.abc import Mapping

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


def size(value: float) -> str:
    """Return bytes with the unit that fits them: 512 bytes, 3.4 MiB, 79.6 GiB."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if value >= unit:
            return f"{value / unit:,.1f} {name}"
    return f"{value:,.0f} {plural(round(value), 'byte')}"


def gib_parts(parts: Mapping[str, int]) -> tuple[str, dict[str, str]]:
    """Return the sum of parts in bytes, and each part, in GiB: what is shown sums exactly to the sum that is shown.

    Parts are rounded by largest remainder; those that come to 0 are left out.
    """
    total = sum(parts.values())
    digits = 2 if total < 10 * GIB else 1
    units = {name: part * 10**digits / GIB for name, part in parts.items()}
    whole = {name: int(value) for name, value in units.items()}
    missing = round(sum(units.values())) - sum(whole.values())
    for name in sorted(units, key=lambda name: whole[name] - units[name])[: max(missing, 0)]:
        whole[name] += 1
    shown = {name: f"{count / 10**digits:,.{digits}f}" for name, count in whole.items() if count}
    return f"{sum(whole.values()) / 10**digits:,.{digits}f}", shown


def spoken_duration(seconds: float) -> str:
    """Return a long time as people say it: 40 seconds, 12 minutes, 3.2 hours, 5.4 days, 65 years."""
    _, unit, name = next(step for step in _SPOKEN if seconds < step[0])
    value = seconds / unit
    text = f"{value:.1f}" if value < 10 and unit > 1 else f"{value:,.0f}"
    return f"{text.removesuffix('.0')} {name if text in ('1', '1.0') else name + 's'}"


_MINUTE, _HOUR, _DAY, YEAR = 60, 3_600, 86_400, 31_557_600  # seconds
# Up to so many seconds, times are given in this unit.
_SPOKEN = (
    (1.5 * _MINUTE, 1, "second"),
    (1.5 * _HOUR, _MINUTE, "minute"),
    (1.5 * _DAY, _HOUR, "hour"),
    (YEAR, _DAY, "day"),
    (float("inf"), YEAR, "year"),
)


def duration(seconds: float) -> str:
    """Return 8 s, 3:07 min or 2:05 h."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    return f"{total // 60}:{total % 60:02} min" if total < 3600 else f"{total // 3600}:{total % 3600 // 60:02} h"


def plural(count: int, noun: str, plural_form: str = "") -> str:
    """Return the singular for a count of 1, else the plural."""
    return noun if count == 1 else plural_form or f"{noun}s"
