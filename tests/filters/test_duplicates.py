"""Duplicates, prefixes of longer conversations and the train/eval split; the same copy is always kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filters.duplicates import HASHES, MessageFields, chain_hashes, exact_duplicates
from curate.pipeline.holdout import assign_split

Chat = Sequence[str]


def messages(chats: Sequence[Chat]) -> list[list[MessageFields]]:
    """Return alternating user and assistant messages; a text that starts with `system:` is a system message."""
    rows = []
    for chat in chats:
        row: list[MessageFields] = []
        for text in chat:
            position = sum(message[0] != "system" for message in row)
            role = "system" if text.startswith("system:") else ("user", "assistant")[position % 2]
            row.append((role, text, None, None, None))
        rows.append(row)
    return rows


def hashed(chats: Sequence[Chat], ids: Sequence[str | None] | None = None) -> pl.DataFrame:
    names = pl.Series(ids if ids else [None] * len(chats), dtype=pl.String)
    frame = chain_hashes(messages(chats)).with_row_index("row").with_columns(source_id=names)
    return frame.with_columns(chat=pl.lit(None, dtype=pl.String), untrained=pl.lit(0, dtype=pl.UInt32))


def twins(
    chats: Sequence[Chat], *, ids: Sequence[str | None] | None = None, **options: bool
) -> list[tuple[object, ...]]:
    return exact_duplicates(hashed(chats, ids), ids=ids is not None, **options).select("twin", "kind").rows()


STAYS = (None, None)

CASES: list[tuple[str, list[Chat], list[tuple[object, ...]]]] = [
    ("different", ["ab", "cd"], [STAYS, STAYS]),
    ("one copy stays, the first", ["ab", "cd", "ab", "ab"], [STAYS, STAYS, (0, "exact"), (0, "exact")]),
    ("the longer stays, whichever comes first", ["ab", "abcd"], [(1, "prefix"), STAYS]),
    ("the longer stays, first", ["abcd", "ab"], [STAYS, (0, "prefix")]),
    ("the longest of a line", ["ab", "abcdef", "abcd"], [(1, "prefix"), STAYS, (1, "prefix")]),
    ("branches both stay", ["abcd", "abef"], [STAYS, STAYS]),
    ("a shared start goes to the first branch of equal length", ["abef", "ab", "abcd"], [STAYS, (0, "prefix"), STAYS]),
    ("a shared start goes to the longest branch", ["abef", "ab", "abcdef"], [STAYS, (2, "prefix"), STAYS]),
    ("copies of a start", ["ab", "ab", "abcd"], [(2, "prefix"), (2, "prefix"), STAYS]),
    ("copies of the longer one", ["ab", "abcd", "abcd"], [(1, "prefix"), STAYS, (1, "exact")]),
    ("a later start is no beginning", ["cdef", "ef"], [STAYS, STAYS]),
    ("a text joined differently", [["a", "bc"], ["ab", "c"]], [STAYS, STAYS]),
    ("white space at the end", [["a ", "b\n"], ["a", "b"]], [STAYS, (0, "exact")]),
    ("white space at the start", [[" a", "\n\tb"], ["a", "b"]], [STAYS, (0, "exact")]),
    (
        "no-break, ideographic and zero-width space",
        [["a", "b"], ["\xa0a\u3000", "\ufeffb\u200b"]],
        [STAYS, (0, "exact")],
    ),
    ("white space inside", [["a  b", "c"], ["a b", "c"]], [STAYS, STAYS]),
    ("upper and lower case", [["A", "b"], ["a", "b"]], [STAYS, STAYS]),
    ("another system message", [["system:x", "a", "b"], ["a", "b"]], [STAYS, STAYS]),
    ("the incumbent drops longer continuations", ["ab", "abcd", "abef"], [(1, "prefix"), STAYS, STAYS]),
    ("no messages", ["", "", "ab"], [STAYS, STAYS, STAYS]),
]


@pytest.mark.parametrize(("chats", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_duplicate_names_a_twin_that_is_kept(chats: list[Chat], expected: list[tuple[object, ...]]) -> None:
    assert twins(chats) == expected


def test_prefixes_are_kept_when_the_setting_is_off() -> None:
    assert twins(["ab", "abcd", "ab"], prefixes=False) == [STAYS, STAYS, (0, "exact")]


def test_settings_reproduce_the_rules_of_fastchat() -> None:
    chats = ["ab", "abcd", "ef", "gh", "ab"]
    assert twins(chats, prefixes=False, first_exchange=True) == [
        STAYS, (0, "first_exchange"), STAYS, STAYS, (0, "exact")
    ]  # fmt: skip
    ids = ["1", "2", "1", "2", "3"]
    assert twins(chats, ids=ids, prefixes=False, first_exchange=True) == [
        STAYS, (0, "first_exchange"), (0, "id"), STAYS, (0, "exact")
    ]  # fmt: skip
    assert twins(["ab", "cd"], ids=[None, None], prefixes=False) == [STAYS, STAYS]
    assert twins(["ab", "cd", "cdef"], ids=["1", "1", "2"]) == [STAYS, (2, "prefix"), STAYS]


def test_a_twin_that_is_itself_dropped_passes_on_its_twin() -> None:
    assert twins(["ab", "abcd", "abcd"], prefixes=False, first_exchange=True) == [
        STAYS, (0, "first_exchange"), (0, "exact")
    ]  # fmt: skip


CHATS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), max_size=25)


@settings(max_examples=150, deadline=None)
@given(CHATS)
def test_every_content_is_kept_exactly_once(chats: list[list[str]]) -> None:
    result = exact_duplicates(hashed(chats))
    assert result["row"].to_list() == list(range(len(chats)))
    stay = [row for row, twin in enumerate(result["twin"]) if twin is None]
    kept = [tuple(chats[row]) for row in stay]
    assert len(set(kept)) == len(kept)
    for row, twin, kind in result.iter_rows():
        chat = chats[row]
        longer = [
            candidate
            for candidate in stay
            if len(chats[candidate]) > len(chat) and chats[candidate][: len(chat)] == chat
        ]
        if twin is None:
            assert not longer
            continue
        assert twin in stay
        if kind == "exact":
            assert chats[twin] == chat and twin < row
        else:
            assert twin == max(longer, key=lambda candidate: (len(chats[candidate]), -candidate))


@settings(max_examples=50, deadline=None)
@given(CHATS, st.randoms())
def test_the_kept_contents_do_not_depend_on_the_order(chats: list[list[str]], random: object) -> None:
    shuffled = list(chats)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    stay = [
        sorted(order[row] for row, twin in enumerate(exact_duplicates(hashed(order))["twin"]) if twin is None)
        for order in (chats, shuffled)
    ]
    assert stay[0] == stay[1]


# --- hashes

GOLDEN = "from curate.filters.duplicates import chain_hashes\n"
GOLDEN += "f = chain_hashes([[('user', 'hi', None, None, None), ('assistant', 'hé', None, None, None)]])\n"
GOLDEN += "print(f['chain'].to_list(), f['exchange'].to_list(), f['prompt'].to_list())"


def test_hashes_are_the_same_in_every_process_and_version() -> None:
    expected = "[[16996271748115254029, 16861827902265587154]] [16861827902265587154] [1183266118589023254]"
    printed = subprocess.run([sys.executable, "-c", GOLDEN], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == expected


def test_the_hash_of_the_first_exchange_leaves_out_the_system_message() -> None:
    hashes = chain_hashes(messages(["ab", "abcd", "abxy", ["system:x", "a", "b"], "ac", "a"]))["exchange"].to_list()
    assert len(set(hashes[:4])) == 1
    assert len(set(hashes)) == 3


PROMPTS = [
    "What is it?",
    " What is\n it? ",
    "WHAT IS IT?",
    "What\xa0is it?",
    "\ufeffWhat is it?",
    "Ｗhat is it?",
    "What\u200b is it?",
]


def test_the_hash_of_the_first_prompt_leaves_out_case_white_space_and_forms() -> None:
    chats = [[prompt, answer] for prompt in PROMPTS for answer in ("One.", "Two.")] + [["system:x", PROMPTS[0], "y"]]
    assert chain_hashes(messages(chats))["prompt"].n_unique() == 1
    assert (
        chain_hashes(messages([["What is it?", "x"], ["What it is?", "x"], ["Whatisit?", "x"]]))["prompt"].n_unique()
        == 3
    )


def test_of_copies_the_one_that_trains_the_most_is_kept() -> None:
    frame = hashed(["ab", "ab", "ab", "abcd", "abcd"]).with_columns(untrained=pl.Series([1, 0, 0, 2, 1]))
    assert exact_duplicates(frame.head(3)).select("twin", "kind").rows() == [(1, "exact"), STAYS, (1, "exact")]
    assert exact_duplicates(frame)["twin"].to_list() == [4, 4, 4, 4, None]


def test_pieces_of_one_chat_are_no_beginnings_of_each_other() -> None:
    chats, ids = ["ab", "abcd", "ab", "ab"], ["x_0", "x_2", "y", "x_0"]
    frame = hashed(chats, ids).with_columns(chat=pl.Series(["x", "x", None, "x"]))
    assert exact_duplicates(frame).select("twin", "kind").rows() == [
        STAYS, STAYS, (1, "prefix"), (0, "exact")
    ]  # fmt: skip


def test_names_and_tool_calls_are_part_of_a_message() -> None:
    variants: list[MessageFields] = [
        ("assistant", "x", None, None, None),
        ("assistant", "x", "bob", None, None),
        ("assistant", "x", None, "bob", None),
        ("assistant", "x", None, None, "bob"),
        ("assistant", "xbob", None, None, None),
    ]
    chains = chain_hashes([variant] for variant in variants)["chain"].to_list()
    assert len({chain[0] for chain in chains}) == len(variants)


def test_rows_without_messages_have_an_empty_chain() -> None:
    frame = chain_hashes([[], []])
    assert frame["chain"].to_list() == [[], []]
    assert frame.schema == HASHES


# --- train and eval

CLUSTERS = [f"{number:016x}" for number in range(5000)]


def test_about_the_requested_fraction_is_held_out() -> None:
    assert 30 <= assign_split(CLUSTERS, 0.01, 200, "curate").count("eval") <= 75
    assert assign_split(CLUSTERS, 0.0, 0, "curate").count("eval") == 0
    assert 1100 <= assign_split(CLUSTERS, 0.25, 200, "curate").count("eval") <= 1400


def test_small_sets_hold_out_nothing_and_larger_sets_at_least_one_cluster() -> None:
    assert set(assign_split(CLUSTERS[:199], 0.5, 200, "curate")) == {"train"}
    for start in range(0, 5000, 200):
        assert "eval" in assign_split(CLUSTERS[start : start + 200], 0.001, 200, "curate")
    assert assign_split(["same"] * 300, 0.01, 200, "curate") == ["train"] * 300
    assert assign_split([], 0.01, 0, "curate") == []


def test_a_cluster_larger_than_the_share_to_hold_out_is_trained_on() -> None:
    for seed in "abcdef":
        assert "eval" not in set(assign_split(["big"] * 400, 0.5, 0, seed))
        split = assign_split(["big"] * 400 + CLUSTERS[:4000], 0.05, 200, seed)
        assert "eval" not in split[:400] and 150 <= split.count("eval") <= 270
    many = [cluster for cluster in CLUSTERS[:100] for _ in range(3)]  # each is as large as the share
    assert assign_split(many, 0.01, 200, "curate").count("eval") in (3, 6, 9)


def test_nothing_is_held_out_if_that_would_be_far_more_than_the_share() -> None:
    assert assign_split(["one"] * 150 + ["two"] * 150, 0.01, 200, "curate").count("eval") == 0
    assert assign_split(["one"] * 290 + ["two"] * 10, 0.01, 200, "curate").count("eval") == 10


def test_another_seed_holds_out_other_clusters() -> None:
    assert assign_split(CLUSTERS, 0.01, 200, "curate") != assign_split(CLUSTERS, 0.01, 200, "another")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(CLUSTERS[:40]), max_size=60), st.floats(0, 0.9), st.integers(0, 20), st.text(max_size=5),
    st.randoms(),
)  # fmt: skip
def test_the_split_follows_the_cluster_in_any_order(
    clusters: list[str], fraction: float, minimum: int, seed: str, random: object
) -> None:
    sides = dict(zip(clusters, assign_split(clusters, fraction, minimum, seed), strict=True))
    shuffled = list(clusters)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_split(shuffled, fraction, minimum, seed) == [sides[cluster] for cluster in shuffled]


def test_new_clusters_do_not_move_existing_ones() -> None:
    before = assign_split(CLUSTERS[:3000], 0.05, 200, "curate")
    assert assign_split(CLUSTERS, 0.05, 200, "curate")[:3000] == before
