"""The pages in a real Chromium: nothing runs or is fetched, charts are drawn, no figure is cut, keys work."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

import curate
from curate.analysis.comparison import Comparison
from curate.analysis.stats import Stats
from curate.report.html.pages import write_comparison
from curate.report.html.pages import write_stats as write_page
from curate.train.report import html as run_page
from tests.support import ROOT, browser
from tests.support.hostile_run import write_run
from tests.support.hostile_set import write_hostile
from tests.support.small_set import grown

EXAMPLE = ROOT / "examples/sharegpt_dump.json"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "curated"
    curate.clean(EXAMPLE, folder, workers=1)
    return folder / "report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    curate.stats(write_hostile(folder / "set"), html=folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory: pytest.TempPathFactory, page: Path) -> Path:
    folder = tmp_path_factory.mktemp("comparison_page")
    hostile = write_hostile(folder / "</script><script>window.hacked=1<")
    curate.compare(page.parent, hostile, html=folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_page.write(write_run(tmp_path_factory.mktemp("runs") / "first <run>"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, page: Path) -> Path:
    """Return the page of a set of a hundred million records."""
    file = tmp_path_factory.mktemp("large") / "page.html"
    statistics = msgspec.convert(grown(msgspec.to_builtins(curate.stats(page.parent))), Stats)
    write_page(file, statistics, curate.open_set(page.parent))
    return file


@pytest.fixture(scope="module")
def large_comparison_page(tmp_path_factory: pytest.TempPathFactory, comparison_page: Path, page: Path) -> Path:
    file = tmp_path_factory.mktemp("large") / "page.html"
    sets = curate.open_set(page.parent), curate.open_set(page.parent)
    comparison = msgspec.convert(
        grown(msgspec.to_builtins(curate.compare(*(curated.path for curated in sets)))), Comparison
    )
    write_comparison(file, comparison, sets)
    return file


def complaints(chromium: browser.Browser) -> list[browser.Event]:
    return chromium.events_of("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


def requests(chromium: browser.Browser, but_blocked: bool = False) -> list[str]:
    sent = {event["params"]["requestId"]: event for event in chromium.events_of("Network.requestWillBeSent")}
    failed = [event["params"] for event in chromium.events_of("Network.loadingFailed")]
    blocked = {request["requestId"] for request in failed if request.get("blockedReason") == "csp"}
    return [
        request["params"]["request"]["url"] for key, request in sent.items() if not (but_blocked and key in blocked)
    ]


@pytest.mark.parametrize("which", ["page", "hostile", "comparison_page", "run"])
def test_nothing_is_fetched_no_data_runs_and_nothing_fails(
    which: str, chromium: browser.Browser, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(which)
    chromium.open(file)
    chromium.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    touch = "one => { one.focus?.(); one.dispatchEvent(new Event('mouseover')) }"
    chromium.run(f"document.querySelectorAll('*').forEach({touch})")
    chromium.run("new Promise(done => setTimeout(done, 200))")
    assert chromium.run("window.hacked === undefined")
    assert complaints(chromium) == []
    assert requests(chromium) == [file.resolve().as_uri()]
    assert chromium.run("document.scripts.length") == 3
    assert chromium.run("document.querySelectorAll('img, iframe, object, embed, form, base, link, math').length") == 0
    handlers = "[...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on')))"
    assert chromium.run(f"{handlers}.length") == 0
    assert chromium.run("[...document.links].every(a => a.getAttribute('href').startsWith('#'))")


def test_the_content_security_policy_blocks_requests(chromium: browser.Browser, page: Path, tmp_path: Path) -> None:
    attack = "<script>window.hacked = 1</script><img src='https://example.invalid/x' onerror='window.hacked = 2'>"
    text = page.read_text("utf-8").replace("</main>", f"{attack}</main>")
    broken = tmp_path / "broken.html"
    broken.write_text(text, "utf-8")
    chromium.open(broken)
    assert chromium.run("window.hacked === undefined")
    assert requests(chromium, but_blocked=True) == [broken.resolve().as_uri()]
    broken.write_text(re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text), "utf-8")
    chromium.open(broken)
    assert chromium.run("window.hacked") in (1, 2), "without it the attack would be seen: this test can fail"


@pytest.mark.parametrize(("which", "charts"), [("page", 9), ("comparison_page", 9), ("run", 4)])
def test_every_chart_is_drawn_with_a_description(
    which: str, charts: int, chromium: browser.Browser, request: pytest.FixtureRequest
) -> None:
    chromium.open(request.getfixturevalue(which))
    drawn = chromium.run("[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('svg path').length)")
    assert len(drawn) >= charts
    assert min(drawn) >= 2
    assert chromium.run("[...document.querySelectorAll('.chart')].every(c => c.getAttribute('aria-label').length > 10)")


def test_the_flow_is_drawn_with_the_number_of_each_rule(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    assert "exact_duplicates  7" in chromium.run("document.querySelector('.chart').textContent")


def test_tables_are_sorted_by_keyboard_and_announce_it(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    table = "document.querySelector('table.sortable')"
    column = f"[...{table}.tBodies[0].rows].map(row => row.cells[0].textContent)"
    before = chromium.run(column)
    chromium.run(f"{table}.querySelector('button').focus()")
    chromium.press("Enter")
    assert chromium.run(column) == sorted(before)
    assert chromium.run(f"{table}.querySelector('th').getAttribute('aria-sort')") == "ascending"
    chromium.press(" ")
    assert chromium.run(column) == sorted(before, reverse=True)
    chromium.press("Tab")
    assert chromium.run("document.activeElement.textContent") == "records"
    chromium.press("Enter")
    numbers = chromium.run(f"[...{table}.tBodies[0].rows].map(row => Number(row.cells[1].dataset.v))")
    assert numbers == sorted(numbers, reverse=True)


def test_a_conversation_is_unfolded_by_keyboard(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    second = "document.querySelectorAll('#samples > details')[1]"
    chromium.run(f"{second}.querySelector('summary').focus()")
    chromium.press("Enter")
    assert chromium.run(f"{second}.open")
    assert chromium.run(f"{second}.querySelector('article').getBoundingClientRect().height") > 50


@pytest.mark.parametrize("which", ["page", "hostile", "comparison_page", "run"])
@pytest.mark.parametrize("width", [360, 768, 1600])
def test_the_page_fits_a_window_of_any_width(
    which: str, width: int, chromium: browser.Browser, request: pytest.FixtureRequest
) -> None:
    chromium.open(request.getfixturevalue(which), width=width)
    chromium.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert chromium.run("document.documentElement.scrollWidth") <= width


CUT = """
(() => {
  const found = [];
  const figure = (text) => /\\d/.test(text);
  for (const e of document.querySelectorAll('main *, header *')) {
    if (e.closest('svg, pre') || getComputedStyle(e).display === 'inline') continue;
    if (e.scrollWidth > e.clientWidth + 1 && figure(e.textContent)) found.push([e.tagName, e.className, e.textContent]);
  }
  for (const e of document.querySelectorAll('svg text')) {
    const [inner, outer] = [e.getBoundingClientRect(), e.closest('svg').getBoundingClientRect()];
    const outside = inner.left < outer.left - 1 || inner.right > outer.right + 1;
    if (outside && figure(e.textContent)) found.push(['text', e.textContent]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("which", ["page", "hostile", "comparison_page", "run", "large", "large_comparison_page"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_figure_is_cut(which: str, width: int, chromium: browser.Browser, request: pytest.FixtureRequest) -> None:
    chromium.open(request.getfixturevalue(which), width=width)
    chromium.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert chromium.run(CUT) == []
    assert chromium.run("document.body.scrollWidth") <= width


def test_a_cut_figure_is_detected(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page, width=390)
    chromium.run("document.querySelector('.tiles b').textContent = '1,234,567,890,123,456,789,012,345'")
    chromium.run("document.querySelector('svg text').setAttribute('transform', 'translate(380, 20)')")
    assert len(chromium.run(CUT)) >= 2


def test_names_and_headings_are_in_order_for_screen_readers(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    levels = chromium.run("[...document.querySelectorAll('h1,h2,h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in ("button", "link", "image", "table", "region", "navigation")
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    assert {"main", "banner", "contentinfo"} <= {node["role"]["value"] for node in nodes if not node.get("ignored")}


CONTRASTS = """
(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = {};
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('svg, script, style') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found[`${e.tagName}.${e.className} ${ratio.toFixed(2)}`] = e.textContent.slice(0, 30);
  }
  return found;
})()
"""


@pytest.mark.parametrize("which", ["page", "run"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_has_enough_contrast(
    which: str, dark: bool, chromium: browser.Browser, request: pytest.FixtureRequest
) -> None:
    chromium.open(request.getfixturevalue(which), dark=dark)
    chromium.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert chromium.run(CONTRASTS) == {}
    background = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark
