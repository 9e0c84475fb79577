"""Answers that repeat themselves, were cut off, or say nothing: which are found, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curate
from curate.errors import RecipeError
from curate.filters import check
from curate.filters.text.degeneration import Answer, find_repetition
from curate.filters.text.emptiness import find_emptiness
from curate.filters.text.endings import find_cut
from curate.filters.text.repeats import GRAM, find_repeats
from curate.filters.text.words import find_words
from curate.pipeline import recipe
from curate.pipeline.run import CleanResult
from tests.filters.hostile_texts import HOSTILE

SENTENCE = "The cat sat on the mat and looked at the dog with some surprise. "
PARAGRAPH = "The Rhine rises in the Alps, flows through six countries, and reaches the sea near Rotterdam.\n\n"
STORY = "Once upon a time there lived a king. He had three daughters, each of them wiser than the last. "
FILLER = "Its water once powered mills; today barges carry coal, grain and cars along valley number {}.\n\n"


def measure(text: str, prompt: str = "Tell me something.") -> tuple[int, float, int]:
    """Return times in a row, repeated share, and most times said."""
    found = find_repetition([Answer(0, prompt, text)]).get(0)
    return (found.times, found.share, found.most) if found else (1, 0.0, 1)


Clean = Callable[..., CleanResult]


@pytest.fixture
def clean(tmp_path: Path, tiny_tokenizer: str) -> Clean:
    """Return a function that cleans conversations, of texts that take turns, with these filters."""

    def run(filters: Mapping[str, object], *chats: list[str]) -> CleanResult:
        roles = ("user", "assistant")
        turns = [[{"role": roles[place % 2], "content": text} for place, text in enumerate(chat)] for chat in chats]
        dump = tmp_path / "dump.jsonl"
        dump.write_text("\n".join(json.dumps({"messages": messages}) for messages in turns), "utf-8")
        chosen = recipe.from_dict({"filters": filters, "tokens": {"tokenizer": tiny_tokenizer}})
        return curate.clean(dump, tmp_path / "set", recipe=chosen, force=True, workers=1)

    return run


def rows(result: CleanResult, name: str = "conversations") -> pl.DataFrame:
    return pl.read_parquet(Path(result.output) / f"{name}.parquet")


# ---- words and repeats


def test_words_are_runs_of_letters_and_single_han_letters_without_the_numbers_of_lists() -> None:
    words = find_words(["1. It's “naïve” — 你好，世界。\n12) x3", "", "Straße"])
    spoken = [words.passage(place, place) for place in range(len(words.starts))]
    assert spoken == ["It", "s", "naïve", "你", "好", "世", "界", "x3", "Straße"]
    assert words.counts.tolist() == [8, 0, 1]


@given(st.lists(st.text(alphabet="ab 你。\n1.", max_size=60), max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_text_is_measured_the_same_alone_and_among_others(texts: list[str]) -> None:
    together = find_repeats(texts)
    for place, text in enumerate(texts):
        alone = find_repeats([text])
        assert alone.shares[0] == together.shares[place]
        assert (alone.times[0], alone.most[0]) == (together.times[place], together.most[place])
        assert alone.passages[0] == together.passages[place]


@given(st.lists(st.sampled_from("abcdef"), max_size=80))
@settings(max_examples=80, deadline=None)
def test_the_share_is_that_of_words_in_passages_said_before(letters: list[str]) -> None:
    grams = [tuple(letters[place : place + GRAM]) for place in range(len(letters) - GRAM + 1)]
    again = {place for place, gram in enumerate(grams) if gram in grams[:place]}
    covered = {place + offset for place in again for offset in range(GRAM)}
    assert find_repeats([" ".join(letters)]).shares[0] == pytest.approx(len(covered) / max(1, len(letters)))


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("Well, " + "no " * 40, 40),
        ("I am I am " * 20, 40),
        ("ha" * 5_000, 625),
        ("Here it is. " + SENTENCE * 5, 5),
        (PARAGRAPH * 4, 4),
        ("我不知道该怎么办。" * 8, 8),
        ("今日はとても良い天気ですね。" * 5, 5),
        ("그는 오늘 학교에 가서 친구를 만났습니다. " * 6, 6),
        ("\n".join(f"{number}. Use a serif font such as Georgia" for number in range(1, 9)), 8),
    ],
    ids=["word", "two words", "letters", "sentence", "paragraph", "Chinese", "Japanese", "Korean", "items"],
)
def test_a_loop_is_found_with_its_length(text: str, times: int) -> None:
    assert measure(text)[0] == times


def test_repetition_that_is_not_in_a_row_is_a_share_and_a_count() -> None:
    times, share, most = measure("".join(PARAGRAPH + FILLER.format(number) for number in range(12)))
    assert (times, most) == (1, 12)
    assert share > 0.5


@pytest.mark.parametrize(
    "text",
    [
        "```python\n" + "print('hello world again and again and again')\n" * 30 + "```",
        "| a | b |\n|---|---|\n" + "| yes it is so and it is so again | no |\n" * 30,
        "0, " * 300,
        "─" * 400,
        "\n".join(f"- The {name} is a kind of bird that lives in the woods of Asia" for name in "abcdefghijkl"),
        PARAGRAPH + STORY + FILLER.format(1),
        "$$" + r"\ket{0}\bra{0} + " * 40 + "$$",
    ],
    ids=["code", "table", "numbers", "rule", "list", "prose", "formula"],
)
def test_code_tables_numbers_and_lists_may_repeat(text: str) -> None:
    times, share, _ = measure(text)
    assert (times, share < 0.5) == (1, True)


def test_repetition_that_was_asked_for_is_none() -> None:
    lines = "I will not talk in class. " * 50
    assert measure(lines, 'Write "I will not talk in class." 50 times.')[0] == 1
    assert measure(lines, "What will you do tomorrow?")[0] == 50


def test_an_answer_may_copy_an_earlier_one_only_if_it_was_asked_to() -> None:
    answer = PARAGRAPH + STORY + FILLER.format(1)
    prompts = ["Tell me about the Rhine.", "And the Danube?", "Please repeat that."]
    assert list(find_repetition([Answer(0, prompt, answer) for prompt in prompts])) == [1]
    assert find_repetition([Answer(number, "The Rhine?", answer) for number in range(3)]) == {}


# ---- answers that were cut off


CUT = {
    "open fence": "Here it is:\n\n```python\ndef f(x):\n    return x",
    "open brackets": "Here it is:\n\n```python\nprint(x,\n```",
    "open brackets in a list": "1. Do it:\n\n   ```js\n   f({a: 1,\n   ```",
    "article": STORY + "The youngest of the",
    "comma": STORY + "They rode through the forest, over the hills,",
    "no full stop": STORY * 2 + "The youngest rode out to find the dragon who",
    "within a word": STORY * 2 + "She had never seen such a magnifi",
    "item": "Steps for a good result:\n\n"
    + "".join(f"{number}. Mix the flour, the eggs and the milk well.\n" for number in range(1, 5))
    + "5. Bake the cake in the oven for about forty",
    "Chinese": "很高兴能够帮助到你，你已经展现了很强的决心和勇气。相信你一定能够克服困难，走出困境。"
    "记得在这个过程中，多关注自己的情",
    "German": "Der König hatte drei Töchter. Die jüngste ritt in den dunklen Wald und",
    "French": "Le roi avait trois filles. La plus jeune partit dans la forêt pour",
}
WHOLE = {
    "sentence": STORY,
    "quote": STORY + '"And so it was."',
    "closed code": "Here it is:\n\n```python\nprint((1, 2))\n```",
    "brackets in texts": "Here it is:\n\n```python\nprint('(((')  # [[[\n```",
    "printf": "Here it is:\n\n```python\nprint('%s' % (name,))\nfor (i = 3; i--;) f(i)\n```",
    "signature": STORY + "\n\nBest regards,\n[Your Name]",
    "items": STORY + "\n\n- flour, milk and eggs of the best kind\n- sugar for the cake that we bake",
    "title": STORY + "\n\n## What the youngest of the daughters did",
    "link": STORY + "See more about this king and his daughters at https://example.com/a",
    "hashtags": STORY + "Read it now and tell all of your friends #tale #king",
    "nested fences": "A file:\n\n```markdown\n# Title\n```python\nx = 1\n```\n",
    "phrase": "the youngest daughter of the old king",
    "table": STORY + "\n\n| a | b |\n|---|---|\n| one of the first | two of the",
    "Thai": "สวัสดีครับ " * 40,
    "tilde fence": "~~~\nx = [\n]\n~~~",
    "a word of two languages": "That is all that you will need to do",
    "empty": "",
}


@pytest.mark.parametrize("text", CUT.values(), ids=CUT)
def test_a_cut_answer_is_found(text: str) -> None:
    assert find_cut(text) is not None


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE)
def test_a_whole_answer_is_not_cut(text: str) -> None:
    assert find_cut(text) is None


# ---- answers that say nothing


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Write a poem about the sea and the tides.", "Certainly! Here is a poem about the sea:"),
        ("Write a poem about the sea and the tides.", "Sure!"),
        ("Write a poem about the sea and the tides.", "Of course, I can help with that."),
        ("Fix my program.", "Please give me a few moments while I work on it."),
        ("Fix my program.", "I'm working on it now and I'll get back to you."),
        ("请帮我写一篇关于大海的文章。", "好的，请稍等。"),
        ("对于一个只会想，不会做的人有什么好办法？", "我理解你的困扰，以下是一些具体的建议："),
    ],
)
def test_an_answer_that_says_nothing_is_found(prompt: str, answer: str) -> None:
    assert find_emptiness(prompt, answer)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Thanks a lot, that was all that I wanted to know.", "You're welcome!"),
        ("I will paste a text. Reply only with OK when you understand.", "OK"),
        ("Is it true that water boils at 100 degrees at sea level?", "Yes."),
        ("Write a poem about the sea.", "Here is a poem:\n\nThe sea sings."),
        ("Fix my program.", "Please send me the program and I will get started."),
        ("Find a table.", "Give me a moment. There are nine restaurants in San Mateo."),
    ],
)
def test_a_short_answer_may_say_enough(prompt: str, answer: str) -> None:
    assert find_emptiness(prompt, answer) is None


# ---- what becomes of them


GOOD = ["Name a river in Germany.", "The Rhine is the longest river in Germany."]
LOOP = ["And what does the cat do?", SENTENCE * 8]


def test_an_exchange_that_repeats_itself_is_removed_with_its_reason(clean: Clean) -> None:
    result = clean({"repetition": True}, [*GOOD, *LOOP, "Thanks!", "You're welcome!"], LOOP)
    assert [[m["content"] for m in chat] for chat in rows(result)["messages"]] == [
        [*GOOD, "Thanks!", "You're welcome!"]
    ]
    rejects = rows(result, "rejected").select("scope", "rule", "reason", "evidence", "message_range").rows()
    reason, passage = "the answer says a passage 8 times in a row, maximum 3", SENTENCE.rstrip(". ")
    assert ("exchange", "repetition", reason, passage, [2, 4]) in rejects
    assert ("record", "repetition", reason, passage, None) in rejects


@pytest.mark.parametrize(
    ("filters", "chat", "field"),
    [
        ({"repetition": {"action": "mask"}}, LOOP, "train"),
        ({"truncated": {"action": "mask"}}, ["Go.", CUT["article"]], "train"),
        ({"truncated": True}, ["Go.", CUT["article"]], "stop"),
        ({"empty_talk": {"action": "mask"}}, ["Write me a poem about the sea and its tides.", "Certainly!"], "train"),
    ],
    ids=["repetition", "truncated", "stop", "empty talk"],
)
def test_an_answer_is_masked_with_an_edit(
    filters: dict[str, object], chat: list[str], field: str, clean: Clean
) -> None:
    result = clean(filters, [*GOOD, *chat])
    row = rows(result).row(0, named=True)
    assert [message[field] for message in row["messages"]] == [True, True, True, False]
    assert [(edit["rule"], edit["message"]) for edit in row["edits"]] == [(next(iter(filters)), 3)]


def test_a_stop_token_is_not_trained_after_a_cut_answer(clean: Clean) -> None:
    chats = [["Go on then.", CUT["article"]], ["Go on then.", STORY]]
    repaired = rows(clean({"truncated": True}, *chats))["answer_tokens"]
    assert (
        repaired.to_list()
        == (rows(clean({"min_messages": True}, *chats))["answer_tokens"] - pl.Series([1, 0])).to_list()
    )


def test_a_flag_only_measures_and_drop_uses_the_same_columns(clean: Clean) -> None:
    chats = [GOOD, LOOP, ["Go.", CUT["article"]], ["Write me a poem about the sea and its tides.", "Certainly!"]]
    names = ("repetition", "truncated", "empty_talk")
    measured = rows(clean({name: {"action": "flag"} for name in names}, *chats))
    assert measured["loop_times"].to_list() == [1, 8, 1, 1]
    assert measured["cut_answers"].to_list() == [0, 0, 1, 0]
    assert measured["empty_answers"].to_list() == [0, 0, 0, 1]
    dropped = clean({name: {"action": "drop"} for name in names}, *chats)
    assert rows(dropped).height == 1
    assert sorted(rows(dropped, "rejected")["rule"]) == sorted(names)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("repetition", {"action": "drp"}, "action = 'drp' is not allowed"),
        ("repetition", {"share": 0.0}, "share = 0.0 is not allowed; give more than 0"),
        ("truncated", {"action": "cut"}, 'give one of "repair", "mask", "exchange", "drop", "flag"'),
        ("empty_talk", {"action": "repair"}, "action = 'repair' is not allowed"),
    ],
)
def test_a_wrong_setting_is_named(name: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(name, values)


# ---- hostile texts: each would take minutes if any step were quadratic

SIZE = 120_000


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_take_no_longer_than_others(make: Callable[[int], str]) -> None:
    text = make(SIZE)
    find_repetition([Answer(0, text, text)])
    find_emptiness(text, text)
    find_cut(text)
