"""How figures are formatted; no terminal report truncates one."""

from __future__ import annotations

import ast
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import RenderableType
from rich.text import Text

import curate
from curate.analysis.comparison import Comparison
from curate.analysis.stats import Stats
from curate.display import figures
from curate.display import terminal as tables
from curate.display import text as terminal
from curate.filters import registry
from curate.pipeline import recipe
from curate.report.terminal import explain, summary
from curate.report.terminal import lists as terminal_lists
from curate.report.terminal.compare import render_comparison
from curate.report.terminal.conversations import SafeMarkdown, render_conversation, render_mask
from curate.report.terminal.doctor import render_doctor
from curate.report.terminal.stats import render_stats
from curate.schemas.formats import FORMATS
from tests.support import ROOT
from tests.support.small_set import grown
from tests.test_architecture import modules

EXAMPLE = ROOT / "examples/sharegpt_dump.json"
FIGURE = re.compile(r"(?<![\w.-])[+-]?\d[\d,.]*(?![\w.])")
CUT = re.compile(r"\d[,.]?…")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (figures.number(1234567), "1,234,567"),
        (figures.number(1234.56), "1,234.6"),
        (figures.significant(0.000123456), "0.0001235"),
        (figures.significant(12345.6), "12,346"),
        (figures.loss(0.5), "0.5000"),
        (figures.loss(0.5, signed=True), "+0.5000"),
        (figures.percent(1, 8), "12.5 %"),
        (figures.percent(0.125), "12.5 %"),
        (figures.percent(1, 0), "0.0 %"),
        (figures.percent(1, digits=0), "100 %"),
        (figures.percent(0.000604, digits=2), "0.06 %"),
        (figures.percent(13.2967, digits=2), "1,329.67 %"),
        (figures.percent(-1, 8, signed=True), "-12.5 %"),
        (figures.percent(12.5, signed=True), "+1,250.0 %"),
        (figures.mb(1_234_567_890), "1,234.6"),
        (figures.gib(2**29), "0.50"),
        (figures.gib(2**40), "1,024.0"),
        (figures.plural(1, "copy", "copies"), "copy"),
        (figures.plural(2, "row"), "rows"),
    ],
)
def test_each_kind_of_figure_has_one_format(written: str, expected: str) -> None:
    assert written == expected


def percents_in(source: str) -> Iterator[int]:
    """Yield the line of each percentage that an f-string formats itself: `{x:.1%}`, `{x}%` or `{x} %`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            for value, text in itertools.pairwise([*node.values, ast.Constant("")]):
                if isinstance(value, ast.FormattedValue) and (
                    (value.format_spec and ast.unparse(value.format_spec).rstrip("'\"").endswith("%"))
                    or (isinstance(text, ast.Constant) and str(text.value).lstrip().startswith("%"))
                ):
                    yield node.lineno


def test_percentages_are_formatted_in_one_place() -> None:
    assert list(percents_in("f'{a:.2%}'; f'{a}%'; f'{a:,.1f} %'; f'{a:.2f}'; f'{a} of 100 %'")) == [1, 1, 1]
    wrong = [
        f"{module}:{line}"
        for module, path in modules().items()
        if module != "curate.display.figures"
        for line in percents_in(path.read_text("utf-8"))
    ]
    assert wrong == []


# ---- terminal reports


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sets")
    for name in ("vicuna", "fastchat"):
        curate.clean(EXAMPLE, folder / name, recipe=name, workers=1)
    return folder / "vicuna", folder / "fastchat"


def text(renderable: RenderableType, width: int) -> str:
    file = io.StringIO()
    terminal.console(file=file, width=width).print(renderable, crop=False)
    return file.getvalue()


@pytest.fixture(autouse=True)
def short_paths(sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the sets by relative paths: a temporary folder has figures in its path, and a long path is truncated."""
    monkeypatch.chdir(sets[0].parent)


def figures_in(shown: str) -> Counter[str]:
    return Counter(FIGURE.findall(shown))


def large(report: Any, kind: type) -> Any:
    return msgspec.convert(grown(msgspec.to_builtins(report)), kind)


@pytest.mark.parametrize("factor", [1, 987_654])
@pytest.mark.parametrize("width", [60, 80, 112, 120])
def test_statistics_and_comparisons_truncate_no_figure(sets: tuple[Path, Path], width: int, factor: int) -> None:
    names = [path.name for path in sets]
    statistics, comparison = curate.stats(names[0]), curate.compare(*names)
    if factor > 1:
        statistics, comparison = large(statistics, Stats), large(comparison, Comparison)
    for report in (render_stats(statistics), render_comparison(comparison)):
        shown = text(report, width)
        assert figures_in(shown) == figures_in(text(report, 400))
        assert not CUT.search(shown)


def lists() -> list[RenderableType]:
    on = recipe.load("vicuna", check_filters=False).filters
    return [
        terminal_lists.render_filters(list(registry.rules().values()), on),
        terminal_lists.render_names(recipe.RECIPES.summaries(), ("recipe", "what it does")),
        terminal_lists.render_formats(list(FORMATS.values())),
        render_doctor(curate.doctor()),
    ]


def conversations(folder: Path) -> list[RenderableType]:
    from curate.rendering import factory, mask_view

    manifest = curate.open_set(folder).manifest
    viewer, _ = mask_view.load_viewer(manifest)
    assert viewer is not None
    renderer = factory.make_renderer(manifest.template, factory.load_set_tokenizer(manifest))
    chats = list(curate.show([], folder, where="tokens > 200"))
    explanations = [explain.render_explanation(curate.explain(chat.id, folder)) for chat in chats[:5]]
    return [
        *explanations,
        summary.render_summary(curate.open_set(folder).manifest, Path("curated")),
        *(render_conversation(chat, viewer.count_message_tokens(chat.messages)) for chat in chats),
        *(render_mask(chat, mask_view.view_rows(renderer, chat.messages)) for chat in chats[:3]),
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_lists_explanations_and_conversations_truncate_no_figure(sets: tuple[Path, Path], width: int) -> None:
    for page in [*lists(), *conversations(sets[0])]:
        shown = text(page, width)
        assert len(shown) > 20
        assert not CUT.search(shown), CUT.findall(shown)


def test_a_table_in_an_answer_wraps_its_figures() -> None:
    row = "|" + "1,234,567,890 |" * 9
    shown = text(SafeMarkdown(f"{row}\n{'|---' * 9}|\n{row}"), 60)
    assert "…" not in shown
    assert len(re.findall(r"\d", shown)) == 2 * 9 * 10


def test_a_narrow_table_wraps_only_names_and_headings() -> None:
    rows = [tables.Row(Text("a name that is long"), ("1,234,567", "12.5 %"))]
    table = tables.NumberTable("names", ("so many records", "share"), rows)
    wide, narrow, narrowest = (text(table, width).splitlines() for width in (80, 40, 10))
    assert wide[0].split() == ["names", "so", "many", "records", "share"]
    assert "a name that is long" in wide[1]
    assert narrow[0].split() != wide[0].split()
    for shown in (wide, narrow, narrowest):
        assert "1,234,567" in "".join(shown) and "12.5 %" in "".join(shown)
    assert max(map(len, narrow)) <= 40
    assert max(map(len, narrowest)) > 10, "the terminal wraps it"


GIB = 2**30


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 200 * GIB), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_the_parts_of_a_sum_in_gib_add_up_to_what_is_shown(parts: dict[str, int]) -> None:
    total, shown = figures.gib_parts(parts)
    assert sum(map(Decimal, (text.replace(",", "") for text in shown.values()))) == Decimal(total.replace(",", ""))
    unit = Decimal(10) ** -len(total.partition(".")[2])
    for name, text in shown.items():
        assert abs(Decimal(text.replace(",", "")) - Decimal(parts[name]) / GIB) <= unit
    assert abs(Decimal(total.replace(",", "")) - Decimal(sum(parts.values())) / GIB) <= unit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (40, "40 seconds"),
        (60, "60 seconds"),
        (100, "1.7 minutes"),
        (12 * 60, "12 minutes"),
        (3.2 * 3600, "3.2 hours"),
        (36 * 3600, "1.5 days"),
        (5.4 * 86_400, "5.4 days"),
        (300 * 86_400, "300 days"),
        (65.3 * 31_557_600, "65 years"),
        (31_557_600, "1 year"),
    ],
)
def test_a_long_time_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert figures.spoken_duration(seconds) == text


def test_a_size_has_the_unit_that_fits() -> None:
    sizes = [0, 1, 1023, 1 << 20, 3_500_000, 24 << 30]
    assert [figures.size(value) for value in sizes] == [
        *("0 bytes", "1 byte", "1,023 bytes", "1.0 MiB", "3.3 MiB", "24.0 GiB"),
    ]
