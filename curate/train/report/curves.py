"""A run's curves: as SVG for its page, drawn here so that the page needs no script, and as PNG by matplotlib."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from curate.display.text import one_line

Point = tuple[float, float]
POINTS = 600  # of a line at most; longer runs are averaged by buckets
WIDE, SMALL = (960, 300), (470, 230)  # pixels as they are shown, so that letters keep their size
LOOKS = {  # colour, width and dashes of a kind of line in the picture; the page has its own, for light and dark
    "raw": ("#9db4cc", 0.8, "-"),
    "smooth": ("#1f5fa8", 1.8, "-"),
    "tuned": ("#c8541f", 1.4, "-"),
    "base": ("#777777", 1.4, "--"),
}
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34


@dataclass(frozen=True)
class Line:
    """One curve: `kind` names its looks (`raw`, `smooth`, `tuned`, `base`); `dots` marks its points."""

    name: str
    kind: str
    points: Sequence[Point]
    dots: bool = False


def smoothed(points: Sequence[Point], weight: float = 0.9) -> list[Point]:
    """Return the exponential mean of a curve, free of the pull of its start (as Adam's is)."""
    out, mean = [], 0.0
    for count, (x, y) in enumerate(points, 1):
        mean = weight * mean + (1 - weight) * y
        out.append((x, mean / (1 - weight**count)))
    return out


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """Return at most so many points, each the mean of its bucket; values that are no numbers are left out."""
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(kept) <= most:
        return kept
    size = len(kept) / most
    buckets = [kept[round(i * size) : round((i + 1) * size)] for i in range(most)]
    return [(sum(x for x, _ in one) / len(one), sum(y for _, y in one) / len(one)) for one in buckets if one]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that span low to high, some `count` of them."""
    least = max(abs(low), abs(high)) * 1e-6 or 1.0  # below that, a curve is as good as flat
    high = max(high, low + least)
    size = math.floor(math.log10((high - low) / count))
    factor = next((factor for factor in (1, 2, 5) if (high - low) / (factor * 10.0**size) <= count), 10)
    step = factor * 10.0**size
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 2 - size) for number in range(first, last + 1)]


def svg(lines: Sequence[Line], title: str, *, size: tuple[int, int] = WIDE, x_name: str = "step") -> str:
    """Draw curves over steps; an empty text where there is nothing to draw."""
    width, height = size
    drawn = [Line(line.name, line.kind, thinned(line.points), line.dots) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    across, up = ticks(min(xs), max(xs), width // 90), ticks(min(ys), max(ys))
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1)

    def at(x: float, y: float) -> Point:
        return (
            LEFT + (x - low_x) / (high_x - low_x) * (width - LEFT - RIGHT),
            height - BOTTOM - (y - up[0]) / (up[-1] - up[0]) * (height - TOP - BOTTOM),
        )

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for y in up:
        level = at(low_x, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{short(y)}</text>')
    for x in across:
        if low_x <= x <= high_x:
            parts.append(
                f'<text x="{at(x, up[0])[0]:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{short(x)}</text>'
            )
    parts.append(f'<text x="{width - RIGHT}" y="{height - 4}" text-anchor="end">{escape(x_name)}</text>')
    parts += [_drawn(line, [at(x, y) for x, y in line.points]) for line in drawn]
    return "".join([*parts, "</svg>"])


def _drawn(line: Line, places: Sequence[Point]) -> str:
    kind = escape(line.kind)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    if len(places) == 1:
        return marks
    return f'<polyline class="{kind}" points="{path}"/>' + (marks if line.dots else "")


def short(value: float) -> str:
    """Write a tick: 12,000 as 12k, 0.00002 as 2e-05."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if letter == "k" else size
            return f"{value / scale:g}{letter}"
    return f"{value:g}"


def png(path: Path, lines: Sequence[Line], title: str) -> None:
    """Draw the same curves into a PNG file; raises ImportError where matplotlib is not installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")  # 1200 × 675 pixels
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for line in lines:
        points = thinned(line.points)
        if points:
            xs, ys = zip(*points, strict=True)
            color, width, style = LOOKS[line.kind]
            marker = "o" if line.dots else ""
            axes.plot(xs, ys, style, label=line.name, marker=marker, markersize=4, color=color, linewidth=width)
    # A run's name is the user's text: matplotlib would read formulas between its dollar signs.
    axes.set_title(one_line(title, 90), fontsize=11, parse_math=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss per trained token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a name in a script that the font lacks
        figure.savefig(path, format="png", metadata={"Software": None})
