"""Words, shingles, bands and matches: figures are exact, similar pairs are found, and no order decides what is kept."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filters.minhash import passages, signatures, templates
from curate.filters.minhash.matches import match
from curate.filters.minhash.shingles import Shingles, Values, jaccard, shingle
from curate.filters.minhash.words import BLOCK, compose, count_words, find_words

BY_LETTER = re.compile("[\u2e80-\u9fff\uac00-\ud7ff\u0e00-\u0e7f]")


def split_words(text: str) -> list[str]:
    """Return the words of a text, found in another way."""
    return re.findall(r"\w+", BY_LETTER.sub(lambda letter: f" {letter[0]} ", text.lower()))


def shingles_of(text: str) -> set[tuple[str, ...]]:
    words = split_words(text)
    return {tuple(words[place : place + 5]) for place in range(max(len(words) - 4, 1))} if words else set()


def figure(first: str, second: str) -> float:
    """Return the Jaccard figure of two texts, by Python's sets."""
    sets = shingles_of(first), shingles_of(second)
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if all(sets) else 0.0


def each(sets: Shingles) -> list[Values]:
    return np.split(sets.values, np.cumsum(sets.sizes)[:-1])


WORDS = [
    ("Hello, World!", ["Hello", "World"]),
    ("don't x_1 3.14", ["don", "t", "x_1", "3", "14"]),
    ("今天天气 good吗", ["今", "天", "天", "气", "good", "吗"]),
    ("カタカナabc한국어", [*"カタカナ", "abc", *"한국어"]),
    ("naïve Ελλάδα हिन्दी", ["naïve", "Ελλάδα", "हिन्दी"]),
    ("  ...\n\t", []),
    ("", []),
    ("😀 ok 👍🏽", ["ok"]),
    ("\ud800 lone", ["lone"]),
]


@pytest.mark.parametrize(
    ("text", "expected"), WORDS, ids=[expected[0] if expected else "none" for _, expected in WORDS]
)
def test_words_are_runs_of_letters_and_digits(text: str, expected: list[str]) -> None:
    words = find_words(text)
    assert [text[start:stop] for start, stop in zip(words.starts, words.stops, strict=True)] == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [("STRASSE Über", "strasse über"), ("ＡＢＣ １２", "abc 12"), ("cafe\u0301", "café"), ("a,b!", "A  b")],
)
def test_case_width_composition_and_punctuation_do_not_count(first: str, second: str) -> None:
    hashes, counts = count_words([compose(first), compose(second)])
    assert hashes[: counts[0]].tolist() == hashes[counts[0] :].tolist() != []


TEXTS = st.lists(st.text(alphabet="ab c天。\n", max_size=40), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_figures_are_those_of_sets_of_words(texts: list[str]) -> None:
    sets = shingle(texts)
    assert sets.sizes.tolist() == [len(shingles_of(text)) for text in texts]
    for text, values in zip(texts, each(sets), strict=True):
        assert (np.diff(values.astype(np.int64)) > 0).all()
        assert values.tolist() == shingle([text]).values.tolist()  # whatever stands beside it
    if len(texts) > 1:
        assert jaccard(*each(sets)[:2]) == pytest.approx(figure(*texts[:2]), abs=1e-9)


def make_text(rng: random.Random, words: int) -> list[str]:
    return [f"w{int(rng.paretovariate(0.6)) % 20_000}" for _ in range(words)]


def edit(rng: random.Random, words: Sequence[str], edits: int) -> list[str]:
    """Return the words with some replaced, removed or added, at random places."""
    copy = list(words)
    for _ in range(edits):
        place = rng.randrange(len(copy))
        copy[place : place + rng.randrange(2)] = [] if rng.random() < 0.3 else [f"e{rng.randrange(10**6)}"]
        copy = copy or ["e"]
    return copy


def plant(count: int, seed: int) -> list[tuple[str, str]]:
    """Return pairs of a text and an edited copy, of 3 to 400 words, with figures around 0.8 and above."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = make_text(rng, rng.choice([3, 6, 12, 25, 50, 100, 200]))
        pairs.append((" ".join(words), " ".join(edit(rng, words, rng.randint(0, max(1, len(words) // 45))))))
    return pairs


@pytest.mark.parametrize("count", [800, pytest.param(20_000, marks=pytest.mark.slow)])
def test_similar_pairs_are_found_and_no_others(count: int) -> None:
    pairs = plant(count, seed=count)
    texts = [text for pair in pairs for text in pair]
    sets = shingle(texts)
    values = each(sets)
    truth = [figure(*pair) for pair in pairs]
    own = [jaccard(values[place], values[place + 1]) for place in range(0, len(values), 2)]
    assert max(abs(a - b) for a, b in zip(own, truth, strict=True)) < 1e-3
    bands = signatures.band_hashes(sets)
    shared = (bands[::2] == bands[1::2]).any(axis=1)
    alike = np.array(truth) >= 0.8
    assert 0.3 < alike.mean() < 0.95
    assert shared[alike].mean() >= 0.995
    dropped = match(
        bands, np.arange(len(texts)), lambda row, others: [jaccard(values[row], values[o]) for o in others], 0.8
    )
    for found in dropped:
        assert figure(texts[found[0].row], texts[found[0].twin]) >= 0.8 - 1e-9
    rows = {found[0].row // 2 for found in dropped}
    assert len(rows & set(np.flatnonzero(alike))) >= 0.99 * alike.sum()


def keep(texts: Sequence[str], threshold: float = 0.5) -> list[str]:
    """Return the texts that stay, best first."""
    sets = shingle(texts)
    values = each(sets)
    order = sorted(range(len(texts)), key=lambda row: (-int(sets.sizes[row]), texts[row]))
    order = [row for row in order if sets.sizes[row]]
    ranked = np.array(order, np.int64)
    figures = match(
        signatures.band_hashes(sets),
        ranked,
        lambda row, others: [jaccard(values[row], values[o]) for o in others],
        threshold,
    )
    for found in figures:
        assert all(pair.jaccard >= threshold for pair in found)
        assert not {pair.twin for pair in found} & {other[0].row for other in figures}
    dropped = {found[0].row for found in figures}
    return [texts[row] for row in order if row not in dropped]


LETTERS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=14).map(" ".join), max_size=20)


@settings(max_examples=80, deadline=None)
@given(LETTERS, st.randoms(use_true_random=False))
def test_the_kept_texts_do_not_depend_on_the_order(texts: list[str], rng: random.Random) -> None:
    shuffled = list(texts)
    rng.shuffle(shuffled)
    assert keep(texts) == keep(shuffled)


def test_of_equal_texts_one_is_kept_and_of_different_ones_all() -> None:
    assert keep(["one two three four five six"] * 500) == ["one two three four five six"]
    rng = random.Random(3)
    texts = [" ".join(make_text(rng, 30)) for _ in range(500)]
    assert len(keep(texts)) == 500
    assert keep([]) == [] == keep(["...", "!"])


def test_no_chain_drops_a_text_that_is_unlike_every_kept_one() -> None:
    words = [f"w{place}" for place in range(60)]
    chain = [" ".join(words[start : start + 40]) for start in range(0, 20, 4)]  # each is like the next only
    stay = keep(chain, 0.6)
    assert 1 < len(stay) < len(chain)
    assert all(any(figure(text, kept) >= 0.6 for kept in stay) for text in chain)


def test_common_shingles_are_those_of_more_than_a_share_and_of_fifty() -> None:
    texts = [
        f"before you answer think about it well and then {place} {place} x{place} z{place} q" for place in range(99)
    ]
    common = templates.find_common(shingle(texts), 99, 0.01)
    assert set(each(shingle(["before you answer think about it well and then"]))[0]) <= set(common)
    assert len(templates.find_common(shingle(texts[:49]), 49, 0.01)) == 0
    assert len(templates.find_common(shingle(texts), 99, 0.0)) == 0
    assert len(templates.find_common(shingle(texts), 100_000, 0.1)) == len(common)  # a sample of many
    sets = shingle([*texts[:2], "a b c d e f g h", "before you answer think about it well and then"])
    templated = templates.find_templated(sets, common)
    assert templated.tolist() == [False, False, False, True]  # half of the first two is their own


def test_what_two_texts_share_and_what_only_one_has() -> None:
    likeness = passages.compare("One two THREE four, five six.\nA new end!", "zero one two three four five six, an end")
    assert likeness.passage == "One two THREE four, five six"
    assert (likeness.first, likeness.second) == ("A new end", "zero … an end")
    nothing = passages.compare("a b", "")
    assert (nothing.passage, nothing.first, nothing.second) == ("", "a b", "")
    assert passages.compare("我今天去学校了", "我昨天去学校了").second == "我昨"
    same = passages.compare("to be or not", "to be or not")
    assert (same.passage, same.first) == ("to be or not", "")


SIZE = 1_000_000
SHAPES = {
    "one letter": "a" * SIZE,
    "one word": "a " * (SIZE // 2),
    "two words": "a b " * (SIZE // 4),
    "no words": "!" * SIZE,
    "spaces": " " * SIZE,
    "lines": "\n" * SIZE,
    "one Han letter": "天" * SIZE,
    "marks": "e" + "\u0301" * SIZE,
    "zero width": "a\u200b" * (SIZE // 2),
    "emoji": "😀" * SIZE,
    "lone surrogates": "\ud800" * SIZE,
    "last code points": "\U0010ffff" * SIZE,
    "underscores": "_" * SIZE,
    "digits": "0123456789 " * (SIZE // 11),
    "numbers": " ".join(map(str, range(SIZE // 7))),
    "Thue and Morse": "".join("ab"[bin(place).count("1") % 2] for place in range(SIZE // 4)),
    "Han": "".join(chr(0x4E00 + place * 7919 % 20_000) for place in range(SIZE // 2)),
    "alternating scripts": "a天" * (SIZE // 2),
    "rising runs": " ".join("ab" * (place % 50) for place in range(SIZE // 50)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_hostile_texts_take_linear_time(name: str) -> None:
    text = SHAPES[name]
    sets = shingle([compose(text), compose(text + " end"), ""])
    assert sets.sizes[2] == 0
    signatures.band_hashes(sets)
    likeness = passages.compare(text[: SIZE // 2], text[: SIZE // 2] + " the end of it")
    assert len(likeness.passage) <= passages.SHOWN and len(likeness.second) <= passages.SHOWN


def test_a_text_longer_than_a_block_is_read_whole() -> None:
    text = " ".join(map(str, range(BLOCK // 5)))
    assert len(text) > BLOCK
    assert abs(int(shingle([text]).sizes[0]) - (BLOCK // 5 - 4)) <= 2 * 5  # a word between two blocks counts as two
    words = find_words(text)
    assert text[words.starts[-1] : words.stops[-1]] == str(BLOCK // 5 - 1)


def test_many_unlike_texts_in_one_band_are_compared_with_few() -> None:
    bands = np.zeros((2_000, signatures.BANDS), np.uint32)
    compared: list[int] = []
    match(bands, np.arange(len(bands)), lambda row, others: compared.append(len(others)) or [0.0] * len(others), 0.8)  # type: ignore[func-returns-value]
    assert max(compared) <= 128
