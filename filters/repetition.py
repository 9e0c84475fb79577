"""Degenerate answers: repeated digits, passages and answers, answers that were cut off, answers that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import polars as pl

from curate.display.figures import percent
from curate.errors import RecipeError
from curate.filters.examples import Examples, chat
from curate.filters.registry import reject, repair, rule, signal
from curate.filters.repairs import mask
from curate.schemas.continuations import asks_to_continue
from curate.schemas.conversation import Conversation, Message

if TYPE_CHECKING:
    from curate.filters.text.degeneration import Repetition

Found = Iterator[tuple[Conversation, int, str, str]]  # an answer's conversation and index, the reason, the evidence

MOST_JOINS = 64  # of one conversation; each reads the joined answer again
NAMES = "Three of the rivers of Germany that come to mind are the Rhine, the Danube, and the"
RIVER = "The Rhine rises in the Alps and flows through six countries before it reaches the North Sea. "


@rule(examples=Examples(chat("Print zeros.", "000000000"), chat("Print zeros.", "00000000")))
def repeated_digits(times: int = 9) -> pl.Expr:
    r"""Drop conversations in which a digit repeats `times` times in a row (FastChat's `(\d)\1{8}`).

    This also drops good data, such as tables with long runs of zeros.
    """
    if times < 2:
        raise RecipeError(f"filter 'repeated_digits': times = {times} is not allowed; give 2 or more")
    pattern = "|".join(f"{digit}{{{times},}}" for digit in range(10))
    texts = pl.concat_list(pl.col("prompts"), pl.col("answers"))
    digits = texts.list.eval(pl.element().str.extract(f"({pattern})", 1)).list.drop_nulls().list.first()
    return reject(
        digits.is_not_null(),
        "digit {digit} {count} times in a row, maximum {maximum}",
        evidence=digits,
        digit=digits.str.slice(0, 1),
        count=digits.str.len_bytes(),
        maximum=times - 1,
    )


# ---- repetition


@signal(
    loop_times=pl.UInt32,
    repeated_share=pl.Float32,
    most_said=pl.UInt32,
    copied_answers=pl.UInt32,
    repeated_passage=pl.String,
)
def repeats(frame: pl.DataFrame) -> pl.DataFrame:
    """Measure how much an answer repeats itself, or an earlier one; the worst answer of each conversation counts.

    `loop_times`: how often a passage stands several times in a row, if that makes 32 words or more.
    `repeated_share`: of the prose of an answer of 40 words or more, the share of words in passages of 8 words or more
    that it said before (Gopher's duplicate 8-grams); `most_said`: how often it says one of these. `copied_answers`:
    answers of 200 characters or more that an earlier one said word for word. `repeated_passage` is an excerpt. Code,
    tables, formulas and, but for loops, lists are not prose; loops and copies that the prompt asks for do not count. A
    Han letter or kana is a word.
    """
    from curate.filters.text.degeneration import Answer, find_repetition  # imports NumPy: late

    answers = _answers(frame)
    found = find_repetition([Answer(*values) for values in answers.iter_rows()])
    rows = answers["row"].gather(list(found)).to_list()
    each = [(row, r.times, r.share, r.most, r.copies, r.passage) for row, r in zip(rows, found.values(), strict=True)]
    names = ("loop_times", "repeated_share", "most_said", "copied_answers", "repeated_passage")
    types = (pl.UInt32, pl.Float32, pl.UInt32, pl.UInt32, pl.String)
    table = pl.DataFrame(each, schema={"row": pl.UInt32, **dict(zip(names, types, strict=True))}, orient="row")
    worst = table.sort("loop_times", "repeated_share", "copied_answers", descending=True, maintain_order=True)
    grouped = worst.group_by("row").agg(
        pl.col("loop_times", "repeated_share", "most_said").max(),
        pl.col("copied_answers").sum(),
        pl.col("repeated_passage").first(),
    )
    all_rows = pl.DataFrame({"row": pl.int_range(frame.height, dtype=pl.UInt32, eager=True)})
    joined = all_rows.join(grouped, on="row", how="left", maintain_order="left").drop("row")
    usual = dict(zip(names, (1, 0.0, 1, 0), strict=False))
    return joined.with_columns(pl.col(name).fill_null(value).cast(joined.schema[name]) for name, value in usual.items())


def _answers(frame: pl.DataFrame) -> pl.DataFrame:
    """Return `row`, `prompt` and `answer` of all answers: the prompt is the last before it."""
    numbered = frame.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"), "messages")
    turns = numbered.explode("messages").unnest("messages").select("row", "role", "content")
    prompt = pl.when(pl.col("role") == "user").then("content").forward_fill().over("row").fill_null("")
    return turns.with_columns(prompt=prompt).filter(pl.col("role") == "assistant").select("row", "prompt", "content")


@rule(
    examples=Examples(
        chat("Describe the Rhine.", RIVER * 6),
        chat(
            "Describe the Rhine.",
            RIVER + "It is one of Europe's busiest waterways, and wine is grown along it. " + RIVER,
        ),
    )
)
def repetition(
    action: str = "exchange", times: int = 4, share: float = 0.5, said: int = 20, copies: int = 1
) -> pl.Expr:
    """Remove the exchange of an answer that repeats itself or an earlier answer; see the signal `repeats`.

    An answer does so if a passage stands `times` times in a row, `share` of its prose was said before in it, it says a
    passage `said` times, or it is the copy of an earlier one (from the `copies`th on). `action` is "exchange", "drop"
    (the conversation), "mask" (the answer is not trained on) or "flag" (only the signal is measured).
    """
    _check_action("repetition", action, ("exchange", "drop", "mask", "flag"))
    _check_limits("repetition", times=times, share=share, said=said, copies=copies)
    if action not in ("drop", "flag"):
        return pl.lit(None)  # the repair below does it
    figures = [pl.col(name) for name in ("loop_times", "repeated_share", "most_said", "copied_answers")]
    limits = (times, share, said, copies)
    over = pl.any_horizontal([figure >= limit for figure, limit in zip(figures, limits, strict=True)])
    return reject(
        over & (action == "drop"),
        "repetition: {times} times in a row, {share} % of an answer's words, a passage {said} times, {copies} copies",
        evidence=pl.col("repeated_passage"),
        times=figures[0],
        share=(figures[1] * 100).round(0).cast(pl.Int32),
        said=figures[2],
        copies=figures[3],
    )


def _check_action(name: str, action: str, allowed: Sequence[str]) -> None:
    if action not in allowed:
        choices = ", ".join(f'"{choice}"' for choice in allowed)
        raise RecipeError(f"filter {name!r}: action = {action!r} is not allowed; give one of {choices}")


def _check_limits(name: str, **limits: float) -> None:
    for key, value in limits.items():
        if value <= 0:
            raise RecipeError(f"filter {name!r}: {key} = {value} is not allowed; give more than 0")


@repair(of="repetition")
def repeated_answers(
    conversations: Sequence[Conversation],
    action: str = "exchange",
    times: int = 4,
    share: float = 0.5,
    said: int = 20,
    copies: int = 1,
) -> None:
    """Remove or mask answers that repeat themselves."""
    if action in ("exchange", "mask"):
        _treat(_find_repeated(conversations, (times, share, said, copies)), "repetition", action)


def _find_repeated(conversations: Sequence[Conversation], limits: tuple[int, float, int, int]) -> Found:
    from curate.filters.text.degeneration import Answer, find_repetition

    places = list(_places(conversations))
    answers = [
        Answer(number, prompt, conversations[number].messages[index].content) for number, index, prompt in places
    ]
    copied: dict[int, int] = {}
    for answer, figures in sorted(find_repetition(answers).items()):
        number, index, _ = places[answer]
        copied[number] = copied.get(number, 0) + figures.copies
        if reason := _why(figures, copied[number], limits):
            yield conversations[number], index, reason, figures.passage


def _why(figures: Repetition, copied: int, limits: tuple[int, float, int, int]) -> str | None:
    times, share, said, copies = limits
    if figures.copies and copied >= copies:
        return "the answer is a copy of an earlier one"
    if figures.times >= times:
        return f"the answer says a passage {figures.times} times in a row, maximum {times - 1}"
    if figures.share >= share:
        said_before, allowed = percent(figures.share, digits=0), percent(share, digits=0)
        return f"the answer said {said_before} of its words before, less than {allowed} allowed"
    return f"the answer says a passage {figures.most} times, maximum {said - 1}" if figures.most >= said else None


def _places(conversations: Sequence[Conversation]) -> Iterator[tuple[int, int, str]]:
    """Yield each answer's conversation and index, by number, and the prompt before it."""
    for number, conversation in enumerate(conversations):
        prompt = ""
        for index, message in enumerate(conversation.messages):
            if message.role == "user":
                prompt = message.content
            elif message.role == "assistant":
                yield number, index, prompt


def _treat(found: Found, name: str, action: str) -> None:
    """Remove the exchanges of these answers, or do not train on them."""
    for conversation, index, reason, evidence in found:
        if action == "exchange":
            conversation.flaw(name, index, reason, evidence)
        else:
            mask(conversation, name, index, evidence, f"not trained on: {reason}")


# ---- answers that were cut off, or say nothing


@signal(cut_answers=pl.UInt32, empty_answers=pl.UInt32)
def endings(frame: pl.DataFrame) -> pl.DataFrame:
    """Count the answers that were cut off (see `truncated`) and those that say nothing (see `empty_talk`)."""
    from curate.filters.text.emptiness import find_emptiness
    from curate.filters.text.endings import find_cut

    answers = _answers(frame).with_columns(
        cut=pl.col("content").map_elements(lambda text: find_cut(text) is not None, pl.Boolean),
        empty=pl.struct("prompt", "content").map_elements(
            lambda turn: find_emptiness(turn["prompt"], turn["content"]) is not None, pl.Boolean
        ),
    )
    counts = answers.group_by("row").agg(cut_answers=pl.col("cut").sum(), empty_answers=pl.col("empty").sum())
    rows = pl.DataFrame({"row": pl.int_range(frame.height, dtype=pl.UInt32, eager=True)})
    joined = rows.join(counts, on="row", how="left", maintain_order="left")
    return joined.select(pl.col("cut_answers", "empty_answers").fill_null(0).cast(pl.UInt32))


@rule(
    examples=Examples(
        chat(
            "Tell me a story.", "Once upon a time there lived a king. He had three daughters, and the youngest of the"
        ),
        chat(
            "Tell me a story.",
            "Once upon a time there lived a king. He had three daughters, and the youngest of them ruled.",
        ),
        settings={"action": "drop"},
    )
)
def truncated(action: str = "repair") -> pl.Expr:
    """Do not train the stop token of an answer that was cut off, so that the model does not learn to stop there.

    An answer was cut off if its last code block is not closed or leaves brackets open, or its last sentence breaks off:
    in a word such as "the", or without a full stop where the sentences before it have one. `action` is "repair" (no
    stop token), "mask" (the answer is not trained on), "exchange" (its exchange is removed), "drop" (the conversation)
    or "flag" (only the signal `endings` is measured).
    """
    _check_action("truncated", action, ("repair", "mask", "exchange", "drop", "flag"))
    if action not in ("drop", "flag"):
        return pl.lit(None)  # the repair below does it
    count = pl.col("cut_answers")
    last = pl.col("answers").list.last().str.tail(100)
    return reject((count > 0) & (action == "drop"), "{count} answers were cut off", evidence=last, count=count)


@repair(of="truncated")
def cut_answers(conversations: Sequence[Conversation], action: str = "repair") -> None:
    """Do not train the stop token of answers that were cut off, or remove or mask them."""
    found = _find_cut(conversations)
    if action in ("exchange", "mask"):
        _treat(found, "truncated", action)
    elif action == "repair":
        for conversation, index, reason, evidence in found:
            message = conversation.messages[index]
            if message.stop:
                message.stop = False
                conversation.edit("truncated", index, evidence, f"no stop token: {reason}")


def _find_cut(conversations: Sequence[Conversation]) -> Found:
    from curate.filters.text.endings import find_cut

    return _find(conversations, lambda prompt, message: None if message.tool_calls else find_cut(message.content))


def _find(conversations: Sequence[Conversation], judge: Callable[[str, Message], tuple[str, str] | None]) -> Found:
    for number, index, prompt in _places(conversations):
        if judgement := judge(prompt, conversations[number].messages[index]):
            yield conversations[number], index, *judgement


@rule(
    examples=Examples(
        chat("Write a poem about the sea and its tides.", "Certainly! Here is a poem about the sea:"),
        chat("Write a poem about the sea and its tides.", "Certainly! Here is a poem about the sea: it sings."),
    )
)
def empty_talk(action: str = "exchange") -> pl.Expr:
    """Remove the exchange of an answer that says nothing: a bare "Sure!", "Here it is:", "Please wait a moment."

    A short answer to thanks, or to a prompt that wants a short one, stays. `action` is "exchange", "drop" (the
    conversation), "mask" (the answer is not trained on) or "flag" (only the signal `endings` is measured).
    """
    _check_action("empty_talk", action, ("exchange", "drop", "mask", "flag"))
    if action not in ("drop", "flag"):
        return pl.lit(None)  # the repair below does it
    count = pl.col("empty_answers")
    return reject((count > 0) & (action == "drop"), "{count} answers say nothing", count=count)


@repair(of="empty_talk")
def empty_answers(conversations: Sequence[Conversation], action: str = "exchange") -> None:
    """Remove or mask answers that say nothing."""
    from curate.filters.text.emptiness import find_emptiness

    def judge(prompt: str, message: Message) -> tuple[str, str] | None:
        reason = None if message.tool_calls else find_emptiness(prompt, message.content)
        return (reason, message.content) if reason else None

    if action in ("exchange", "mask"):
        _treat(_find(conversations, judge), "empty_talk", action)


# ---- answers that go on in the next exchange


@repair(
    examples=Examples(
        chat("Name three rivers.", NAMES, "continue", "Elbe."),
        chat("Name three rivers.", NAMES + " Elbe.", "continue", "The Po."),
    )
)
def continuations(conversations: Sequence[Conversation]) -> None:
    """Join an answer that was cut off with the answer to "continue" (or "go on", "继续", "계속" …) after it.

    The prompt between them is removed, and so are a first line such as "Here is the rest:", what the second answer says
    again of the end of the first, and the marks of code that was cut in two. They stay apart where the second answer
    begins again, declines, or does not clearly go on.
    """
    for conversation in conversations:
        index = joins = 0
        while index + 2 < len(conversation.messages) and joins < MOST_JOINS:
            if _join_next(conversation, index):
                joins += 1
            else:
                index += 1


def _join_next(conversation: Conversation, index: int) -> bool:
    """Join a message with the answer two after it, if that goes on with it; return whether it did."""
    from curate.filters.text.continuations import join_answers

    first, prompt, second = conversation.messages[index : index + 3]
    if (first.role, prompt.role, second.role) != ("assistant", "user", "assistant"):
        return False
    if not asks_to_continue(prompt.content) or not _is_plain(conversation, first, second):
        return False
    joined = join_answers(first.content, second.content)
    if joined is None:
        return False
    before = first.content[-80:] + " | " + prompt.content[:30] + " | " + second.content[:80]
    conversation.edit("continuations", index, before, joined[max(0, len(first.content) - 80) :])
    first.content, first.stop = joined, second.stop
    first.was_html = first.was_html or second.was_html
    for edit in conversation.edits:
        if edit.message in (index + 1, index + 2):
            edit.message = index
    conversation.remove(index + 2)
    conversation.remove(index + 1)
    return True


def _is_plain(conversation: Conversation, first: Message, second: Message) -> bool:
    """Return whether two answers are text alone, trained alike, and nothing is said against them or of the last one."""
    others = (first.tool_calls, second.tool_calls, second.reasoning)
    paired = conversation.rejected_answer and conversation.messages[-1] is second
    return first.train == second.train and not any(others) and not paired and not conversation.flaws
