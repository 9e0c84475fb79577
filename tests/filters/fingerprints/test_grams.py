"""8-grams of texts: what counts as a word, and that hashes stand for words wherever these are."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filters.fingerprints import grams
from curate.filters.fingerprints.grams import GRAM, count_words, excerpt, hash_grams

EIGHT = "one two three four five six seven eight"
LETTERS = st.text(alphabet="ab1é你 \n-😀", max_size=60)


def naive_words(text: str) -> list[str]:
    return re.findall(r"你|[ab1é]+", text)


@pytest.mark.parametrize(
    "text",
    [
        EIGHT.upper(),
        "One, two — three: four (five) *six* seven… eight?!",
        "  one\ttwo\r\nthree_four/five|six\u00a0seven\u3000eight ",
        "öne two thrée four five six seven eight",
        "o\u0308ne two three\u0301 four five six seven eight",
        "ｏｎｅ two three four ﬁve six seven eight",
        "one 😀 two three four five six seven eight 𝐱",
        "o\u00adne two thr\u200dee four five six seven\ufe0f eight",
    ],
    ids=["case", "punctuation", "spaces", "accents", "combining", "width and ligatures", "emoji", "ignored"],
)
def test_texts_with_the_same_words_have_the_same_hash(text: str) -> None:
    assert hash_grams([text]).hashes.tolist() == hash_grams([EIGHT]).hashes.tolist()


@pytest.mark.parametrize(
    "text",
    [
        f"on e {EIGHT[4:]}",
        EIGHT.replace("one", "oen"),
        "two one three four five six seven eight",
        EIGHT + " 9"[:0] + "h",
    ],
    ids=["another border", "other letters", "another order", "a letter more"],
)
def test_other_words_have_another_hash(text: str) -> None:
    assert hash_grams([EIGHT]).hashes[0] not in hash_grams([text]).hashes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("… !", 0),
        ("What's up", 3),
        ("你好 world", 3),
        ("これはペン", 5),
        ("가나 다라", 2),
        ("สวัสดี", 6),
        ("x=1", 2),
    ],
)
def test_a_letter_of_a_script_without_spaces_is_a_word(text: str, count: int) -> None:
    assert count_words(text) == count


def test_grams_do_not_cross_texts_and_short_texts_have_one() -> None:
    found = hash_grams([EIGHT[:20], "", EIGHT, f"{EIGHT} nine", "Hi"])
    assert sorted(found.texts.tolist()) == [0, 2, 3, 3, 4]


@settings(max_examples=150, deadline=None)
@given(st.lists(LETTERS, max_size=5))
def test_hashes_equal_exactly_where_words_do(texts: list[str]) -> None:
    found = hash_grams(texts)
    by_hash: dict[int, set[tuple[str, ...]]] = {}
    for value, text, start, stop in zip(found.hashes, found.texts, found.start, found.stop, strict=True):
        words = naive_words(excerpt(texts[text], int(start), int(stop)))
        assert len(words) == GRAM or words == naive_words(texts[text])
        by_hash.setdefault(int(value), set()).add(tuple(word.replace("é", "e") for word in words))
    assert all(len(words) == 1 for words in by_hash.values())
    assert len({next(iter(words)) for words in by_hash.values()}) == len(by_hash)
    counts = [len(naive_words(text)) for text in texts]
    assert len(found.hashes) == sum(max(1, count - GRAM + 1) for count in counts if count)


def test_a_text_longer_than_a_block_has_the_grams_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "😀 ".join(f"word{number} 你" for number in range(3000))
    whole = hash_grams([text, EIGHT])
    monkeypatch.setattr(grams, "BLOCK", 4096)
    monkeypatch.setattr(grams, "OVERLAP", 256)
    cut = hash_grams([text, EIGHT])
    places = [set(zip(*(column.tolist() for column in vars(each).values()), strict=True)) for each in (whole, cut)]
    assert places[0] <= places[1]
    assert len(places[1] - places[0]) < 40  # with words that the cuts cut
