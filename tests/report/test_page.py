"""The page of statistics: its contents, that it needs no other file, and that nothing in it can run."""

from __future__ import annotations

import html
import importlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import curate
from curate.analysis.conversations import ConversationView
from curate.analysis.diff import Change
from curate.display import figures
from curate.display import html as parts
from curate.errors import InputError
from curate.rendering import mask_view
from curate.rendering.renderer import LossRule
from curate.rendering.template_renderer import TemplateRenderer
from curate.report.html import conversation
from curate.schemas.conversation import Message
from curate.schemas.prompts import VICUNA
from tests.support import ROOT
from tests.support.hostile_set import write_hostile
from tests.support.small_set import MANIFEST, kept, lost, write_set

EXAMPLE = ROOT / "examples/sharegpt_dump.json"
FORBIDDEN = {"iframe", "img", "link", "object", "embed", "form", "base", "a", "svg", "math", "input", "video", "audio"}


class Elements(HTMLParser):
    """Collects a page's elements with their attributes, and the words outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.inside[-1:]):
            self.words += data


def page_of(folder: Path, file: Path) -> str:
    curate.stats(folder, html=file)
    return file.read_text("utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "curated"
    curate.clean(EXAMPLE, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def page(example: Path) -> str:
    return (example / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    return page_of(write_hostile(folder / "set"), folder / "page.html")


def test_cleaning_writes_the_page_that_stats_writes(example: Path, page: str, tmp_path: Path) -> None:
    assert page_of(example, tmp_path / "page.html") == page


def test_the_page_is_self_contained_and_under_two_megabytes(page: str) -> None:
    assert len(page.encode()) < 2_000_000
    assert "default-src 'none'" in page
    for tag, attributes in Elements(page).found:
        assert tag not in FORBIDDEN - {"a"}
        assert not {"src", "srcset", "action", "data"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")


def test_the_page_has_the_numbers_of_the_json(example: Path, page: str) -> None:
    text = Elements(page).words
    statistics = curate.stats(example)
    assert f"kept of {statistics.header.read} records" in text
    for number in (statistics.header.tokens, statistics.header.answer_tokens, statistics.training.total_tokens):
        assert f"{number:,}" in text
    for name in ("flow", "languages", "models", "roles", "splits", "edits"):
        for row in statistics.frame(name).iter_rows():
            assert str(row[0]) in text
    for histogram in statistics.histograms:
        assert f"mean {histogram.mean:,.1f}" in text


def test_the_page_shows_kept_repaired_and_rejected_conversations(page: str) -> None:
    assert re.search(r"<summary>Kept ", page)
    assert re.search(r"<summary>Repaired, before and after ", page)
    for rule in ("exact_duplicates", "no_messages", "not_a_record", "rate_limit"):
        assert f"<summary>Rejected by {rule} " in page
    assert "<del>" in page
    assert "<ins>" in page
    assert re.search(r'<code class="language-\w+"><span class="', page), "code is in colours"
    assert "<mark>" in page, "what is trained on is marked"


def test_text_is_escaped_and_nothing_in_it_can_run(hostile: str) -> None:
    elements = Elements(hostile)
    assert not FORBIDDEN - {"a"} & {tag for tag, _ in elements.found}
    assert len([tag for tag, _ in elements.found if tag == "script"]) == 3, "the data, the library, the page's own"
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("href") or "#").startswith("#")
    assert elements.words.count("<script>window.hacked = 1</script>") >= 5, "it stands there to be read"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\ufeff\ud800-\udfff]", hostile), "nor hide"


@pytest.mark.parametrize("which", ["page", "hostile"])
def test_the_page_is_valid_html(which: str, request: pytest.FixtureRequest) -> None:
    library: Any = importlib.import_module("html5lib")  # ships no types
    library.HTMLParser(strict=True).parse(request.getfixturevalue(which))


@given(st.text(max_size=200), st.sampled_from(["user", "assistant"]))
def test_any_text_is_rendered_with_safe_elements_only(content: str, role: Any) -> None:
    elements = Elements(
        conversation.render_conversation(ConversationView(content, content, 0, (Message(role, content),)))
    )
    assert not (FORBIDDEN | {"script", "style"}) & {tag for tag, _ in elements.found}
    assert not [
        name for _, attributes in elements.found for name in attributes if name.startswith(("on", "href", "src"))
    ]


@pytest.mark.parametrize("language", sorted(conversation.LANGUAGES))
def test_code_of_each_language_is_highlighted(language: str) -> None:
    shown = conversation.render_conversation(
        ConversationView("a", "f", 0, (Message("assistant", f"```{language}\n-x = 'a < b' # 1\n```"),))
    )
    assert "&lt;" in shown
    assert '<span class="' in shown[shown.index("<pre>") :]


def test_links_show_their_target_but_are_not_active() -> None:
    shown = conversation.render_conversation(
        ConversationView("a", "f", 0, (Message("assistant", "[here](https://a.example/?q=1&r=2) <https://b.example>"),))
    )
    assert "<u>here</u> (https://a.example/?q=1&amp;r=2)" in shown
    assert "<u>https://b.example</u>" in shown
    assert "href" not in shown


@pytest.mark.parametrize("sign", ["- ", "> ", "1. "])
def test_text_nested_too_deeply_is_shown_unrendered(sign: str) -> None:
    shown = conversation.render_conversation(
        ConversationView("a", "f", 0, (Message("assistant", sign * 300 + "the core"),))
    )
    assert "the core" in shown
    assert html.escape(sign * 300) in shown


def test_changed_line_ends_are_visible() -> None:
    pair = Change(Message("user", "one\r\ntwo"), Message("user", "one\ntwo"))
    shown = conversation.render_changes(ConversationView("a", "f", 0, ()), [pair])
    assert "<del>␍⏎\n</del><ins>⏎\n</ins>" in shown


def test_a_target_without_an_html_name_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt' does not end in \.html"):
        curate.stats(folder, html=mine)
    assert mine.read_text() == "mine"
    with pytest.raises(InputError, match=r"cannot write .*absent"):
        curate.stats(folder, html=tmp_path / "absent" / "page.html")


def test_the_page_of_a_dump_shows_unrepaired_conversations(tmp_path: Path) -> None:
    page = page_of(_dump(tmp_path), tmp_path / "dump.html")
    assert "<h1>dump.json</h1>" in page
    assert "<summary>Readable <span>1</span>" in page
    assert "<summary>Unreadable: not_a_record <span>1</span>" in page
    assert "&lt;p&gt;yo&lt;/p&gt;" in page, "nothing is repaired"


def test_an_empty_set_has_a_page(tmp_path: Path) -> None:
    counts = dict.fromkeys(("read", "kept", "rejected", "rejected_exchanges", "pieces", "tokens"), 0)
    empty = write_set(tmp_path / "set", [], [], {**MANIFEST, "counts": {**counts, "rules": {}, "edits": {}}})
    assert "<h1>set</h1>" in page_of(empty, tmp_path / "empty.html")


def _dump(folder: Path) -> Path:
    file = folder / "dump.json"
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "<p>yo</p>"}]
    file.write_text(json.dumps([{"id": "a", "conversations": turns}, None]))
    return file


def test_the_page_stays_small_with_thousands_of_names_and_long_texts(tmp_path: Path) -> None:
    rows = [kept(at, f"r{at}", model=f"model {at}", cluster=f"{at}") for at in range(5_000)]
    long = "long " * 400_000
    common = {"content": long, "name": None, "tool_calls": None, "train": True, "stop": True}
    texts = [{"role": role, **common} for role in ("user", "assistant")]
    rows += [kept(6_000 + at, f"l{at}", messages=texts, characters=len(long)) for at in range(2)]
    losses = [lost(10_000 + at, f"rule {at % 60}", record=long.encode()) for at in range(120)]
    page = page_of(write_set(tmp_path / "set", rows, losses), tmp_path / "page.html")
    assert len(page.encode()) < 2_000_000


def test_a_rule_with_few_rejects_late_in_the_set_has_samples(tmp_path: Path) -> None:
    losses = [lost(at, "common") for at in range(3_000)] + [lost(9_999, "seldom", source_id="the one")]
    page = page_of(write_set(tmp_path / "set", [kept(10_000, "a")], losses), tmp_path / "page.html")
    assert "<summary>Rejected by seldom " in page
    assert "the one" in page


def spans_of(example: Path) -> Iterator[tuple[mask_view.MaskViewer, tuple[Message, ...]]]:
    opened = curate.open_set(example)
    viewer, _ = mask_view.load_viewer(opened.manifest)
    assert viewer is not None
    for (rows,) in opened.conversations().filter(piece=0).select("messages").collect().iter_rows():
        yield viewer, tuple(Message(**row) for row in rows)


def test_the_page_marks_the_text_that_is_trained_on(example: Path) -> None:
    for viewer, messages in spans_of(example):
        [mask] = mask_view.view_rows(TemplateRenderer(VICUNA, viewer.compiled.tokenizer, LossRule()), messages)
        spans = mask.text
        groups = groupby(spans, key=lambda span: span[1])
        joined = [("".join(text for text, _ in same), trained) for trained, same in groups]
        assert list(mask_view.masked_text(viewer.compiled, messages)) == joined


def test_messages_that_are_not_trained_on_are_not_marked(example: Path) -> None:
    viewer, _ = next(spans_of(example))
    prompt, answer = Message("user", "one"), Message("assistant", "two")
    cut = Message("assistant", "four", stop=False)
    spans = mask_view.masked_text(viewer.compiled, [prompt, Message("assistant", "two", train=False), prompt, cut])
    assert [text.strip() for text, trained in spans if trained] == ["four"]
    spans = mask_view.masked_text(viewer.compiled, [prompt, answer])
    assert spans[-1] == (" two<|end_of_text|>", True)


def test_a_table_sorts_numbers_by_value() -> None:
    shown = parts.table("t", ("name", "n"), [("a", 1234), ("b", 0.5)], {"n": figures.percent})
    assert '<td class="n" data-v="0.5">50.0 %</td>' in shown
    assert '<th scope="col">name</th>' in shown
