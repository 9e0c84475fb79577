"""The signal of quality: each figure on small conversations, and the list of phrases."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filters import measure
from curate.filters.text.wording import SAMPLE, measure_wording, phrases

SCHEMA = {"prompts": pl.List(pl.String), "answers": pl.List(pl.String)}


def figures(*answers: str, prompt: str = "Tell me of it.") -> dict[str, float]:
    frame = pl.DataFrame({"prompts": [[prompt]], "answers": [list(answers)]}, schema=SCHEMA)
    return measure(frame, {"quality": {}}).drop("prompts", "answers").row(0, named=True)


def test_words_are_counted_by_role_with_their_ratio() -> None:
    found = figures("One two three four.", "五六", prompt="Say them")
    assert (found["prompt_words"], found["answer_words"], found["answer_ratio"]) == (2, 6, 3.0)


def test_code_and_lists_are_shares_of_characters_and_of_lines() -> None:
    found = figures("abcde\n- one\n2. two\nend\n", "```\n" + "x" * 15 + "\n```")
    assert found["code_share"] == pytest.approx(23 / 46)
    assert found["list_share"] == pytest.approx(2 / 4)


def test_addresses_are_counted_in_answers_only() -> None:
    assert figures("See https://example.com and www.example.org.", prompt="http://example.com")["urls"] == 2


def test_the_slop_rate_counts_whole_phrases_in_any_case_for_1000_words() -> None:
    assert "a variety of" in phrases()
    assert figures("A Variety\nof things, I’d be happy to say.")["slop_rate"] == pytest.approx(2000 / 10)
    assert figures("variety of a things")["slop_rate"] == 0
    assert figures("A variety", "of things")["answer_words"] == 4


def test_different_words_are_counted_among_the_first() -> None:
    assert figures("one two One")["type_token_ratio"] == pytest.approx(2 / 3)
    assert figures("a " * (SAMPLE - 1) + "b c d e f")["type_token_ratio"] == pytest.approx(2 / SAMPLE)


def test_a_conversation_without_text_has_figures_too() -> None:
    frame = pl.DataFrame({"prompts": [[], ["Hi"]], "answers": [[], [""]]}, schema=SCHEMA)
    assert measure(frame, {"quality": {}})["answer_words"].to_list() == [0, 0]
    assert measure(frame.head(0), {"quality": {}}).height == 0


@given(st.lists(st.text(alphabet="a certainly 好。'\n", max_size=40), max_size=5))
@settings(max_examples=50, deadline=None)
def test_a_text_has_the_same_wording_alone_and_among_others(texts: list[str]) -> None:
    together = measure_wording(texts)
    for place, text in enumerate(texts):
        alone = measure_wording([text])
        assert (alone.words[0], alone.different[0], alone.phrases[0]) == (
            together.words[place],
            together.different[place],
            together.phrases[place],
        )


@pytest.mark.parametrize("letter", ["a ", "好", "- ", "1. a\n", "http://", "``` ", "a variety of ", "\n", "~~~\n", "'"])
def test_hostile_texts_are_measured(letter: str) -> None:
    assert figures(letter * 100_000, prompt=letter * 10_000)["answer_words"] >= 0
