"""Prompts such as "continue": which are, which answers they join, and what a piece that would begin with one keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import curate
from curate.filters.text.continuations import join_answers
from curate.pipeline import recipe
from curate.rendering.splitter import Fragment, Size, TokenCounter, split_with
from curate.schemas.continuations import asks_to_continue
from curate.schemas.conversation import Message


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            "continue",
            "Continue.",
            "please continue!",
            "Please continue from where you left off",
            "go on",
            "keep going",
        ),
        *(
            "cont",
            "Ok, continue writing please",
            "Can you continue your last answer?",
            "the rest of the code",
            "finish it",
        ),
        *(
            "continueShare Prompt",
            "keep going지금 번역하기",
            "Continue.\n\nPlease write in English language.Share Prompt",
        ),
        *(
            "继续",
            "请继续",
            "继续写",
            "接着说",
            "繼續",
            "続けて",
            "続けてください",
            "続きをお願いします",
            "계속",
            "계속해줘",
            "계속 써주세요",
        ),
        *(
            "이어서 작성해줘",
            "weiter",
            "bitte weiter",
            "mach weiter",
            "continúa",
            "sigue",
            "continuez",
            "la suite",
            "continua",
        ),
        *("продолжай", "дальше", "devam et", "tiếp tục", "lanjutkan", "أكمل", "ต่อ"),
    ],
)
def test_a_prompt_that_only_asks_to_continue(prompt: str) -> None:
    assert asks_to_continue(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            "",
            "...",
            "more",
            "yes",
            "Continue the story, but let the king die.",
            "continue to step 7",
            "Should I continue?",
        ),
        *(
            "我会继续努力的！",
            "계속 여기에 있어도 될까요?",
            "What is a continued fraction?",
            "Finish my essay: " + "x" * 200,
        ),
    ],
)
def test_a_prompt_that_says_more(prompt: str) -> None:
    assert not asks_to_continue(prompt)


CUT = "There are many reasons for that. The first of these reasons is that the river"
CODE = "Here it is:\n\n```python\nfor name in names:\n    print(name,"


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (CUT, "flows through six countries.", CUT + " flows through six countries."),
        (CUT, ", in short, is long.", CUT + ", in short, is long."),
        (CUT, "The first of these reasons is that the river flows.", CUT + " flows."),
        (CUT, "Sure, here is the rest of my answer:\n\nthe river flows.", CUT + " flows."),
        (
            "He thought of Mark Twain, and then of Mark Tw",
            "ain again.",
            "He thought of Mark Twain, and then of Mark Twain again.",
        ),
        (CUT + "s are the Rhine and the", "Elbe.", CUT + "s are the Rhine and the Elbe."),
        (
            "他说了很多关于这条河的事情，也说了他家乡的历史和文化，最后他还",
            "唱了歌。",
            "他说了很多关于这条河的事情，也说了他家乡的历史和文化，最后他还唱了歌。",
        ),
        (CODE, "end='')\n```", CODE + "\nend='')\n```"),
        (CODE + "\n```", "```python\n          end='')\n```\nDone.", CODE + "\n          end='')\n```\nDone."),
        (
            CODE + "\n```",
            "Here is the rest of the code:\n```python\n    print(name, end='')\n```",
            CODE + " end='')\n```",
        ),
    ],
    ids=["word", "comma", "overlap", "lead", "in a word", "name", "Chinese", "open code", "closed code", "code again"],
)
def test_an_answer_goes_on(first: str, second: str, joined: str) -> None:
    assert join_answers(first, second) == joined


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (CUT + " is long.", "And it is deep."),
        (CUT, "I'm sorry, but I can't continue with that."),
        (CUT, "Sure, here are a few more reasons."),
        (CUT, "1. It is long."),
        (CUT, "Another reason is its depth."),
        (CODE + "\n```", "end='')"),
        (CODE + "\n```", "Here is the rest:\n```python\ndef other():\n    pass\n```"),
        ("x = [", "1]"),
        (CUT, " \n"),
    ],
    ids=["whole", "declines", "sure", "list", "sentence", "code or text", "other code", "short", "empty"],
)
def test_an_answer_that_does_not_clearly_go_on_stays_apart(first: str, second: str) -> None:
    assert join_answers(first, second) is None


@pytest.mark.parametrize("letter", ["a ", " ", "\n", "`", "```\n", "here is the rest", "sure ", ": ", "1. ", "的"])
def test_hostile_answers_are_joined_in_no_time(letter: str) -> None:
    join_answers(letter * 50_000 + " and the", letter * 50_000)
    join_answers("```\nf(" + letter * 50_000, letter * 50_000)


# ---- in a run

Clean = Callable[..., pl.DataFrame]


@pytest.fixture
def clean(tmp_path: Path, tiny_tokenizer: str) -> Clean:
    """Return a function that cleans one conversation, of texts that take turns, and returns the set's rows."""

    def run(*texts: str, filters: dict[str, Any], max_tokens: int = 2048) -> pl.DataFrame:
        messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
        (tmp_path / "dump.json").write_text(json.dumps([{"messages": messages}]), "utf-8")
        tokens = {"tokenizer": tiny_tokenizer, "max_tokens": max_tokens}
        chosen = recipe.from_dict({"filters": filters, "tokens": tokens})
        curate.clean(tmp_path / "dump.json", tmp_path / "set", recipe=chosen, force=True, workers=1)
        return pl.read_parquet(tmp_path / "set" / "conversations.parquet")

    return run


def test_a_chain_becomes_one_answer_with_an_edit_for_each_join(clean: Clean) -> None:
    texts = (
        "Why?",
        CUT,
        "continue",
        "flows through many lands and then the",
        "go on",
        "sea takes it.",
        "Thanks!",
        "Bye!",
    )
    row = clean(*texts, filters={"continuations": True, "truncated": True}).row(0, named=True)
    whole = CUT + " flows through many lands and then the sea takes it."
    assert [message["content"] for message in row["messages"]] == ["Why?", whole, "Thanks!", "Bye!"]
    assert all(message["stop"] for message in row["messages"])
    assert [(edit["rule"], edit["message"]) for edit in row["edits"]] == [("continuations", 1), ("continuations", 1)]
    assert "continue" in row["edits"][0]["before"]


# ---- pieces


class Letters(TokenCounter):
    """Counts letters as tokens, a piece as the sum of its exchanges, or only whole."""

    def __init__(self, additive: bool) -> None:
        self.additive = additive

    def sizes(self, fragments: Sequence[Fragment]) -> list[Size]:
        return [Size(sum(len(message.content) for message in messages), 0) for messages, _ in fragments]


def pieces(chat: list[str], window: int, additive: bool) -> list[tuple[int, int]]:
    messages = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(chat)]
    (result,) = split_with(Letters(additive), [messages], window)
    assert all(piece.tokens == sum(len(text) for text in chat[piece.start : piece.stop]) for piece in result.pieces)
    return [(piece.start, piece.stop) for piece in result.pieces]


@pytest.mark.parametrize("additive", [True, False], ids=["sums", "search"])
def test_a_piece_begins_with_what_a_prompt_to_continue_goes_on_with(additive: bool) -> None:
    chat = ["q" * 8, "a" * 12, "q" * 8, "a" * 12, "continue", "a" * 12, "go on", "a" * 12, "q" * 8, "a" * 12]
    assert pieces(chat, 200, additive) == [(0, 10)]
    assert pieces(chat, 59, additive) == [(0, 2), (2, 8), (8, 10)]
    assert pieces(chat, 45, additive) == [(0, 2), (2, 6), (6, 10)]  # the chain is longer than the window


def test_a_piece_without_what_it_continues_is_named(clean: Clean) -> None:
    texts = ("Why is it so?", "Because " * 12, "continue", "And so " * 12)
    rows = clean(*texts, filters={"min_messages": True}, max_tokens=260)
    assert rows["turns"].to_list() == [2, 2]
    assert rows["edit_names"].to_list() == [["lost_context"]] * 2
    assert [(edit["message"], edit["before"]) for edit in rows["edits"][0]] == [(2, "continue")]
