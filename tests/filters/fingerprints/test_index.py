"""Coverage of benchmarks' items by conversations."""

from __future__ import annotations

import random
import string

import numpy as np
import pytest

from curate.filters.fingerprints.building import Item, build
from curate.filters.fingerprints.grams import excerpt
from curate.filters.fingerprints.index import Index, Match

LONG = " ".join(f"w{number}" for number in range(40))
SHORT = "who painted the ceiling of that chapel"


def index(*texts: str) -> Index:
    return Index([build("b", [Item(str(number), [text]) for number, text in enumerate(texts)]).fingerprint])


def match(index: Index, *texts: str) -> list[Match]:
    """Compare texts that are one group."""
    return index.match(texts, np.zeros(len(texts), np.int64))


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last))


@pytest.mark.parametrize(
    ("texts", "coverage", "run"),
    [
        ([f"So: {LONG.upper()}, right?"], 1.0, 40),
        ([words(0, 20)], 0.5, 20),
        ([words(0, 20), words(20, 40)], 1.0, 40),
        ([f"{words(0, 13)} x {words(13, 27)}"], 27 / 40, 27),
        ([words(5, 18)], 13 / 40, 13),
    ],
    ids=["whole", "half", "two messages", "with an insertion", "thirteen"],
)
def test_coverage_is_the_share_of_words_in_shared_grams(texts: list[str], coverage: float, run: int) -> None:
    (found,) = match(index(LONG), *texts)
    assert found.coverage == pytest.approx(coverage)
    assert found.run == run


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        [words(0, 12)],
        [words(0, 10) + " x " + words(11, 22)],
        [words(0, 7)],
        [" ".join(reversed(LONG.split()))],
    ],
    ids=["none", "empty", "twelve words", "twice less than thirteen", "no gram", "another order"],
)
def test_less_is_not_found(texts: list[str]) -> None:
    assert match(index(LONG), *texts) == []


def test_an_item_of_eight_to_thirteen_words_must_be_there_as_a_whole() -> None:
    known = index("which of these is not a component of attributional style")
    assert match(known, "Which of these is not a component of a car?") == []
    assert match(known, "1. WHICH of these is not a component of attributional style? Tell me.")[0].coverage == 1


def test_an_item_of_fewer_words_is_a_message_of_exactly_its_words() -> None:
    known = index(SHORT)
    assert match(known, "Hello.", f"{SHORT.title()}?")[0].run == 7
    assert match(known, f"{SHORT} and when") == match(known, SHORT[:-8]) == []


def test_items_with_one_beginning_are_not_taken_for_each_other() -> None:
    stem = " ".join(f"stem{number}" for number in range(25))
    texts = [f"{stem} {words(10 * number, 10 * number + 10)}" for number in range(4)]
    assert [found.text for found in match(index(*texts), texts[2])] == [2]
    assert match(index(*texts), stem) == []
    many = [f"{stem} {words(10 * number, 10 * number + 10)}" for number in range(30)]
    assert [found.text for found in match(index(*many), many[7])] == [7]
    assert match(index(*many), stem) == []


def test_the_passage_is_the_longest_that_both_have() -> None:
    texts = [f"é {words(0, 9)}", f"😀 Well, {words(12, 30)}! and", words(0, 9)]
    (found,) = match(index(LONG), *texts)
    assert excerpt(texts[found.source], found.start, found.stop) == words(12, 30)


def test_matches_do_not_depend_on_the_order_or_the_other_texts() -> None:
    seeded = random.Random(3)
    items = [" ".join(seeded.choices(string.ascii_lowercase[:3], k=30)) for _ in range(50)]
    known = index(*items)
    groups = [[items[number], f"{items[number - 1][:40]} x"] for number in range(50)]
    alone = [{(m.text, m.coverage, m.run) for m in match(known, *texts)} for texts in groups]
    order = seeded.sample(range(50), 50)
    texts = [text for group in order for text in groups[group]]
    together: dict[int, set[tuple[int, float, int]]] = {}
    for found in known.match(texts, np.repeat(order, 2)):
        together.setdefault(found.group, set()).add((found.text, found.coverage, found.run))
    assert [together[group] for group in range(50)] == alone


SHAPES = [
    *(
        " ",
        "a",
        "a ",
        "1 2 ",
        "a.",
        "é",
        "e\u0301",
        "\u0301",
        "\u00ad",
        "ﬁ",
        "ß",
        "你",
        "你 ",
        "あ",
        "ก",
        "😀",
        "😀 a ",
    ),
    *("\n", "\r\n", "\\n", "\0", "\u200b", "w1 w2 ", f"{LONG} ", f"{LONG}. x ", words(0, 8) + " ", SHORT + " ", "<b>"),
    *("stem " * 40, "w39 w38 w37 w36 w35 w34 w33 w32 w31 "),
]


def test_hostile_texts_take_linear_time() -> None:
    """A text of 150,000 words would take minutes if each were compared with each."""
    hostile = ["a " * 2000, LONG, SHORT, *(f"{'stem ' * 30}{number}" for number in range(300)), "你" * 500]
    known = index(*hostile)
    texts = [(shape * (300_000 // len(shape) + 1))[:300_000] for shape in SHAPES]
    found = known.match(texts, np.arange(len(texts)))
    assert {SHAPES[each.group] for each in found} >= {f"{LONG} ", f"{LONG}. x "}
    every = "\n".join(hostile)
    assert len(match(known, every * 10)) <= len(hostile)
