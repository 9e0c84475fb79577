"""The answers of a real dump convert back to the markdown they were rendered from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from curate.markdown import looks_like_html, to_markdown, walk_html
from tests.support.html_elements import MARKDOWN, code_blocks, parts, rendered

pytestmark = pytest.mark.slow

# Answers whose markdown does not render as their HTML, and why.
RENDERED_DIFFERENTLY = {
    "lvTYkNW": "an empty heading is left out",
    "ZmAArC7": "an empty heading is left out",
}
# Answers whose code blocks differ from their source, and why.
CODE_DIFFERS = {"PDzHl2o": "the page shows the end of an unfinished here-document twice"}


class Answer(NamedTuple):
    id: str
    html: str
    source: str
    markdown: str


def rows(path: Path) -> list[dict[str, object]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [row for row in json.load(file) if isinstance(row, dict) and isinstance(row.get("id"), str)]


def turns(row: dict[str, object], *speakers: str) -> list[str]:
    """Return the texts of these speakers, or an empty list for a malformed row."""
    stored = row.get("conversations")
    return [
        turn["value"]
        for turn in (stored if isinstance(stored, list) else [])
        if isinstance(turn, dict) and turn.get("from") in speakers and isinstance(turn.get("value"), str)
    ]


@pytest.fixture(scope="module")
def dump(shared: Path) -> list[dict[str, object]]:
    return rows(shared / "data" / "sharegpt_dirty.json.gz")


@pytest.fixture(scope="module")
def injected(shared: Path) -> dict[str, set[str]]:
    """The ids that carry each kind of dirt."""
    kinds = json.loads((shared / "data" / "injected.json").read_text(encoding="utf-8"))["rows"]
    return {
        kind: {str(row["id"] if isinstance(row, dict) else row) for row in entries} for kind, entries in kinds.items()
    }


@pytest.fixture(scope="module")
def answers(dump: list[dict[str, object]], injected: dict[str, set[str]], shared: Path) -> list[Answer]:
    """The answers of every clean conversation."""
    dirty = set().union(*injected.values())
    sources = {row["id"]: turns(row, "gpt") for row in rows(shared / "data" / "source_markdown.json.gz")}
    pairs = [
        (str(row["id"]), html, source)
        for row in dump
        if row["id"] not in dirty
        for html, source in zip(turns(row, "gpt"), sources[row["id"]], strict=True)
    ]
    converted = to_markdown([html for _, html, _ in pairs])
    return [Answer(*pair, markdown) for pair, markdown in zip(pairs, converted, strict=True)]


def fences(markdown: str) -> list[tuple[str, str]]:
    """Return language and body of the code blocks that markdown renders; in a source some are by indentation."""
    return [(t.info.strip(), t.content) for t in MARKDOWN.parse(markdown) if t.type in ("fence", "code_block")]


def test_code_blocks_keep_their_language_and_every_character(answers: list[Answer]) -> None:
    with_code = [answer for answer in answers if "<pre" in answer.html]
    assert len(with_code) > 1_500
    for answer in with_code:
        shown = [(name, f"{body}\n" if body and body[-1] != "\n" else body) for name, body in code_blocks(answer.html)]
        assert fences(answer.markdown) == shown, answer.id
    differing = {a.id for a in with_code if fences(a.markdown) != fences(a.source)}
    assert differing == set(CODE_DIFFERS)


def test_markdown_renders_as_the_html_of_its_answer(answers: list[Answer]) -> None:
    differing = [answer.id for answer in answers if rendered(answer.markdown) != parts(answer.html)]
    assert sorted(differing) == sorted(RENDERED_DIFFERENTLY)
    assert len(differing) <= 0.005 * len(answers)


def test_fast_path_and_walker_agree_on_a_real_dump(answers: list[Answer]) -> None:
    assert [answer.markdown for answer in answers] == [walk_html(answer.html) for answer in answers]


def test_answers_are_recognised_and_prompts_are_not(dump: list[dict[str, object]], answers: list[Answer]) -> None:
    assert all(looks_like_html(answer.html) for answer in answers)
    assert not any(looks_like_html(prompt) for row in dump for prompt in turns(row, "human"))


def test_text_that_the_page_added_is_removed(
    dump: list[dict[str, object]], injected: dict[str, set[str]], shared: Path
) -> None:
    sources = {row["id"]: turns(row, "gpt") for row in rows(shared / "data" / "source_markdown.json.gz")}
    noisy = injected["regenerate_noise"] | injected["copy_chars_noise"]
    checked = 0
    for row in dump:
        html = turns(row, "gpt")
        if row["id"] in noisy and len(html) == len(sources.get(row["id"], [])):
            for markdown, source in zip(to_markdown(html), sources[row["id"]], strict=True):
                assert rendered(markdown) == rendered(source), row["id"]
                checked += 1
    assert checked > 100


def test_an_empty_answer_is_empty_and_a_deep_one_keeps_its_text(dump: list[dict[str, object]]) -> None:
    empty = [html for row in dump for html in turns(row, "gpt") if html.endswith('"></div>')]
    assert len(empty) > 30
    assert set(to_markdown(empty)) == {""}
    deep = [html for row in dump for html in turns(row, "gpt") if html.count("<li>") > 1_000]
    assert deep
    for html, markdown in zip(deep, to_markdown(deep), strict=True):
        assert len(markdown) < 4 * len(html)
