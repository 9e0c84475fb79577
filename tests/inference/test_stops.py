"""Text is cut at the first stop string, however it arrives."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.inference.stops import StopCutter

TEXTS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


def cut(parts: list[str], stops: list[str]) -> tuple[str, bool]:
    """Return all that is shown, and whether a stop was found."""
    cutter = StopCutter(stops)
    shown = "".join([cutter.add(part) for part in parts])
    return shown + cutter.finish(), cutter.found


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character: the first stop that is complete cuts the text where it starts."""
    for end in range(1, len(text) + 1):
        ended = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(ended)], True
    return text, False


@given(TEXTS, STOPS, st.lists(st.integers(0, 12), max_size=6))
def test_the_cut_does_not_depend_on_the_parts(text: str, stops: list[str], borders: list[int]) -> None:
    places = [0, *sorted(min(border, len(text)) for border in borders), len(text)]
    parts = [text[start:end] for start, end in pairwise(places)]
    assert cut(parts, stops) == expected(text, stops)


@given(TEXTS, STOPS)
def test_what_is_shown_early_is_never_taken_back(text: str, stops: list[str]) -> None:
    cutter, shown = StopCutter(stops), ""
    for character in text:
        shown += cutter.add(character)
        assert expected(text, stops)[0].startswith(shown)


@pytest.mark.parametrize(
    ("parts", "stops", "shown"),
    [
        (["Hello U", "SER: x"], ["USER:"], "Hello "),
        (["Hello US", "A"], ["USER:"], "Hello USA"),
        (["one\n", "\ntwo"], ["\n\n"], "one"),
        (["aab"], ["ab", "aab"], ""),
        (["아니", "요"], ["니요"], "아"),
    ],
)
def test_examples(parts: list[str], stops: list[str], shown: str) -> None:
    assert cut(parts, stops)[0] == shown
